"""Gibbs distributions p(z) = exp(<a_z, t> - log Z) over the structures of a polytope: exact, and all in closed form.

Each has `sample`, `log_prob`, `entropy` and `marginals` as `base.GibbsDistribution` says, computed in float32 for float16 and
bfloat16 and returned in the dtype of the scores. Scores of `-inf` give their structures probability zero; NaN, +inf, scores of
another width and rows that allow no structure are ValueErrors. Monte Carlo estimators sample from them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, softplus

from .base import GibbsDistribution
from .checks import cannot_branch, check_finite, check_sample_shape, check_width

# Entries that are compared at a time, of structures with listed ones: a byte each.
COMPARED = 2**24


class BernoulliGibbs:
    """Independent bits: p(z_i = 1) = sigmoid(t_i). Everything O(D)."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.dtype = _precise(scores), scores.dtype

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D] bits, without gradient."""
        probs = self.scores.detach().sigmoid()
        return (_uniform(probs, sample_shape, generator) < probs).to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """sum_i log sigmoid(+-t_i), nats."""
        check_width(structures, self.scores.shape[-1])
        forbidden = self.scores.isneginf()
        scores = torch.where(forbidden, 0, self.scores)
        # A forbidden bit contributes log 1 when off.
        inside = (structures.to(scores) * scores - torch.where(forbidden, 0, softplus(scores))).sum(-1)
        bits = ((structures == 0) | (structures == 1)).all(-1)
        allowed = ~((structures != 0) & forbidden).any(-1)
        return torch.where(bits & allowed, inside, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """sum_i H(sigmoid(t_i)) = sum_i softplus(t_i) - t_i sigmoid(t_i), nats."""
        return binary_entropy(self.scores).sum(-1).to(self.dtype)

    def marginals(self) -> Tensor:
        """sigmoid(t), [*B, D]."""
        return self.scores.sigmoid().to(self.dtype)


class CategoricalGibbs:
    """A softmax over one-hot vectors; everything O(D), a sample and a log-probability included."""

    def __init__(self, scores: Tensor) -> None:
        self.dtype = scores.dtype
        scores = _precise(scores)
        check_some_allowed(scores.detach().amax(-1))
        self.log_probs = scores.log_softmax(-1)  # [*B, D]

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D] one-hot vectors, by inverting the cumulative sums."""
        cumulative = self.log_probs.detach().exp().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        uniform = _uniform(cumulative[..., :1], sample_shape, generator)
        # The number of cumulative sums at or below u is the index of the first above it.
        chosen = (cumulative <= uniform).sum(-1)
        return one_hot(chosen, cumulative.shape[-1]).to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """The category's log-probability, nats."""
        check_width(structures, self.log_probs.shape[-1])
        on = structures == 1
        vertex = (on | (structures == 0)).all(-1) & (on.sum(-1) == 1)
        # Not structures * log_probs: 0 * -inf is NaN.
        picked = torch.where(on, self.log_probs, 0).sum(-1)
        return torch.where(vertex, picked, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """-sum p log p, nats."""
        return _entropy(self.log_probs).to(self.dtype)

    def marginals(self) -> Tensor:
        """softmax(t), [*B, D]."""
        return self.log_probs.exp().to(self.dtype)


class EnumeratedGibbs:
    """A softmax over listed structures; everything O(V D)."""

    def __init__(self, scores: Tensor, vertices: Tensor) -> None:
        self.dtype = scores.dtype
        scores = _precise(scores)
        self.vertices = vertices.to(scores)  # [V, D]
        # In float64, which autocast leaves alone.
        table = self.vertices.double()
        forbidden = (scores.isneginf().double() @ (table != 0).double().T) > 0
        logits = (torch.where(scores.isneginf(), 0, scores).double() @ table.T).to(scores)
        logits = logits.masked_fill(forbidden, -torch.inf)
        check_some_allowed(logits.detach().amax(-1))
        self.log_probs = logits.log_softmax(-1)  # [*B, V]

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D] structures, by inverting the cumulative sums."""
        cumulative = self.log_probs.detach().exp().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        uniform = _uniform(cumulative[..., :1], sample_shape, generator)
        # The number of cumulative sums at or below u is the index of the first above it.
        chosen = (cumulative <= uniform).sum(-1)
        return self.vertices[chosen].to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """The listed structure's log-probability, nats; listed is what is equal in the scores' dtype. O(V D) each."""
        check_width(structures, self.vertices.shape[-1])
        asked, table = structures.to(self.dtype)[..., None, :], self.vertices.to(self.dtype)
        at_once = max(1, COMPARED // max(1, asked.numel()))
        found = []
        for part, logs in zip(table.split(at_once), self.log_probs.split(at_once, -1), strict=True):
            found.append(torch.where((asked == part).all(-1), logs, -torch.inf).amax(-1))
        return torch.stack(found).amax(0).to(self.dtype)

    def entropy(self) -> Tensor:
        """-sum p log p, nats."""
        return _entropy(self.log_probs).to(self.dtype)

    def marginals(self) -> Tensor:
        """sum_z p(z) a_z, [*B, D]."""
        return (self.log_probs.exp().double() @ self.vertices.double()).to(self.dtype)


class CardinalityGibbs:
    """Independent bits given that at most (or exactly) `budget` of them are on.

    Dynamic program over suffixes, in log space: log Z_i(j) sums exp <z, t> over the bits i..D with j still to spend,

        Z_i(j) = Z_(i+1)(j) + exp(t_i) Z_(i+1)(j - 1),   Z_(D+1)(j) = 1  (exactly: only for j = 0).

    O(D budget) time and memory a row, D sequential steps.
    """

    def __init__(self, scores: Tensor, budget: int, exactly: bool) -> None:
        self.budget, self.exactly, self.dtype = budget, exactly, scores.dtype
        self.scores = scores = _precise(scores)
        # A finite stand-in for -inf: the sum of two exp(-inf) has no gradient. Its exponential is 0 in every dtype.
        self.floor = torch.finfo(scores.dtype).min / 4
        allowed = scores.clamp(min=self.floor)
        last = scores.new_zeros(*scores.shape[:-1], budget + 1)
        if exactly:
            last[..., 1:] = self.floor
        suffixes = [last]
        for i in reversed(range(scores.shape[-1])):
            # Not logaddexp: its second derivative is NaN where one term is negligible.
            terms = torch.stack([suffixes[-1], allowed[..., i, None] + self._spent(suffixes[-1])])
            suffixes.append(terms.logsumexp(0))
        suffixes.reverse()
        check_some_allowed(torch.where(suffixes[0] > self.floor / 2, suffixes[0], -torch.inf).detach()[..., budget])
        self.suffixes = suffixes  # D + 1 tensors [*B, budget + 1]
        self.allowed = allowed

    def _spent(self, table: Tensor) -> Tensor:
        """The table with one unit of budget used: entry j is the old entry j - 1."""
        return torch.cat([torch.full_like(table[..., :1], self.floor), table[..., :-1]], -1).clamp(min=self.floor)

    def _log_odds(self, i: int) -> Tensor:
        """log p(z_i = 1)/p(z_i = 0) for each budget left, [*B, budget + 1]."""
        return self.allowed[..., i, None] + self._spent(self.suffixes[i + 1]) - self.suffixes[i + 1]

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D] bits, one after the other, each given the budget left."""
        uniform = _uniform(self.scores, sample_shape, generator)
        left = torch.full_like(uniform[..., :1], self.budget, dtype=torch.int64)
        bits = torch.zeros_like(uniform)
        for i in range(self.scores.shape[-1]):
            chance = self._log_odds(i).detach().sigmoid().expand(*left.shape[:-1], -1).gather(-1, left)
            bits[..., i] = (uniform[..., i, None] < chance).to(bits).squeeze(-1)
            left = left - bits[..., i, None].to(torch.int64)
        return bits.to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """<z, t> - log Z, nats."""
        check_width(structures, self.scores.shape[-1])
        scores = torch.where(self.scores.isneginf(), 0, self.scores)
        inside = (structures.to(scores) * scores).sum(-1) - self.suffixes[0][..., self.budget]
        size = structures.to(scores).sum(-1)  # half precision would round it
        fits = size == self.budget if self.exactly else size <= self.budget
        bits = ((structures == 0) | (structures == 1)).all(-1)
        allowed = ~((structures != 0) & self.scores.isneginf()).any(-1)
        return torch.where(fits & bits & allowed, inside, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """By the chain rule along the same program, nats: H_i(j) = H(p) + p H_(i+1)(j - 1) + (1 - p) H_(i+1)(j)."""
        entropy = torch.zeros_like(self.suffixes[-1])
        for i in reversed(range(self.scores.shape[-1])):
            odds = self._log_odds(i)
            chance = odds.sigmoid()
            spent = torch.cat([torch.zeros_like(entropy[..., :1]), entropy[..., :-1]], -1)
            entropy = binary_entropy(odds) + chance * spent + (1 - chance) * entropy
        return entropy[..., self.budget].to(self.dtype)

    def marginals(self) -> Tensor:
        """p(z_i = 1) = sum_j p(j left before i) p(z_i = 1 given that), [*B, D]; from the first bit to the last."""
        left = torch.zeros_like(self.suffixes[0])
        left[..., self.budget] = 1
        means = []
        for i in range(self.scores.shape[-1]):
            on = left * self._log_odds(i).sigmoid()
            means.append(on.sum(-1))
            left = left - on + torch.cat([on[..., 1:], torch.zeros_like(on[..., :1])], -1)
        return torch.stack(means, -1).to(self.dtype)


class ProductGibbs:
    """Independent Gibbs distributions on groups of blocks of coordinates.

    Args:
        dim: D.
        groups: distributions of batch shape [*B, g], each for g blocks.
        split, join: from [..., D] to each group's blocks [..., g, d], and back.
    """

    def __init__(
        self,
        dim: int,
        groups: Sequence[GibbsDistribution],
        split: Callable[[Tensor], Sequence[Tensor]],
        join: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        self.dim, self.groups, self.split, self.join = dim, tuple(groups), split, join

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Each block's own sample, [*sample_shape, *B, D]."""
        return self.join([group.sample(sample_shape, generator) for group in self.groups])

    def log_prob(self, structures: Tensor) -> Tensor:
        """The sum over blocks, nats."""
        check_width(structures, self.dim)
        blocks = self.split(structures)
        each = [group.log_prob(block).sum(-1) for group, block in zip(self.groups, blocks, strict=True)]
        return torch.stack(each).sum(0)

    def entropy(self) -> Tensor:
        """The sum over blocks, nats."""
        return torch.stack([group.entropy().sum(-1) for group in self.groups]).sum(0)

    @property
    def marginals(self) -> Callable[[], Tensor]:
        """Each block's own, [*B, D]; where every block has them."""
        own = [group.marginals for group in self.groups]
        return lambda: self.join([marginals() for marginals in own])


def binary_entropy(log_odds: Tensor) -> Tensor:
    """The entropy in nats of a bit with these log-odds; 0 at -inf and wherever exp(-|log-odds|) underflows."""
    size = -log_odds.abs()
    finite = size.clamp(min=torch.finfo(size.dtype).min / 4)
    return -logsigmoid(-finite) - finite * finite.sigmoid()


def _entropy(log_probs: Tensor) -> Tensor:
    probs = log_probs.exp()
    return -torch.where(probs > 0, probs * log_probs.clamp(min=torch.finfo(probs.dtype).min), 0).sum(-1)


def _precise(scores: Tensor) -> Tensor:
    check_finite(scores)
    # float16 and bfloat16 have too few digits for sums of exponentials, and too few uniforms to draw rare structures.
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def check_some_allowed(log_normalizer: Tensor) -> None:
    if not cannot_branch(log_normalizer) and (log_normalizer == -torch.inf).any():
        row = tuple((log_normalizer == -torch.inf).nonzero()[0].tolist())
        where = f"scores row {row[0] if len(row) == 1 else row} allows" if row else "scores allow"
        raise ValueError(
            f"gibbs: {where} no structure: every one needs a coordinate whose score is -inf; leave at least one structure "
            "allowed"
        )


def _uniform(like: Tensor, sample_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    check_sample_shape(sample_shape)
    return torch.rand(*sample_shape, *like.shape, dtype=like.dtype, device=like.device, generator=generator)
