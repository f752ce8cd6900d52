"""What a solver is: it finds the support of the projection on a polytope, and certifies it. No gradients."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...oracles import Polytope
from ..stats import SolverStats
from .supports import ChainedSupport, NestedSupport, PackedSupport, Support


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
        self, scores: Tensor, polytope: Polytope, dtype: torch.dtype, check: bool
    ) -> PackedSupport[SolverStats] | Support | None:
        """As `Solver.solve`, with atoms in `dtype` if packed; None where only `solve` can. Data are looked at.

        With `check` scores may be NaN or +inf, and then the answer is None; a kernel may see that by the way.
        """
        ...


class FindsMean(Protocol):
    """Solvers that can leave structures unwritten where the mean is all that is wanted."""

    def solve_mean(self, scores: Tensor, polytope: Polytope, check: bool) -> tuple[Tensor, SolverStats] | None:
        """As `FindsPacked`, the mean [B, D] float64 alone: to the last bit that of the support packed in float64."""
        ...


def check_solver(solver: object, *others: type) -> None:
    """Raises ValueError unless it is a solver of SparseMAP, an instance; `others` solve something else."""
    if isinstance(solver, (type, *others)) or not hasattr(solver, "solve"):
        raise ValueError(f"solver must be an instance of a solver, e.g. ActiveSet() or SortedDecomposition(), not {solver!r}")
