"""Rankings: all orders of given weights."""

import math
from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor

from .base import MAX_ENUMERATED, Halfspaces, Polytope
from .checks import as_numbers, cannot_branch, check_dimension, check_finite
from .placement import lasting, placed

# Relative to the largest weight: above rounding, far below the accuracy promised for a mean.
_NOISE = 4e-15


class Permutahedron(Polytope):
    """conv{all permutations of a weight vector w in R^n}; w = (n, ..., 1) gives rankings, item i's rank as coordinate i.

    The projection is isotonic regression (Negrinho and Martins 2014; Blondel et al. 2020): with s = scores sorted down,
    mu sorted is s - argmin_{v_1 >= ... >= v_n} ||v - (s - w)||^2.

    Args:
        weights: w, numbers in any order.

    >>> Permutahedron([3, 2, 1]).maximize(torch.tensor([[0.1, 5.0, 2.0]]))
    tensor([[1., 3., 2.]])
    """

    @lasting
    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        try:
            given = as_numbers(weights)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Permutahedron needs one or more finite numbers [n], not {weights!r}") from error
        given = given if given.is_complex() else given.double()
        if given.dim() != 1 or len(given) == 0 or given.is_complex() or not given.isfinite().all():
            raise ValueError(f"Permutahedron needs one or more finite numbers [n], not {weights!r}")
        self.weights = given.sort(descending=True).values
        self.dim = len(given)

    def __repr__(self) -> str:
        return f"Permutahedron({self.weights.tolist()})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The largest weight on the largest score, and so on; of equal scores the first has the larger. O(n log n)."""
        check_dimension(scores, self)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        weights = placed(self.weights, scores.device, scores.dtype)
        return torch.zeros_like(scores).scatter_(-1, order, weights.expand(scores.shape))

    def project(self, scores: Tensor) -> Tensor:
        """By pooling adjacent violators, all rows at once: O(n) a round, at most n rounds. Differentiable.

        Isotonic regression takes means over blocks; only which items share a block is found without gradient. An item whose
        score is `-inf` has weight 0, and the others share what is left.

        Raises:
            ValueError: NaN or +inf scores; more `-inf` in a row than the smallest weights have zeros.
        """
        check_dimension(scores, self)
        check_finite(scores)
        flat = scores.reshape(-1, self.dim).double()
        ordered, order = flat.sort(dim=-1, descending=True, stable=True)
        weights, forbidden = placed(self.weights, ordered.device, ordered.dtype), ordered.isneginf()
        if not cannot_branch(ordered) and bool((forbidden & (weights != 0)).any()):
            row = int((forbidden & (weights != 0)).any(-1).nonzero()[0])
            raise ValueError(
                f"scores row {row} has more entries -inf than {self!r} has weights 0, its smallest; leave at least one order"
            )
        # Only the differences within blocks count, and only those below the weights' spread can be within one: taken by
        # themselves and cut above that, they have all their digits, however large the scores. Forbidden items come last.
        spread = 2 * (weights[0] - weights[-1]) + 1
        with torch.no_grad():
            steps = torch.where(forbidden[:, 1:], spread, (ordered[:, :-1] - ordered[:, 1:]).clamp(max=spread))
            block = _blocks(-weights - torch.nn.functional.pad(steps.cumsum(-1), (1, 0)))
            first = torch.searchsorted(block, block)
        low = torch.where(forbidden, 0, ordered)
        inside = low - low.detach().gather(-1, first)
        projected = torch.where(forbidden, 0, inside + _means(weights - inside, block))
        return torch.zeros_like(flat).scatter(-1, order, projected).reshape(scores.shape).to(scores.dtype)

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Structures with this mean, [B, n, n] and [B, n]: at most n, as in Carathéodory's theorem.

        From the structure that is sorted as the mean is, go through the mean until a sum of some k items reaches the sum of the
        k largest weights: what is reached lies on a face that the mean was not on, and is decomposed next. O(n^2 log n) a
        row for each of a few attempts to find those items.
        """
        left = self.project(mean.reshape(-1, self.dim).double())  # rounded in float32 it may lie outside
        atoms, probs = left.new_zeros(len(left), self.dim, self.dim), left.new_zeros(len(left), self.dim)
        mass = left.new_ones(len(left))
        noise = _NOISE * self.dim * max(1.0, float(self.weights.abs().amax()))
        for step in range(self.dim):
            vertex = self.maximize(left)
            # Extrapolating multiplies what rounding did by 1 / mass; in the mean it counts for `noise` all the same.
            slack = noise / mass.clamp(min=noise)
            last = ((left - vertex).abs().amax(-1) <= slack) | (step == self.dim - 1)
            reach = self._reach(left, torch.where(last[:, None], 0, left - vertex), slack)
            last = last | (reach == 0)
            share = torch.where(last, 1, reach / (1 + reach))
            atoms[:, step], probs[:, step] = vertex, mass * share
            left = left + torch.where(last, 0, reach)[:, None] * (left - vertex)
            mass = mass * (1 - share)
        return atoms.reshape(*mean.shape[:-1], *atoms.shape[1:]).to(mean.dtype), probs.reshape(mean.shape).to(mean.dtype)

    def halfspaces(self) -> Halfspaces:
        """Sums of k items are at most the sum of the k largest weights (Rado 1952): 2^n - 2 rows, for n up to 12.

        Raises:
            ValueError: n is larger.
        """
        if self.dim > 12:
            raise ValueError(f"{self!r} has 2^{self.dim} - 2 halfspaces, too many to list (limit n = 12)")
        totals = self.weights.cumsum(0)
        subsets = [chosen for k in range(1, self.dim) for chosen in combinations(range(self.dim), k)]
        a_ub = torch.zeros(len(subsets), self.dim, dtype=torch.float64)
        for line, chosen in enumerate(subsets):
            a_ub[line, list(chosen)] = 1
        b_ub = torch.tensor([float(totals[len(chosen) - 1]) for chosen in subsets], dtype=torch.float64)
        return Halfspaces(a_ub, b_ub, torch.ones(1, self.dim, dtype=torch.float64), totals[-1:])

    def vertices(self) -> Tensor:
        """All different permutations of the weights.

        Raises:
            ValueError: there are more than `MAX_ENUMERATED`.
        """
        if math.factorial(self.dim) > MAX_ENUMERATED:
            raise ValueError(f"{self!r} has {self.dim}! structures, too many to enumerate (limit {MAX_ENUMERATED})")
        return torch.tensor(sorted(set(permutations(self.weights.tolist())), reverse=True), dtype=torch.float64)

    def _reach(self, start: Tensor, direction: Tensor, slack: Tensor) -> Tensor:
        """The largest r with start + r direction in the polytope, up to a slack, [B]; 0 where the direction is 0.

        Dinkelbach's method: from above, the most violated sum of k items says how far one may go at most.
        """
        totals = placed(self.weights, start.device, start.dtype).cumsum(0)
        reach = (direction.abs().amax(-1) > 0).to(start) / _NOISE
        while True:
            order = (start + reach[:, None] * direction).sort(dim=-1, descending=True, stable=True).indices
            base, slope = start.gather(-1, order).cumsum(-1), direction.gather(-1, order).cumsum(-1)
            excess, worst = (base + reach[:, None] * slope - totals).max(-1, keepdim=True)
            violated = (excess[:, 0] > slack * (1 + reach)) & (slope.gather(-1, worst)[:, 0] > 0)
            room = (totals[worst] - base.gather(-1, worst))[:, 0].clamp(min=0)
            bound = room / torch.where(violated, slope.gather(-1, worst)[:, 0], 1)
            # What shortens by no more than rounding has converged.
            shorter = violated & (bound < reach * (1 - _NOISE))
            if not bool(shorter.any()):
                return reach
            reach = torch.where(shorter, bound, reach)


def _blocks(values: Tensor) -> Tensor:
    """Where argmin_{v_1 >= ... >= v_n} ||v - values||^2 is constant: the number of each item's block, [B, n] int64.

    Pool adjacent violators, all that there are at a time.
    """
    begins = torch.ones_like(values, dtype=torch.bool)
    while True:
        block = begins.cumsum(-1) - 1
        mean = _means(values, block)
        # A block whose mean exceeds the one's before it joins that one.
        joins = begins & (mean > torch.cat([mean[..., :1], mean[..., :-1]], -1))
        if not bool(joins.any()):
            return block
        begins = begins & ~joins


def _means(values: Tensor, block: Tensor) -> Tensor:
    """The mean of each item's block, [B, n] and [B, n] -> [B, n]."""
    count = torch.zeros_like(values).scatter_add(-1, block, torch.ones_like(values))
    total = torch.zeros_like(values).scatter_add(-1, block, values)
    return (total / count.clamp(min=1)).gather(-1, block)
