"""The one check of the scores, made where they enter the library."""

import warnings

import torch
from torch import Tensor

from .stats import SolverStats


class ConvergenceWarning(UserWarning):
    """A solver stopped before its certificate said that it was done."""


def check_finite(scores: Tensor, dim: int = -1, some_allowed: bool = False) -> None:
    """Raises ValueError if a score is NaN or +inf, or (with `some_allowed`) a row along `dim` is `-inf` throughout.

    One reduction and one host synchronisation. Code that is compiled or transformed (`torch.compile`, `torch.func.vmap`)
    cannot branch on data: there nothing is checked.
    """
    if cannot_branch(scores) or scores.numel() == 0:
        return
    peak = scores.detach().amax(dim)  # NaN spreads
    sound = peak < torch.inf
    if some_allowed:
        sound &= peak > -torch.inf
    if sound.all():
        return
    row = tuple((~sound).nonzero()[0].tolist())
    value = float(peak[row])
    where = f"scores row {row[0] if len(row) == 1 else row}" if row else "scores"
    if value == -torch.inf:
        raise ValueError(f"{where} has -inf in every entry, so nothing is allowed; leave at least one entry finite")
    raise ValueError(
        f"{where} holds {'NaN' if value != value else '+inf'}; scores must be finite, or -inf to forbid an entry "
        f"(look for a division by zero or an overflow upstream)"
    )


def warn_unconverged(stats: SolverStats, solver: object) -> None:
    """One `ConvergenceWarning` if a row has not converged. A host synchronisation; skipped where data cannot be seen."""
    if cannot_branch(stats.converged) or stats.converged.all():
        return
    failed = ~stats.converged
    warnings.warn(
        f"{solver} did not converge on {int(failed.sum())} of {failed.numel()} rows (largest gap "
        f"{float(stats.gap[failed].max()):.1e}); those rows hold valid distributions that are not optimal, see "
        f"stats.converged; raise max_iter or tol",
        ConvergenceWarning,
        stacklevel=3,
    )


def cannot_branch(tensor: Tensor) -> bool:
    """Whether the values of the tensor are out of reach: being compiled, or inside a `torch.func` transform."""
    # torch.func has no public way to ask; the attribute is in every torch that we support.
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
