"""What solvers find: the support of the projection on a polytope, written down in one way or another."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

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
        all_converged: that every row has, where the solver has looked already; False otherwise.
    """

    atoms: Tensor
    probs: Tensor
    row: Tensor
    first: Tensor
    stats: FoundBy
    jacobian: Jacobian
    all_converged: bool = False


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
