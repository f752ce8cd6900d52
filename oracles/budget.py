"""Bit vectors with a limit on how many bits are on, or with exactly that many."""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..kernels.sorting import kth_largest, order_of
from .base import MAX_ENUMERATED, Halfspaces, Polytope
from .checks import cannot_branch, check_count, check_dimension
from .gibbs import CardinalityGibbs
from .subsets import best_subsets
from .systematic import ONE, fraction, hits, nearest_integer


@dataclass(frozen=True)
class Budget(Polytope):
    """conv{z in {0,1}^D : sum z <= budget}, or `= budget` with `exactly=True` (the hypersimplex; k-subsets).

    The budget polytope of the paper's section 5.3 and appendix C. Of tied scores the lower index is on; a bit of score 0
    is off unless `exactly` needs it.

    >>> Budget(4, 2).maximize(torch.tensor([[0.5, 2.0, 1.0, -1.0]]))
    tensor([[0., 1., 1., 0.]])
    """

    takes_forbidden = True
    dim: int
    budget: int
    exactly: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_count("Budget: dim", self.dim, 1))
        if self.exactly not in (True, False):
            raise ValueError(f"Budget(dim={self.dim}): exactly must be True or False, not {self.exactly!r}")
        object.__setattr__(self, "exactly", bool(self.exactly))
        object.__setattr__(self, "budget", check_count(f"Budget(dim={self.dim}): budget", self.budget, 0, self.dim))

    def maximize(self, scores: Tensor) -> Tensor:
        """The `budget` best bits, less those that do not pay; O(D log D) (paper appendix C).

        On the CPU O(D), by selection.
        """
        check_dimension(scores, self)
        if self.budget and scores.device.type == "cpu" and not cannot_branch(scores):
            last = kth_largest(scores, self.budget)
            chosen = scores >= last if self.exactly else (scores >= last) & (scores > 0)
            # Of those that tie at the last place, the first; in other rows all of the chosen stay.
            if (chosen.sum(-1) > self.budget).any():
                above = scores > last
                chosen &= above | ((scores == last).cumsum(-1) <= self.budget - above.sum(-1, keepdim=True))
            return chosen.to(scores.dtype)
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.budget]
        chosen = torch.zeros_like(scores).scatter_(-1, order, 1)
        return chosen if self.exactly else chosen * (scores > 0)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best subsets by best-first search; O(k (D + k)) a row after sorting. See `subsets.best_subsets`."""
        check_dimension(scores, self)
        smallest = self.budget if self.exactly else 0
        return best_subsets(scores, k, smallest, self.budget)

    def project(self, scores: Tensor) -> Tensor:
        """mu = clip(t - lambda, 0, 1) with sum mu <= budget (lambda >= 0, complementary) or = budget; O(D log D).

        sum clip(t - lambda, 0, 1) is piecewise linear and decreasing in lambda with breakpoints t_i and t_i - 1: sorting
        them and interpolating gives lambda. A differentiable step, lambda = (sum of the t_i strictly between + number of
        ones - budget) / (number strictly between), then carries the gradient. Where the sum binds, lambda lies in
        [m - 1, m] for the budget-th largest score m: scores are taken relative to m, which keeps their differences exact
        however large they are, and cut at m +- 2, beyond which they are ones or zeros.
        """
        check_dimension(scores, self)
        precise = scores.double()
        if self.budget == 0:
            return 0 * scores.clamp(0, 1)
        relative = (precise - kth_largest(precise, self.budget)).clamp(-2, 2)
        between, ones = self._faces(relative.detach())
        shift = torch.where(between, relative, 0).sum(-1, keepdim=True) + ones.sum(-1, keepdim=True) - self.budget
        shift = shift / between.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.where(between, (relative - shift).clamp(0, 1), ones.double())
        if not self.exactly:
            free = precise.clamp(0, 1)
            binds = free.detach().sum(-1, keepdim=True) > self.budget
            mean = torch.where(binds, mean, free)
        return mean.to(scores.dtype)

    def _faces(self, relative: Tensor) -> tuple[Tensor, Tensor]:
        """Which coordinates of the projection on sum = budget lie strictly between 0 and 1, and which are 1."""
        points = torch.cat([relative - 1, relative], -1)
        order = order_of(points)
        points = points.gather(-1, order)
        # Just above a breakpoint the sum falls with a slope of (t_i - 1 passed) - (t_i passed).
        slope = torch.where(order < self.dim, 1, -1).cumsum(-1)
        drops = (slope[..., :-1] * (points[..., 1:] - points[..., :-1])).cumsum(-1)
        total = self.dim - torch.cat([torch.zeros_like(points[..., :1]), drops], -1)  # the sum at each breakpoint
        # The last breakpoint with a sum of at least the budget; lambda lies between it and the next.
        left = ((total >= self.budget).sum(-1, keepdim=True) - 1).clamp(0, 2 * self.dim - 2)
        base, excess = points.gather(-1, left), total.gather(-1, left) - self.budget
        mean = relative - (base + excess / slope.gather(-1, left).clamp(min=1))
        return (mean > 0) & (mean < 1), mean >= 1

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Systematic sampling, all of it (Madow 1949): at most D + 1 subsets, each of floor or ceil(sum mean) bits; O(D^2)."""
        order, ends = self.chained(mean)
        starts = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :-1]], -1)
        cuts = fraction(ends).sort(dim=-1).values
        cuts = torch.cat([torch.zeros_like(cuts[..., :1]), cuts, torch.full_like(cuts[..., :1], ONE)], -1)
        probs = (cuts[..., 1:] - cuts[..., :-1]).double() / ONE
        hit = hits(starts[..., None, :], ends[..., None, :], cuts[..., :-1, None])  # [*B, D + 1, D]
        atoms = torch.zeros_like(hit).scatter_(-1, order[..., None, :].expand_as(hit), hit)
        return atoms.to(mean.dtype), probs.to(mean.dtype)

    def chained(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The coordinates by falling mean, and the sums of these; O(D log D).

        In fixed point every subset has the right size. Rounding in the mean must not cut one of another size: what is an
        integer up to the rounding of a sum of D numbers of the mean's dtype is that integer.
        """
        ordered, order = mean.double().clamp(0, 1).sort(dim=-1, descending=True, stable=True)
        ends = (ordered.cumsum(-1) * ONE).round().to(torch.int64)
        noise = max(4, round(4 * self.dim * torch.finfo(mean.dtype).eps * ONE))
        whole = nearest_integer(ends)
        ends = torch.where((ends - whole).abs() <= noise, whole, ends).clamp(max=self.budget * ONE)
        if self.exactly:
            ends[..., -1] = self.budget * ONE
        return order, ends

    def gibbs(self, scores: Tensor) -> CardinalityGibbs:
        """Bits conditioned on their number, by a dynamic program in log space; O(D budget)."""
        check_dimension(scores, self)
        return CardinalityGibbs(scores, self.budget, self.exactly)

    def halfspaces(self) -> Halfspaces:
        """0 <= x <= 1 and sum x <= budget (or = budget)."""
        identity = torch.eye(self.dim, dtype=torch.float64)
        total = torch.ones(1, self.dim, dtype=torch.float64)
        limit = torch.tensor([self.budget], dtype=torch.float64)
        box = torch.cat([identity, -identity])
        bounds = torch.cat([torch.ones(self.dim), torch.zeros(self.dim)]).double()
        if self.exactly:
            return Halfspaces(a_ub=box, b_ub=bounds, a_eq=total, b_eq=limit)
        return Halfspaces(torch.cat([box, total]), torch.cat([bounds, limit]), total[:0], limit[:0])

    def vertices(self) -> Tensor:
        """Every subset within the budget, [V, D] float64, smaller ones first."""
        sizes = range(self.budget if self.exactly else 0, self.budget + 1)
        count = sum(math.comb(self.dim, size) for size in sizes)
        if count > MAX_ENUMERATED:
            raise ValueError(
                f"{self!r} has {count} structures, too many to enumerate (limit {MAX_ENUMERATED}); "
                f"use topk or sparsemap, which do not"
            )
        subsets = [subset for size in sizes for subset in combinations(range(self.dim), size)]
        listed = torch.zeros(count, self.dim, dtype=torch.float64)
        for row, subset in enumerate(subsets):
            listed[row, list(subset)] = 1
        return listed
