"""Logic factors: constraints between a few bits, any of which may stand negated."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .base import Halfspaces, Polytope
from .budget import Budget
from .checks import check_count, check_dimension
from .placement import lasting, placed


class LogicFactor(Polytope):
    """Bit vectors that satisfy a constraint on literals: bit i, or its negation where `negated[i]` (Martins et al. 2015).

    A subclass says which bits to reflect, z_i -> 1 - z_i, so that the constraint becomes a `Budget`. A reflection is an
    isometry of the cube, so everything is that of the budget; ties are broken as the budget does, before reflecting back.

    Scores of `-inf` forbid z_i = 1, also of a negated bit.

    Args:
        dim: number of literals, at least 1 (`Implies`: 2).
        negated: which literals are negations, a bool for each; None for none.
    """

    takes_forbidden = True

    @lasting
    def __init__(self, dim: int, negated: Sequence[bool] | None = None) -> None:
        name = type(self).__name__
        self.dim = check_count(f"{name}: dim", dim, 1)
        if negated is not None and not isinstance(negated, Iterable):
            raise ValueError(f"{name}: negated must be a flag for each literal, e.g. [False, True], not {negated!r}")
        flags = [False] * self.dim if negated is None else [bool(flag) for flag in negated]
        if len(flags) != self.dim:
            raise ValueError(f"{name}: negated must have a flag for each of the {self.dim} literals, not {len(flags)}")
        self.negated = tuple(flags)
        self._budget, reflected = self._as_budget()
        self._reflected = torch.tensor(reflected)

    def __repr__(self) -> str:
        flags = f", negated={list(self.negated)}" if any(self.negated) else ""
        return f"{type(self).__name__}({self.dim}{flags})"

    @abstractmethod
    def _as_budget(self) -> tuple[Budget, list[bool]]:
        """The budget, and the bits that are reflected for it."""

    def maximize(self, scores: Tensor) -> Tensor:
        """The best bit vector that satisfies the constraint; O(D log D)."""
        return self._mirror(self._budget.maximize(self._turned(scores)))

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best; O(k (D + k)) a row after sorting."""
        vertices, valid = self._budget.topk(self._turned(_finite(scores.double())), k)
        vertices = self._mirror(vertices).to(scores.dtype)
        valid = valid & ~((vertices != 0) & scores.isneginf()[..., None, :]).any(-1)
        return vertices * valid[..., None], valid

    def project(self, scores: Tensor) -> Tensor:
        """In closed form, by sorting: O(D log D). Differentiable."""
        check_dimension(scores, self)
        return self._mirror(self._budget.project(self._mirror(_finite(scores.double())))).to(scores.dtype)

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """At most D + 1 bit vectors with this mean; O(D^2)."""
        atoms, probs = self._budget.decompose(self._mirror(mean))
        return self._mirror(atoms), probs

    def halfspaces(self) -> Halfspaces:
        """The budget's, rewritten for z."""
        plain = self._budget.halfspaces()
        shift = self._reflected.double()
        sign = 1 - 2 * shift
        return Halfspaces(
            plain.a_ub * sign, plain.b_ub - plain.a_ub @ shift, plain.a_eq * sign, plain.b_eq - plain.a_eq @ shift
        )

    def vertices(self) -> Tensor:
        """All that satisfy it.

        Raises:
            ValueError: there are more than `MAX_ENUMERATED`.
        """
        return self._mirror(self._budget.vertices())

    def _mirror(self, bits: Tensor) -> Tensor:
        """Between z and the budget's bits, either way."""
        return torch.where(placed(self._reflected, bits.device), 1 - bits, bits)

    def _turned(self, scores: Tensor) -> Tensor:
        """Scores of the budget's bits where z scores `scores`, up to a constant."""
        return torch.where(placed(self._reflected, scores.device), -scores, scores)


class ExactlyOne(LogicFactor):
    """XOR: one literal holds. Without negations it is the `Simplex`.

    >>> ExactlyOne(3, negated=[False, False, True]).maximize(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[0., 1., 1.]])
    """

    def _as_budget(self) -> tuple[Budget, list[bool]]:
        return Budget(self.dim, 1, exactly=True), list(self.negated)


class AtMostOne(LogicFactor):
    """At most one literal holds.

    >>> AtMostOne(3).project(torch.tensor([[0.75, 0.75, -1.0]]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    def _as_budget(self) -> tuple[Budget, list[bool]]:
        return Budget(self.dim, 1), list(self.negated)


class AtLeastOne(LogicFactor):
    """OR: at least one literal holds, that is, at most all but one do not.

    >>> AtLeastOne(3).maximize(torch.tensor([[-2.0, -1.0, -3.0]]))
    tensor([[0., 1., 0.]])
    """

    def _as_budget(self) -> tuple[Budget, list[bool]]:
        return Budget(self.dim, self.dim - 1), [not flag for flag in self.negated]


class Implies(LogicFactor):
    """The first D - 1 literals, if all hold, imply the last: not all of them hold without it.

    >>> Implies(3).maximize(torch.tensor([[1.0, 1.0, -0.5]]))
    tensor([[1., 1., 1.]])
    """

    def _as_budget(self) -> tuple[Budget, list[bool]]:
        check_count("Implies: dim", self.dim, 2)
        return Budget(self.dim, self.dim - 1), [*self.negated[:-1], not self.negated[-1]]


def _finite(scores: Tensor) -> Tensor:
    """With numbers in place of -inf that are too low for any bit of value one: reflected, -inf would be +inf."""
    forbidden = scores.isneginf()
    finite = torch.where(forbidden, 0, scores)
    return torch.where(forbidden, -4 - 2 * finite.detach().abs().sum(-1, keepdim=True), finite)
