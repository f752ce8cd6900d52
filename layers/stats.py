"""What the operators report of themselves, row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


class _ByRow:
    """Dataclasses of tensors that have the shape of the batch."""

    def reshape(self, batch_shape: torch.Size) -> Self:
        """The same for rows arranged as `batch_shape`."""
        if next(iter(vars(self).values())).shape == batch_shape:
            return self
        return self._of(lambda field: field.reshape(batch_shape))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return self._of(lambda field: field.to(device))

    def __getitem__(self, key: Any) -> Self:
        """Those of some rows, chosen as from a tensor of shape [*B]."""
        return self._of(lambda field: field[key])

    def _of(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*map(change, vars(self).values()))


@dataclass(frozen=True)
class SolverStats(_ByRow):
    """How a solve went, row by row.

    Attributes:
        iterations: [*B] int64; 0 for a closed form.
        gap: [*B] float64, the Frank-Wolfe gap max_v <t - mu, v - mu> of the mean, which bounds ||mu - mu*||^2. Where only the
            coordinates R are regularised it is max_v <g, v - mu> with g = (t - mu)_R, t elsewhere, and bounds
            ||(mu - mu*)_R||^2 and the distance of the objective from its maximum. Found with t - mu rounded to 1e-12 of the
            scale, and as good as that.
        converged: [*B] bool. A row that is not converged still holds a valid distribution.
        margin: [*B] float64, the smallest weight of an atom, counting those that were dropped as negligible. Derivatives are
            those of a fixed support, which lasts while no weight reaches zero: for changes of the scores of about this
            size. See `solvers.ActiveSet` for where it is tiny.
    """

    iterations: Tensor
    gap: Tensor
    converged: Tensor
    margin: Tensor


@dataclass(frozen=True)
class TopKStats(_ByRow):
    """The certificate of top-k sparsemax.

    Attributes:
        exact: [*B] bool. True where fewer than k structures have mass, or no more than k exist: top-k sparsemax then
            equals sparsemax over all structures (paper section 4.1).
    """

    exact: Tensor


@dataclass(frozen=True)
class ConsensusStats(_ByRow):
    """How a solve on a factor graph went, row by row. The residuals are its certificate: both are 0 at the solution only.

    Attributes:
        iterations: [*B] int64.
        primal: [*B] float64, max |x_f - mu_f|: by how much a factor's own mean of a variable differs from the mean.
        dual: [*B] float64, by how much the factors' problems still move, in units of scores.
        converged: [*B] bool. The mean of a row that is not converged may be outside of factors by `primal`.
        contradictory: [*B] bool. True where it is proved that the factors contradict one another: no point is in all of them.
    """

    iterations: Tensor
    primal: Tensor
    dual: Tensor
    converged: Tensor
    contradictory: Tensor


Stats = SolverStats | TopKStats
