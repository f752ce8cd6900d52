"""What the operators report of themselves, row by row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SolverStats:
    """How a solve went, row by row.

    Attributes:
        iterations: [*B] int64; 0 for a closed form.
        gap: [*B] float64, the Frank-Wolfe gap max_v <t - mu, v - mu> of the mean, which bounds ||mu - mu*||^2. Where only the
            coordinates R are regularised it is max_v <g, v - mu> with g = (t - mu)_R, t elsewhere, and bounds
            ||(mu - mu*)_R||^2 and the distance of the objective from its maximum.
        converged: [*B] bool. A row that is not converged still holds a valid distribution.
        margin: [*B] float64, the smallest weight of an atom, counting those that were dropped as negligible. Derivatives are
            those of a fixed support, which lasts while no weight reaches zero: for changes of the scores of about this
            size. See `solvers.ActiveSet` for where it is tiny.
    """

    iterations: Tensor
    gap: Tensor
    converged: Tensor
    margin: Tensor

    def reshape(self, batch_shape: torch.Size) -> "SolverStats":
        """The same for rows arranged as `batch_shape`."""
        return SolverStats(*(field.reshape(batch_shape) for field in vars(self).values()))


@dataclass(frozen=True)
class TopKStats:
    """The certificate of top-k sparsemax.

    Attributes:
        exact: [*B] bool. True where fewer than k structures have mass, or no more than k exist: top-k sparsemax then
            equals sparsemax over all structures (paper section 4.1).
    """

    exact: Tensor


Stats = SolverStats | TopKStats
