"""What a solver that stopped early is worth saying."""

import warnings

from ..oracles.checks import cannot_branch
from .solvers.admm import ADMM
from .solvers.base import Solver
from .stats import ConsensusStats, SolverStats


class ConvergenceWarning(UserWarning):
    """A solver stopped before its certificate said that it was done."""


def warn_unconverged(stats: SolverStats, solver: Solver) -> None:
    """One `ConvergenceWarning` if a row has not converged. A host synchronisation; skipped where data cannot be seen."""
    if cannot_branch(stats.converged) or stats.converged.all():
        return
    failed = ~stats.converged
    warnings.warn(
        f"{solver} did not converge on {int(failed.sum())} of {failed.numel()} rows (largest gap "
        f"{float(stats.gap[failed].max()):.1e}); those rows hold valid distributions that are not optimal, see "
        f"stats.converged; {solver.advice}",
        ConvergenceWarning,
        stacklevel=3,
    )


def warn_no_consensus(stats: ConsensusStats, method: ADMM) -> None:
    """The same for a factor graph."""
    if cannot_branch(stats.converged) or stats.converged.all():
        return
    failed = ~stats.converged
    warnings.warn(
        f"{method} did not converge on {int(failed.sum())} of {failed.numel()} rows (largest primal residual "
        f"{float(stats.primal[failed].max()):.1e}, dual {float(stats.dual[failed].max()):.1e}); their means are not optimal, "
        f"see stats.converged; raise max_iter or tol. A primal residual that stays large says that the factors contradict one "
        f"another",
        ConvergenceWarning,
        stacklevel=3,
    )
