"""What the operators report of themselves, row by row."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SolverStats:
    """How a solve went, row by row.

    Attributes:
        iterations: [*B] int64; 0 for a closed form.
        gap: [*B] float64, the Frank-Wolfe gap max_v <t - mu, v - mu> of the mean, which bounds ||mu - mu*||^2.
        converged: [*B] bool. A row that is not converged still holds a valid distribution.
    """

    iterations: Tensor
    gap: Tensor
    converged: Tensor

    def reshape(self, batch_shape: torch.Size) -> "SolverStats":
        """The same for rows arranged as `batch_shape`."""
        return SolverStats(
            self.iterations.reshape(batch_shape), self.gap.reshape(batch_shape), self.converged.reshape(batch_shape)
        )


@dataclass(frozen=True)
class TopKStats:
    """The certificate of top-k sparsemax.

    Attributes:
        exact: [*B] bool. True where fewer than k structures have mass, or no more than k exist: top-k sparsemax then
            equals sparsemax over all structures (paper section 4.1).
    """

    exact: Tensor


Stats = SolverStats | TopKStats
