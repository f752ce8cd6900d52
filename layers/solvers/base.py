"""What a solver is: it finds the support of the projection on a polytope, and certifies it. No gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...kernels import compiled, in_triton
from ...oracles import Parts, Polytope, placed
from ...oracles.checks import cannot_branch, check_structures, checked_maximize
from ...oracles.placement import traced
from ..stats import SolverStats, TopKStats


@dataclass(frozen=True)
class Support:
    """The support that a solver found, padded.

    Attributes:
        atoms: [B, S, D] float64, the used structures of a row affinely independent.
        probs: [B, S] float64 >= 0, each row summing to 1; 0 marks an unused slot. The weights are optimal on the atoms
            unless the row is not converged.
        stats: rows [B].
        sensitivity: [B, S, S] float64, the weights' derivative in their slopes, dp = sensitivity A'dt (symmetric, 0 on unused
            slots), or None where the solver has not kept it. With it goes the promise that the weights are optimal to the last
            digits, so that `refit` need not compute them again.
    """

    atoms: Tensor
    probs: Tensor
    stats: SolverStats
    sensitivity: Tensor | None = None


@dataclass(frozen=True)
class NestedSupport:
    """A support of nested structures: structure s, for s = 0 ... D, has the s coordinates order[:, :s] on.

    Attributes:
        order: [B, D] int64.
        probs: [B, D + 1] float64, as in `Support`.
        stats: rows [B].
    """

    order: Tensor
    probs: Tensor
    stats: SolverStats


@dataclass(frozen=True)
class ChainedSupport:
    """A support by systematic sampling (`SupportsChained`) whose structures span the face of the solution.

    Attributes:
        order, ends: [B, D] int64, the intervals along the line.
        between: [B, D] bool, those along the line whose mean is strictly between 0 and 1.
        binding: [B] bool, whether the sum of the mean is held fixed.
        cuts: [B, D + 1] int64, where the structures begin, in increasing order and fixed point.
        interval: [B, D + 2] int64, whose end each of these and the last one's end is, along the line and counted from 1; 0 for
            what does not move.
        probs: [B, D + 1] float64, as in `Support`.
        stats: rows [B].
    """

    order: Tensor
    ends: Tensor
    between: Tensor
    binding: Tensor
    cuts: Tensor
    interval: Tensor
    probs: Tensor
    stats: SolverStats


class Jacobian(Protocol):
    """How the weights of packed atoms depend on the scores while the support lasts: dp = J dt."""

    def push(self, change: Tensor) -> Tensor:
        """J dt: [B, D] float64 -> [N] float64."""
        ...

    def pull(self, gradient: Tensor) -> Tensor:
        """J' g: [N] float64 -> [B, D] float64."""
        ...


FoundBy = TypeVar("FoundBy", SolverStats, TopKStats)


@dataclass(frozen=True)
class PackedSupport(Generic[FoundBy]):
    """The support that a solver found, packed, with all that there is to know of its weights.

    Attributes:
        atoms: [N, D], the used structures, in the dtype that was asked for.
        probs: [N] float64, positive, optimal on the atoms to the last digits.
        row: [N] int64, sorted: whose they are.
        first: [B + 1] int64: where those of each row begin.
        stats: rows [B].
        jacobian: of the weights, that of the KKT system (paper eq. 17).
    """

    atoms: Tensor
    probs: Tensor
    row: Tensor
    first: Tensor
    stats: FoundBy
    jacobian: Jacobian


def used_first(atoms: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Atoms [B, S, D] and probs [B, S] with each row's used slots first, and without those that no row uses: S only shrinks."""
    row, slot = used_slots(probs)
    return atoms[row, slot], probs[row, slot]


def used_slots(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (row [B, 1], slot [B, S']) of probs [B, S], each row's used slots first; S' is how many a row uses at most.

    A host synchronisation.
    """
    used = probs > 0
    order = (~used).to(torch.int8).argsort(dim=-1, stable=True)
    row = torch.arange(len(probs), device=probs.device)[:, None]
    return row, order[:, : max(1, int(used.sum(-1).amax())) if len(used) else 1]


class FindsNested(Protocol):
    """Solvers that can leave nested structures unwritten."""

    def solve_nested(self, scores: Tensor, polytope: Polytope) -> NestedSupport:
        """As `Solver.solve`, for a polytope that has `nested`."""
        ...


class FindsChained(Protocol):
    """Solvers that can leave structures unwritten which follow from where intervals end."""

    def solve_chained(self, scores: Tensor, polytope: Polytope) -> ChainedSupport | None:
        """As `Solver.solve`, for a polytope that has `chained`; None where only `solve` can. Data are looked at."""
        ...


class FindsPacked(Protocol):
    """Solvers that may leave the support packed."""

    def solve_packed(
        self, scores: Tensor, polytope: Polytope, dtype: torch.dtype
    ) -> PackedSupport[SolverStats] | Support | None:
        """As `Solver.solve`, with atoms in `dtype` if packed; None where only `solve` can. Data are looked at."""
        ...


class Solver(ABC):
    """Finds the support of argmax_{mu in conv(polytope)} <mu, t> - 1/2 ||mu_R||^2, R the coordinates that are regularised.

    Where that is all of them, it is the projection argmin ||mu - t||^2.
    """

    advice: ClassVar[str] = "raise max_iter or tol"  # what to do where it does not converge

    @abstractmethod
    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """Solves B independent problems, under `no_grad`.

        Args:
            scores: [B, D] float64, finite or `-inf` (that coordinate is 0 in every structure).
            polytope: with `dim` D.
        """


# Residuals are rounded to multiples of 2^-40 (about 1e-12) of the row's scale before the oracle sees them: far above
# their rounding noise (about 1e-15), far below the accuracy that is promised for the mean (1e-8).
GRID_EXPONENT = -40
# Relative to a large score the noise is larger: keep 48 of float64's 53 bits.
GRID_BITS = 48
LEAST_EXPONENT = -1000  # and so the grid is never 0
# The tie-break, in units of the grid: 1e-9 at scale 1. Large against the grid, so that rounding never decides.
TIE_BREAK = 2.0**10


class BatchOracle(Protocol):
    """What a solver asks: a structure for each row's residual."""

    @property
    def target(self) -> Tensor:
        """[B, D] float64, the points to project, finite."""
        ...

    @property
    def parts(self) -> Parts | None:
        """Which coordinates are regularised; None for all."""
        ...

    def __call__(self, residual: Tensor, exact: Tensor) -> Tensor:
        """A structure that maximises each row of the residual: [B, D], [B] bool -> [B, D].

        Rows that are not `exact` are maximised up to the tie-break, about 1e-9: see `Ties`.
        """
        ...

    def residual(self, mean: Tensor) -> Tensor:
        """The gradient of the objective at a mean, see `objective_gradient`: [B, D] -> [B, D]."""
        ...

    def start(self) -> Tensor:
        """The structures to start from, [B, D]: those of maximal score."""
        ...

    def rows(self, kept: Tensor) -> "BatchOracle":
        """The oracle of some rows: those of indices [n] int64, or where [B] bool is true."""
        ...


def objective_gradient(target: Tensor, mean: Tensor, parts: Parts | None) -> Tensor:
    """t - mu on the coordinates that are regularised, t on the others: [B, D]."""
    return target - (mean if parts is None else parts.penalized(mean))


def row_scale(target: Tensor) -> Tensor:
    """The scale on which the mean of each row is to be accurate, [B]: that of the scores, at most 1 (that of structures)."""
    scale = target.abs().amax(-1).clamp(max=1)
    return torch.where(scale > 0, scale, 1)


@dataclass(frozen=True)
class Ties:
    """How residuals are made safe to hand to an oracle: which structure wins a tie must not depend on rounding.

    Ties are the rule, not the exception: the residual is zero on every coordinate of the mean that is already right, and
    every atom of an optimal working set has the same score. What is left of a tie in floating point is noise, which
    differs between float32 and float64, CPU and GPU, one batch and another, t and t + 1e-6; a path of the algorithm that
    follows it jumps between supports. So a fixed small vector is added, which breaks ties always in the same way; its entries
    are negative, so that a tied bit is off, and no two sums of them agree. At the end, where it would hide what is left of
    the gap, the residual is taken exact, but rounded, so that coordinates that are zero up to noise are zero.
    """

    grid: Tensor  # [B, D] powers of two
    tie_break: Tensor  # [D]

    @staticmethod
    def of(target: Tensor) -> "Ties":
        """For points to project [B, D] float64."""
        scale = row_scale(target)
        kernel = compiled("..kernels.ties", __package__, "find_grid", target.device)
        if kernel is not None and not cannot_branch(target):
            grid = torch.empty_like(target, memory_format=torch.contiguous_format)
            least = 2.0**LEAST_EXPONENT
            kernel(target.contiguous().numpy(), scale.numpy(), 2.0**-GRID_BITS, 2.0**GRID_EXPONENT, least, grid.numpy())
            return Ties(grid, _kept_tie_break(target.shape[-1]))
        of_row = (torch.frexp(scale).exponent + GRID_EXPONENT).clamp(min=LEAST_EXPONENT)[:, None]
        of_entry = torch.where(target == 0, of_row, torch.frexp(target).exponent - GRID_BITS)
        grid = torch.ldexp(torch.ones_like(target), torch.maximum(of_entry, of_row))
        dim, device = target.shape[-1], target.device
        return Ties(grid, _tie_break(dim, device) if traced() else placed(_kept_tie_break(dim), device))

    def broken(self, residual: Tensor, exact: Tensor) -> Tensor:
        """The residual [B, D] on the grid, with the tie-break on rows that are not `exact` [B]."""
        kernel = None if cannot_branch(residual) else _broken_by(residual.device)
        if kernel is not None:
            found = torch.empty_like(residual, memory_format=torch.contiguous_format)
            given = (residual, self.grid, self.tie_break, exact, found)
            kernel(*(tensor.contiguous() for tensor in given))
            return found
        steps = (residual / self.grid).round() + torch.where(exact[:, None], 0, self.tie_break)
        return steps * self.grid

    def rows(self, kept: Tensor) -> "Ties":
        """Those of some of the rows."""
        return Ties(self.grid[kept], self.tie_break)


def _broken_by(device: torch.device) -> Callable[..., None] | None:
    """The kernel `broken`, of contiguous tensors; None: tensor operations."""
    kernel = in_triton("..kernels.triton_ties", __package__, "broken", device)
    if kernel is not None:
        return kernel
    kernel = compiled("..kernels.ties", __package__, "broken", device)
    return None if kernel is None else lambda *tensors: kernel(*(tensor.numpy() for tensor in tensors))


def _tie_break(dim: int, device: torch.device | None = None) -> Tensor:
    """D fixed numbers in (-2, -1] without pattern, times TIE_BREAK: by a hash of the coordinate, the same on every device.

    A regular sequence will not do: multiples of an irrational number modulo 1 have equal sums over any two sets of
    coordinates of the same size and the same sum.
    """
    hashed = (torch.arange(1, dim + 1, device=device) * 0x9E3779B1) % 2**32
    for _ in range(2):
        hashed = ((hashed ^ (hashed >> 16)) * 0x45D9F3B) % 2**32
    return -TIE_BREAK * (1 + (hashed ^ (hashed >> 16)).double() / 2**32)


@lru_cache
def _kept_tie_break(dim: int) -> Tensor:
    with torch.inference_mode(False):
        return _tie_break(dim)


def allowed(scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """The scores [B, D] with 0 where they are `-inf`, and where that is; None for nowhere, if that can be seen."""
    forbidden = scores.isneginf()
    # Compiled code cannot branch on data; it always masks.
    if cannot_branch(scores) or forbidden.any():
        return torch.where(forbidden, 0, scores), forbidden
    return scores, None


def best_allowed(polytope: Polytope, scores: Tensor, forbidden: Tensor | None) -> Tensor:
    """A structure of maximal score, without what is forbidden where there is one: [B, D] -> [B, D]."""
    if forbidden is not None:
        # A structure with a forbidden coordinate loses to any without: P exceeds every total of 0/1 structures.
        finite = not getattr(polytope, "takes_forbidden", False)
        penalty = 1 + 2 * scores.abs().sum(-1, keepdim=True) if finite else torch.inf
        scores = torch.where(forbidden, -penalty, scores)
    return checked_maximize(polytope, scores)


@dataclass(frozen=True)
class Oracle:
    """`maximize` as solvers need it: ties broken, forbidden coordinates off, results checked."""

    polytope: Polytope
    target: Tensor  # [B, D], 0 where forbidden
    forbidden: Tensor | None  # [B, D] bool
    ties: Ties
    parts: Parts | None = None

    @staticmethod
    def of(polytope: Polytope, scores: Tensor) -> "Oracle":
        """The oracle of a batch of scores [B, D] float64."""
        target, forbidden = allowed(scores)
        return Oracle(polytope, target, forbidden, Ties.of(target), Parts.of(polytope, scores.device))

    def residual(self, mean: Tensor) -> Tensor:
        """See `BatchOracle`."""
        return objective_gradient(self.target, mean, self.parts)

    def __call__(self, residual: Tensor, exact: Tensor) -> Tensor:
        """See `BatchOracle`."""
        return self.answer(self.ties.broken(residual, exact))

    def answer(self, scores: Tensor) -> Tensor:
        """A structure of maximal score for residuals whose ties are broken, [B, D] -> [B, D]."""
        return best_allowed(self.polytope, scores, self.forbidden)

    def rows(self, kept: Tensor) -> "Oracle":
        """See `BatchOracle`."""
        forbidden = None if self.forbidden is None else self.forbidden[kept]
        return Oracle(self.polytope, self.target[kept], forbidden, self.ties.rows(kept), self.parts)

    def start(self) -> Tensor:
        """The MAP structure of each row, [B, D].

        Raises:
            ValueError: a row where even that has a forbidden coordinate on.
        """
        first = self.best()
        check_structures(self.polytope, first)
        if self.forbidden is not None and not cannot_branch(first):
            blocked = ((first != 0) & self.forbidden).any(-1)
            if blocked.any():
                row = int(blocked.nonzero()[0])
                raise ValueError(
                    f"scores row {row} allows no structure of {self.polytope!r}: every one needs a coordinate whose score "
                    f"is -inf; leave at least one structure allowed"
                )
        return first

    def best(self) -> Tensor:
        """The MAP structure of each row, [B, D], with forbidden coordinates on only where there is no other."""
        return self(self.target, torch.zeros_like(self.target[:, 0], dtype=torch.bool))
