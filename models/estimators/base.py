"""The interface of everything that evaluates an expected cost over latent structures, and its gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Cost = Callable[[Tensor, Tensor], Tensor]
"""cost(atoms [n, D], row [n]) -> [n]: the cost of structure `atoms[i]` for the example number `row[i]` of the batch."""


@dataclass(frozen=True)
class Estimate:
    """An expected cost E_{z ~ q}[cost(z)] of each example of a batch, and what is known of q.

    Attributes:
        value: [B] float, detached: the (estimated) expected cost, in the units of the cost.
        surrogate: [B] float: `surrogate.mean().backward()` gives the (estimated) gradient of `value.mean()`. An exact
            estimator's surrogate equals its value; a score-function estimator's does not.
        entropy: [B] float, nats, differentiable: H(q).
        evaluations: how many (example, structure) pairs the cost was evaluated on.
        support: [B] int64: how many structures of each example had mass, or were drawn.
        mode: [B, D] float: the most probable structure of each example.
    """

    value: Tensor
    surrogate: Tensor
    entropy: Tensor
    evaluations: int
    support: Tensor
    mode: Tensor


class Estimator(nn.Module, ABC):
    """Turns scores of structures and a cost of structures into an expected cost with a gradient.

    A model is written once against this class; which estimator it gets is an argument of its constructor.

    Attributes:
        dim: the D of its structures, where it is known before scores come; None otherwise.
    """

    dim: int | None = None

    @abstractmethod
    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        """Estimate E_{z ~ q(scores)}[cost(z)] for each example.

        Args:
            scores: [B, D] float.
            cost: called with structures [n, D] and their example numbers [n]; returns [n].
            context: [B, ...], what the scores were computed from, for estimators with a learned baseline.
        """
