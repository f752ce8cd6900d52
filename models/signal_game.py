"""The signal game: a sender describes an image by one symbol, a receiver finds the image among others."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import SparseDistribution
from ..oracles.checks import cannot_branch, check_count
from .estimators import DrawnCost, Estimate, Estimator, Learned
from .message_costs import MessageCost, NegativeLogLikelihood
from .scalar_filter import filtered


@dataclass(frozen=True)
class Play:
    """What a batch of B games came to.

    Attributes:
        loss: scalar with the value and the gradient of mean [E_q cost - coefficient * entropy].
        cost: [B] detached: E_q cost as the estimator has it, in nats for the negative log-likelihood.
        entropy: [B] detached: of the message, nats.
        success_argmax: [B]: 1 where the receiver's best guess upon the sender's most probable symbol is right.
        estimate: what the estimator returned.
    """

    loss: Tensor
    cost: Tensor
    entropy: Tensor
    success_argmax: Tensor
    estimate: Estimate


class Sender(nn.Module):
    """Scores of the symbols, given the target's features: [B, features] -> [B, symbols].

    e = W x; each entry of e goes through the same small network, sigmoid(v' sigmoid(u e_j)) with u, v in R^filters; a last
    linear map gives one score a symbol, divided by the temperature. No biases, as in the published code.

    Args:
        features: of an image.
        symbols: size of the vocabulary.
        embedding: entries of e.
        filters: of the small network.
        temperature: what the scores are divided by.
    """

    def __init__(
        self, features: int, symbols: int = 256, embedding: int = 256, filters: int = 512, temperature: float = 10.0
    ) -> None:
        super().__init__()
        sizes = {"features": features, "symbols": symbols, "embedding": embedding, "filters": filters}
        for name, size in sizes.items():
            check_count(f"Sender: {name}", size, 1)
        if not 0 < temperature < math.inf:
            raise ValueError(f"Sender: temperature must be above 0 and finite, not {temperature}")
        self.embed = nn.Linear(features, embedding, bias=False)
        self.filter_in = nn.Linear(1, filters, bias=False)
        self.filter_out = nn.Linear(filters, 1, bias=False)
        self.score = nn.Linear(embedding, symbols, bias=False)
        self.temperature = temperature

    def forward(self, target: Tensor) -> Tensor:
        inner, outer = self.filter_in.weight[:, 0], self.filter_out.weight[0]
        return self.score(filtered(self.embed(target), inner, outer).sigmoid()) / self.temperature


class Receiver(nn.Module):
    """Scores of the images upon every symbol: <U x_i, V s>, [B, images, features] -> [B, images, symbols].

    All symbols are scored at once: the images are embedded once a game, and a symbol's scores are looked up afterwards.
    Symbol vectors start as N(0, 1) for every estimator; the published code starts those of relaxed messages 28 times
    smaller, which favours the others.

    Args:
        features: of an image.
        symbols: size of the vocabulary.
        embedding: of images and symbols.
    """

    def __init__(self, features: int, symbols: int = 256, embedding: int = 256) -> None:
        super().__init__()
        self.embed = nn.Linear(features, embedding, bias=False)
        self.symbols = nn.Parameter(torch.randn(symbols, embedding))

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images) @ self.symbols.T


class SignalGame(nn.Module):
    """Lewis's signalling game (Lazaridou et al. 2017; Correia et al. 2020, section 5.2).

    The sender sees the target and sends one symbol z; the receiver sees the images and guesses which is meant. Both share

        min  E_{z ~ q(z | target)} cost(z)  -  coefficient * H(q),

    where the cost is -log p(target's position | z, images) or another `MessageCost`. The receiver's scores for all symbols are
    one table, O(B images symbols embedding); a message is a look-up in it, however many messages an estimator evaluates.

    Args:
        estimator: how the expectation and its gradient are computed. It is given the target's features as context; a
            learned baseline without a size takes theirs.
        sender: target to scores.
        receiver: images to scores for every symbol.
        entropy_coefficient: weight of the message's entropy, at least 0.
        cost: of a message; None is `NegativeLogLikelihood`.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __init__(
        self,
        estimator: Estimator,
        sender: Sender,
        receiver: Receiver,
        entropy_coefficient: float = 0.0,
        cost: MessageCost | None = None,
    ) -> None:
        super().__init__()
        self.cost = NegativeLogLikelihood() if cost is None else cost
        if self.cost.drawn and not estimator.takes_drawn_costs:
            raise ValueError(
                f"{type(self.cost).__name__} draws the receiver's choice, but {type(estimator).__name__} has no gradient for "
                "what is drawn: use ScoreFunction, or the cost NegativeLogLikelihood"
            )
        symbols = receiver.symbols.shape[0]
        if sender.score.out_features != symbols:
            raise ValueError(f"the sender has {sender.score.out_features} symbols, the receiver {symbols}: give both the same")
        if estimator.dim not in (None, symbols):
            raise ValueError(
                f"the sender gives scores of {symbols} symbols but the estimator's structures have {estimator.dim}: give the "
                "model and the estimator's polytope the same number"
            )
        if not entropy_coefficient >= 0:
            raise ValueError(f"SignalGame: entropy_coefficient must be at least 0, not {entropy_coefficient}")
        self.estimator = estimator
        self.sender = sender
        self.receiver = receiver
        self.entropy_coefficient = entropy_coefficient
        for module in estimator.modules():
            if isinstance(module, Learned):
                module.build(sender.embed.in_features)

    def forward(self, target: Tensor, images: Tensor, position: Tensor) -> Play:
        """Play games: target [B, features], images [B, n, features], the target's position among them [B] int64.

        Raises:
            ValueError: other shapes, or on the CPU a position that is none of the images'.
        """
        _check_games(images, position)
        scores = self.sender(target)
        table = self.receiver(images)

        def cost(messages: Tensor, row: Tensor) -> Tensor | DrawnCost:
            return self.cost(table, position, messages, row)

        estimate = self.estimator(scores, cost, context=target)
        # Not the mode of the estimate: ties and rounding there are the estimator's own.
        best = scores.detach().argmax(-1, keepdim=True)
        return Play(
            loss=estimate.surrogate.mean() - self.entropy_coefficient * estimate.entropy.mean(),
            cost=estimate.value,
            entropy=estimate.entropy.detach(),
            success_argmax=_right(table.take_along_dim(best[:, None], -1), position)[:, 0],
            estimate=estimate,
        )

    @torch.no_grad()
    def success_expected(self, target: Tensor, images: Tensor, position: Tensor) -> Tensor:
        """P(the receiver's best guess is right) under the estimator's own distribution of messages, exact: [B]."""
        right = _right(self.receiver(images), position)  # [B, symbols]
        distribution = self.estimator.distribution(self.sender(target))
        if isinstance(distribution, SparseDistribution):
            return distribution.expectation(lambda messages, row: right[row, messages.argmax(-1)])
        batch, symbols = right.shape
        every = torch.eye(symbols, dtype=right.dtype, device=right.device)[:, None].expand(-1, batch, -1)
        return (distribution.log_prob(every).exp().T * right).sum(-1)


def _right(table: Tensor, position: Tensor) -> Tensor:
    """[B, n], of a table of n symbols: 1 where the image of highest score upon it, the first of equals, is the target."""
    return (table.detach().argmax(1) == position[:, None]).to(table.dtype)


def _check_games(images: Tensor, position: Tensor) -> None:
    if images.dim() != 3:
        raise ValueError(f"images must be [B, n, features], not {list(images.shape)}")
    if position.shape != images.shape[:1] or position.is_floating_point() or position.dtype == torch.bool:
        raise ValueError(
            f"position must be [{len(images)}] ints, the target's place among the images, not {list(position.shape)} "
            f"{position.dtype}"
        )
    if position.device.type == "cpu" and len(position) and not cannot_branch(position):
        lowest, highest = (int(place) for place in position.aminmax())
        if lowest < 0 or highest >= images.shape[1]:
            raise ValueError(f"position must be in 0..{images.shape[1] - 1}, not {lowest}..{highest}")
