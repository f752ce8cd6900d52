"""What a message costs, given how the receiver scores every image upon every symbol."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from .estimators import DrawnCost


class MessageCost(ABC):
    """The cost of messages in a batch of B games.

    Attributes:
        drawn: whether it draws a guess and returns `DrawnCost`, which few estimators take.
    """

    drawn: bool = False

    @abstractmethod
    def __call__(self, table: Tensor, position: Tensor, messages: Tensor, row: Tensor) -> Tensor | DrawnCost:
        """The costs [n].

        Args:
            table: [B, images, symbols] float, the images' scores upon every symbol.
            position: [B] int64, of the target.
            messages: [n, symbols] float, one-hot or relaxed.
            row: [n] int64, the game of each message.
        """


class NegativeLogLikelihood(MessageCost):
    """-log softmax_i(<table[row, i], message>)[position[row]], nats.

    O(B images symbols) for all one-hot messages together; O(n images symbols) for n relaxed ones.
    """

    def __call__(self, table: Tensor, position: Tensor, messages: Tensor, row: Tensor) -> Tensor:
        symbol = _symbol(messages)
        if symbol is None:
            logits = (table[row] @ messages[..., None])[..., 0]
            return F.cross_entropy(logits, position[row], reduction="none")
        at_target = table.gather(1, position[:, None, None].expand(-1, 1, table.shape[-1]))[:, 0]
        return (table.logsumexp(1) - at_target)[row, symbol]


class SampledSuccess(MessageCost):
    """The 0/1 loss of a guess that the receiver draws: -1 where choice ~ p(choice | z, images) is the target, 0 elsewhere.

    As `loss_type acc` of the published code (Correia et al. 2020, section 5.2), where the receiver's entropy upon the message
    drawn is part of the objective; its gradient goes to the receiver alone. One-hot messages only.

    Args:
        entropy_coefficient: weight of that entropy, per nat, at least 0.
    """

    drawn = True

    def __init__(self, entropy_coefficient: float = 0.0) -> None:
        if not entropy_coefficient >= 0:
            raise ValueError(f"SampledSuccess: entropy_coefficient must be at least 0, not {entropy_coefficient}")
        self.entropy_coefficient = entropy_coefficient

    def __call__(self, table: Tensor, position: Tensor, messages: Tensor, row: Tensor) -> DrawnCost:
        symbol = _symbol(messages)
        if symbol is None:
            raise ValueError("SampledSuccess: messages must be one-hot, but are relaxed: use an estimator that draws symbols")
        log_probs = table.transpose(1, 2)[row, symbol].log_softmax(-1)  # [n, images]
        choice = torch.multinomial(log_probs.detach().exp(), 1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return DrawnCost(
            value=-(choice[:, 0] == position[row]).to(table.dtype),
            log_prob=log_probs.gather(1, choice)[:, 0],
            penalty=-self.entropy_coefficient * entropy,
        )


def _symbol(messages: Tensor) -> Tensor | None:
    """The symbol [n] of one-hot messages; None where a message is relaxed, or its gradient is wanted.

    One product with (1, k // 256, k % 256) for the k-th symbol gives the sum of a message, and the symbol if it is one-hot:
    several times faster than argmax, which counts where thousands of symbols are tried. Numbers up to 256 are exact in all
    that a product may be rounded to: bfloat16 under autocast, TF32 on a GPU. So are those of 65,536 symbols.
    """
    if messages.requires_grad:
        return None
    places = torch.arange(messages.shape[-1], device=messages.device)
    digits = torch.stack([torch.ones_like(places), places // 256, places % 256], -1).to(messages.dtype)
    total, high, low = (messages @ digits).unbind(-1)
    symbol = (256 * high.round().long() + low.round().long()).clamp(0, messages.shape[-1] - 1)
    one_hot = total.eq(1) & messages.gather(-1, symbol[:, None])[:, 0].eq(1)
    return symbol if bool(one_hot.all()) else None
