"""Matroids: sets over which the greedy algorithm is exact."""

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Halfspaces, Polytope
from .checks import check_count, check_dimension
from .cube import bit_vectors
from .kbest import partition
from .placement import lasting

# Every subset of items is a halfspace.
_MOST_ITEMS = 12


class Matroid(Polytope):
    """The bases of a matroid, or all its independent sets, as bit vectors over D items (Edmonds 1971).

    A matroid says which sets are independent: the empty one, every subset of an independent set, and, of two independent
    sets, the smaller with some item of the larger added. Bases are the largest independent sets; all have `rank` items, so
    with `bases=True` every structure has that many items on, whatever the scores. With `bases=False` every independent set
    is a structure, and items of score at most 0 are left out.

    Args:
        dim: D.
        independent: whether sets are independent, [B, D] bool -> [B] bool, for a whole batch. From a rank function r:
            `lambda sets: r(sets) == sets.sum(-1)`. Tensors of its own must follow the sets: `placed(table, sets.device)`. That
            it makes a matroid is not checked; if it does not, greedy is not exact.
        bases: whether structures are the bases; all independent sets otherwise.

    Ties: the lower item first.

    >>> one_each = Matroid(4, lambda sets: (sets[:, :2].sum(-1) <= 1) & (sets[:, 2:].sum(-1) <= 1))  # of {0, 1} and {2, 3}
    >>> one_each.maximize(torch.tensor([[1.0, 2, -2, -1]]))
    tensor([[0., 1., 0., 1.]])
    """

    takes_forbidden = True

    @lasting
    def __init__(self, dim: int, independent: Callable[[Tensor], Tensor], *, bases: bool = True) -> None:
        self.dim = check_count("Matroid: dim", dim, 1)
        if not callable(independent):
            raise ValueError(
                f"Matroid: independent must be a function of sets [n, D] bool, [n, D] -> [n] bool, not {independent!r}"
            )
        self.bases = bases
        self._independent = independent
        if not bool(self._holds(torch.zeros(1, self.dim, dtype=torch.bool))):
            raise ValueError("Matroid: not even the empty set is independent, so there is no structure; look at `independent`")
        self.rank = int(self._greedy(torch.ones(1, self.dim)).sum())

    def __repr__(self) -> str:
        return f"Matroid(dim={self.dim}, rank={self.rank}{'' if self.bases else ', bases=False'})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The greedy set: items from the best down, each if what there is stays independent. D calls of `independent`."""
        check_dimension(scores, self)
        chosen = self._greedy(scores, least=-torch.inf if self.bases else 0)
        found = chosen.sum(-1) == self.rank if self.bases else torch.ones_like(chosen[:, 0])
        # A row without a structure answers with what is forbidden, by which solvers know it.
        return torch.where(found[:, None], chosen, scores.isneginf()).to(scores)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best: k rounds of `rank` greedy runs a row (D of them for independent sets)."""
        check_dimension(scores, self)
        return partition(lambda forced, _: self.maximize(forced), scores, k, antichain=self.bases)

    def halfspaces(self) -> Halfspaces:
        """x >= 0, and of every set of items at most its rank: 2^D rows, for D up to 12.

        Raises:
            ValueError: D is larger.
        """
        if self.dim > _MOST_ITEMS:
            raise ValueError(f"{self!r} has 2^{self.dim} halfspaces, too many to list (limit D = {_MOST_ITEMS})")
        sets = bit_vectors(self.dim)[1:]
        ranks = self._greedy(sets, least=0).sum(-1).double()
        identity, zeros = torch.eye(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64)
        whole = slice(len(sets) - 1, len(sets)) if self.bases else slice(0, 0)
        return Halfspaces(torch.cat([-identity, sets]), torch.cat([zeros, ranks]), sets[whole], ranks[whole])

    def vertices(self) -> Tensor:
        """All structures, by trying every bit vector; D <= 20."""
        sets = bit_vectors(self.dim)
        holds = self._holds(sets > 0)
        return sets[holds & (sets.sum(-1) == self.rank) if self.bases else holds]

    def _greedy(self, scores: Tensor, least: float = -torch.inf) -> Tensor:
        """From each row's best item down, those that score above `least` and keep the set independent, [B, D] bool."""
        values, order = scores.sort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        for place in range(self.dim):
            item = order[:, place, None]
            added = (values[:, place] > least) & self._holds(chosen.scatter(-1, item, True))
            chosen = chosen.scatter(-1, item, added[:, None])
        return chosen

    def _holds(self, sets: Tensor) -> Tensor:
        holds = self._independent(sets)
        if not isinstance(holds, Tensor) or holds.shape != sets.shape[:1] or holds.dtype != torch.bool:
            got = f"{holds.dtype} {list(holds.shape)}" if isinstance(holds, Tensor) else type(holds).__name__
            raise ValueError(
                f"Matroid: independent must say for sets [B, D] = {list(sets.shape)} bool whether each is independent, "
                f"[B] bool; it returned {got}"
            )
        return holds
