"""What a solver is: it finds the support of the projection on a polytope, and certifies it. No gradients."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...oracles import Polytope
from ..stats import SolverStats


@dataclass(frozen=True)
class Support:
    """The support that a solver found, padded.

    Attributes:
        atoms: [B, S, D] float64, the used structures of a row affinely independent.
        probs: [B, S] float64 >= 0, each row summing to 1; 0 marks an unused slot. The weights are optimal on the atoms
            unless the row is not converged.
        stats: rows [B].
    """

    atoms: Tensor
    probs: Tensor
    stats: SolverStats


class Solver(ABC):
    """Finds the support of argmin_{mu in conv(polytope)} ||mu - t||^2."""

    @abstractmethod
    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """Solves B independent problems, under `no_grad`.

        Args:
            scores: [B, D] float64, finite or `-inf` (that coordinate is 0 in every structure).
            polytope: with `dim` D.
        """


# Residuals are rounded to multiples of 2^-40 (about 1e-12) before the oracle sees them: far above the rounding noise of
# a residual of scale 1 (about 1e-15), far below the accuracy that is promised for the mean (1e-8). A power of two, so
# that rounding is exact and sums of D rounded scores of 0/1 structures are exact up to D |t| = 2^13: ties stay ties.
GRID_EXPONENT = -40
# Relative to a large score the noise is larger: keep 48 of float64's 53 bits.
GRID_BITS = 48


class BatchOracle(Protocol):
    """What a solver asks: a structure for each row's residual."""

    @property
    def target(self) -> Tensor:
        """[B, D] float64, the points to project, finite."""
        ...

    def __call__(self, residual: Tensor) -> Tensor:
        """A structure that maximises each row of the residual: [B, D] -> [B, D]."""
        ...

    def start(self) -> Tensor:
        """The structures to start from, [B, D]: those of maximal score."""
        ...

    def rows(self, kept: Tensor) -> "BatchOracle":
        """The oracle of the rows [B] bool that are true."""
        ...


def rounded(residual: Tensor, grid: Tensor) -> Tensor:
    """The residual on the grid, [B, D]."""
    return (residual / grid).round() * grid


@dataclass(frozen=True)
class Oracle:
    """`maximize` as solvers need it: rounded residuals in, checked structures out, forbidden coordinates off.

    On a coordinate where the mean already equals the target the residual is rounding noise. Rounded, it is zero, and the
    oracle's own tie rule decides: the same for float32 and float64, CPU and GPU, any batch.
    """

    polytope: Polytope
    target: Tensor  # [B, D], 0 where forbidden
    forbidden: Tensor | None  # [B, D] bool
    grid: Tensor  # [B, D]

    @staticmethod
    def of(polytope: Polytope, scores: Tensor) -> "Oracle":
        """The oracle of a batch of scores [B, D] float64."""
        forbidden = scores.isneginf()
        target = torch.where(forbidden, 0, scores)
        exponent = torch.frexp(target).exponent - GRID_BITS
        grid = torch.ldexp(torch.ones_like(target), exponent.clamp(min=GRID_EXPONENT))
        # Compiled code cannot branch on data; it always masks.
        masked = torch.compiler.is_compiling() or bool(forbidden.any())
        return Oracle(polytope, target, forbidden if masked else None, grid)

    def __call__(self, residual: Tensor) -> Tensor:
        """A structure that maximises the rounded residual: [B, D] -> [B, D] float64."""
        scores = rounded(residual, self.grid)
        if self.forbidden is not None:
            # A structure with a forbidden coordinate loses to any without: P exceeds every total of 0/1 structures.
            penalty = 1 + 2 * scores.abs().sum(-1, keepdim=True)
            scores = torch.where(self.forbidden, -penalty, scores)
        return checked_maximize(self.polytope, scores)

    def rows(self, kept: Tensor) -> "Oracle":
        """The oracle of some of the rows."""
        forbidden = None if self.forbidden is None else self.forbidden[kept]
        return replace(self, target=self.target[kept], forbidden=forbidden, grid=self.grid[kept])

    def start(self) -> Tensor:
        """The MAP structure of each row, [B, D].

        Raises:
            ValueError: a row where even that has a forbidden coordinate on.
        """
        first = self(self.target)
        if self.forbidden is not None and not torch.compiler.is_compiling():
            blocked = ((first != 0) & self.forbidden).any(-1)
            if blocked.any():
                row = int(blocked.nonzero()[0])
                raise ValueError(
                    f"scores row {row} allows no structure of {self.polytope!r}: every one needs a coordinate whose score "
                    f"is -inf; leave at least one structure allowed"
                )
        return first


def checked_maximize(polytope: Polytope, scores: Tensor) -> Tensor:
    """`polytope.maximize(scores)`, or a ValueError that says how its result breaks the contract."""
    name = type(polytope).__name__
    try:
        vertices = polytope.maximize(scores)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise ValueError(
            f"{name}.maximize failed on {scores.dtype} scores ({error}); solvers work in float64, so convert the polytope's "
            f"own tensors, e.g. `self.weights.to(scores)`"
        ) from error
    if not isinstance(vertices, Tensor) or vertices.shape != scores.shape:
        got = list(vertices.shape) if isinstance(vertices, Tensor) else type(vertices).__name__
        raise ValueError(
            f"{name}.maximize must return one structure a row, a tensor of the scores' shape {list(scores.shape)}; "
            f"it returned {got}"
        )
    if vertices.dtype != scores.dtype or vertices.device != scores.device:
        raise ValueError(
            f"{name}.maximize returned {vertices.dtype} on {vertices.device} for scores of {scores.dtype} on "
            f"{scores.device}; return `vertices.to(scores)`"
        )
    return vertices
