"""A polytope's `maximize` as solvers ask it: ties broken, forbidden coordinates off, results checked."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...oracles import Parts, Polytope
from ...oracles.checks import cannot_branch
from ...oracles.contracts import best_allowed, check_allowed, check_structures
from .ties import Ties


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


@dataclass(frozen=True)
class Oracle:
    """`maximize` as solvers need it: ties broken, forbidden coordinates off, results checked."""

    polytope: Polytope
    target: Tensor  # [B, D], 0 where forbidden
    forbidden: Tensor | None  # [B, D] bool
    ties: Ties
    parts: Parts | None = None

    @staticmethod
    def of(polytope: Polytope, scores: Tensor, some_forbidden: bool = True) -> "Oracle":
        """The oracle of a batch of scores [B, D] float64, of which some may be `-inf` unless it is known that none are."""
        target, forbidden = allowed(scores) if some_forbidden else (scores, None)
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
        """The MAP structure of each row, [B, D], in memory of its own: an oracle may use its output's again.

        Raises:
            ValueError: a row where even that has a forbidden coordinate on.
        """
        first = self.best().clone()
        check_structures(self.polytope, first)
        check_allowed(self.polytope, first, self.forbidden)
        return first

    def best(self) -> Tensor:
        """The MAP structure of each row, [B, D], with forbidden coordinates on only where there is no other."""
        return self(self.target, torch.zeros_like(self.target[:, 0], dtype=torch.bool))


def objective_gradient(target: Tensor, mean: Tensor, parts: Parts | None) -> Tensor:
    """t - mu on the coordinates that are regularised, t on the others: [B, D]."""
    return target - (mean if parts is None else parts.penalized(mean))


def allowed(scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """The scores [B, D] with 0 where they are `-inf`, and where that is; None for nowhere, if that can be seen."""
    forbidden = scores.isneginf()
    # Compiled code cannot branch on data; it always masks.
    if cannot_branch(scores) or forbidden.any():
        return torch.where(forbidden, 0, scores), forbidden
    return scores, None
