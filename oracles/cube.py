"""The Bernoulli cube: all bit vectors."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .base import MAX_ENUMERATED, Flips, Halfspaces, Polytope
from .checks import cannot_branch, check_count, check_dimension
from .flip_sets import flip_sets
from .gibbs import BernoulliGibbs
from .selection import first_few

# Totals below are ties: their 40 bits would not be normal numbers.
LEAST_TOTAL = 1e-270


@dataclass(frozen=True)
class BernoulliCube(Polytope):
    """conv{0, 1}^D = [0, 1]^D: `dim` independent bits. A bit of score 0 is off (paper eq. 6 has it on)."""

    takes_forbidden = True
    dim: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_count("BernoulliCube: dim", self.dim, 1))

    def maximize(self, scores: Tensor) -> Tensor:
        """Every bit of positive score; O(D)."""
        check_dimension(scores, self)
        return scores.detach().sign().relu_()  # no bools: those take long to convert on a CPU

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best bit vectors: `flips`, written down."""
        found = self.flips(scores, k)
        count = found.flips.shape[-2]
        vertices = found.best[..., None, :].repeat_interleave(k, dim=-2)
        order = found.order[..., None, :].expand_as(found.flips)
        vertices[..., :count, :].scatter_(-1, order, (vertices[..., :count, :].gather(-1, order) - found.flips).abs())
        valid = scores.new_zeros(*scores.shape[:-1], k, dtype=torch.bool)
        valid[..., :count] = found.valid
        if cannot_branch(valid) or not valid.all():
            vertices *= valid[..., None]
        return vertices, valid

    def flips(self, scores: Tensor, k: int) -> Flips:
        """The k best bit vectors, from a table of the flips that can matter.

        A structure is the best one with a set F of bits flipped, at a cost sum_{i in F} |t_i|. Which sets can be among the
        k best does not depend on the scores, once the bits are numbered by increasing |t|: `flip_sets` are tabulated once for
        each k, and the batch is one matrix product and one sort.

        Cost: O(B (D log D + m n)) for the n sets of the table over m = min(k - 1, D) bits; n is 17 at k = 10 and 474
        at k = 100. On the CPU O(B (D + m n)) where m is at most D / 3 and the m + 1 smallest |t| differ.
        """
        width = min(k - 1, self.dim)
        table = torch.from_numpy(_flip_table(k, width)).to(scores.device)
        cost, order = first_few(scores.abs(), width)
        cost = cost.double()
        blocked = None
        if cannot_branch(cost) or (cost == torch.inf).any():
            blocked = (cost.isinf().double() @ table.T) > 0
            cost = torch.where(cost.isinf(), 0, cost)
        # Totals that are equal on paper differ by rounding; with 40 bits of each they tie exactly, and the stable sort breaks
        # the tie by the table's order.
        totals = cost @ table.T
        above = totals.clamp(min=LEAST_TOTAL)
        grid = above / torch.frexp(above).mantissa * 2.0**-40  # a power of two, exactly
        totals = (totals / grid).round() * grid
        if blocked is not None:
            totals = torch.where(blocked, torch.inf, totals)
        totals, chosen = totals.sort(dim=-1, stable=True)
        count = min(k, table.shape[0])
        flips = table.to(scores.dtype)[chosen[..., :count]]  # [*B, count, width]
        return Flips(self.maximize(scores), order, flips, totals[..., :count] < torch.inf)

    def project(self, scores: Tensor) -> Tensor:
        """clip(scores, 0, 1): paper eq. 4 on {0, 1}^D; O(D)."""
        check_dimension(scores, self)
        return scores.clamp(0, 1)

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The chain of nested sets: structure s has the s largest coordinates on; O(D^2) for the output. See `nested`."""
        order, probs = self.nested(mean)
        rank = order.argsort(dim=-1)  # of each coordinate in the sorted mean
        size = torch.arange(self.dim + 1, device=mean.device)
        return (rank[..., None, :] < size[:, None]).to(mean.dtype), probs

    def nested(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """p_s = m_(s) - m_(s+1) for the sorted mean 1 = m_(0) >= m_(1) >= ... >= m_(D) >= m_(D+1) = 0; O(D log D)."""
        ordered, order = mean.clamp(0, 1).sort(dim=-1, descending=True, stable=True)
        edge = torch.ones_like(ordered[..., :1])
        levels = torch.cat([edge, ordered, torch.zeros_like(edge)], -1)
        return order, levels[..., :-1] - levels[..., 1:]

    def gibbs(self, scores: Tensor) -> BernoulliGibbs:
        """Independent bits, p(z_i = 1) = sigmoid(t_i)."""
        check_dimension(scores, self)
        return BernoulliGibbs(scores)

    def halfspaces(self) -> Halfspaces:
        """0 <= x <= 1."""
        identity = torch.eye(self.dim, dtype=torch.float64)
        return Halfspaces(
            a_ub=torch.cat([identity, -identity]),
            b_ub=torch.cat([torch.ones(self.dim), torch.zeros(self.dim)]).double(),
            a_eq=torch.zeros(0, self.dim, dtype=torch.float64),
            b_eq=torch.zeros(0, dtype=torch.float64),
        )

    def vertices(self) -> Tensor:
        """All 2^D bit vectors, [2^D, D] float64, in binary counting order; D <= 20."""
        return bit_vectors(self.dim)


def bit_vectors(dim: int) -> Tensor:
    """All of {0, 1}^dim, [2^dim, dim] float64, the last bit fastest."""
    if 2**dim > MAX_ENUMERATED:
        raise ValueError(
            f"2^{dim} structures are too many to enumerate (limit {MAX_ENUMERATED}); use topk or sparsemap, which do not"
        )
    codes = torch.arange(2**dim)[:, None]
    return (codes >> torch.arange(dim - 1, -1, -1)).bitwise_and(1).double()


@lru_cache(maxsize=64)
def _flip_table(k: int, width: int) -> np.ndarray:
    """`flip_sets` as 0/1 rows [n, width]. An array: a tensor made inside of a `torch.func` transform is of no use after it."""
    found = flip_sets(k, width)
    table = np.zeros((len(found), width))
    for row, flips in enumerate(found):
        table[row, [bit - 1 for bit in flips]] = 1
    return table
