"""The Cartesian product of polytopes: independent parts side by side."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from .base import (
    MAX_ENUMERATED,
    Halfspaces,
    Polytope,
    SupportsDecomposition,
    SupportsGibbs,
    SupportsHalfspaces,
    SupportsProjection,
    SupportsVertices,
    supports,
)
from .checks import check_dimension
from .contracts import best_allowed
from .gibbs import ProductGibbs
from .kbest import topk
from .parts import Parts
from .placement import lasting, placed

Part = TypeVar("Part")
Value = TypeVar("Value")


class Product(Polytope):
    """P x Q x ...: coordinates of the parts one after the other.

    Has `maximize` and `topk` always, and `project`, `decompose`, `gibbs`, `halfspaces`, `vertices` where every part has
    them (asking for one that a part lacks is an AttributeError, so `supports` answers for the product too).

    Equal parts are solved together, as more rows of one batch: many small polytopes cost as many calls as there are
    different ones. Parts are equal if they are the same object, or compare so: `Simplex(3)` and `Simplex(3)` do,
    `LinearChain(5, 2)` and `LinearChain(5, 2)` do not, so repeat the object.

    >>> from sparsemarg.oracles import LinearChain, Simplex
    >>> many = Product(*[LinearChain(3, 2)] * 4, *[Simplex(5)] * 3)
    >>> [block.shape[-1] for block in many.blocks(many.maximize(torch.zeros(1, many.dim)))]
    [14, 14, 14, 14, 5, 5, 5]
    """

    takes_forbidden = True

    @lasting
    def __init__(self, *parts: Polytope) -> None:
        if not parts or not all(isinstance(part, Polytope) for part in parts):
            raise ValueError(f"Product needs one or more polytopes, e.g. Product(Simplex(3), Budget(8, 2)), not {parts!r}")
        self.parts = parts
        self.dims = [part.dim for part in parts]
        self.dim = sum(self.dims)
        self.regularized = _regularized(parts)
        places: dict[object, list[int]] = {}
        for place, part in enumerate(parts):
            places.setdefault(_key(part), []).append(place)
        self._groups = [parts[found[0]] for found in places.values()]
        self._counts = [len(found) for found in places.values()]
        # Parts, and coordinates, in the order of the groups; and the way back.
        self._part_order = torch.tensor([place for found in places.values() for place in found])
        ranges = torch.arange(self.dim).split(self.dims)
        self._order = torch.cat([ranges[place] for place in self._part_order.tolist()])
        self._back = self._order.argsort()
        self._sorted = torch.equal(self._order, torch.arange(self.dim))

    def __repr__(self) -> str:
        runs = [(part, len(list(run))) for part, run in groupby(self.parts)]
        return f"Product({', '.join(f'*[{part!r}] * {count}' if count > 1 else repr(part) for part, count in runs)})"

    def blocks(self, structures: Tensor) -> tuple[Tensor, ...]:
        """[*B, D] -> each part's coordinates [*B, d]."""
        return structures.split(self.dims, -1)

    def maximize(self, scores: Tensor) -> Tensor:
        """Each part's own maximiser."""
        found = []
        for part, block in zip(self._groups, self._split(scores), strict=True):
            flat = block.flatten(0, -2)
            forbidden = None if getattr(part, "takes_forbidden", False) else flat.isneginf()
            found.append(best_allowed(part, flat, forbidden).reshape(block.shape))
        return self._join(found)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best of the sums of the parts' k best, in a tournament of pairs: log2 P rounds, O(P k log^2 k) in all."""
        listed, gains = [], []
        for part, block in zip(self._groups, self._split(scores.double()), strict=True):
            vertices, found = topk(part, block, k, check=False)  # [B, g, k, d]
            finite = torch.where(block.isneginf(), 0, block)
            listed.append(vertices)
            gains.append(torch.where(found, (vertices * finite[..., None, :]).sum(-1), -torch.inf))
        totals, ranks = best_sums(torch.cat(gains, 1)[:, self._part_order.argsort()])
        ranks = ranks[:, self._part_order].split(self._counts, 1)
        chosen = [_take(vertices, rank).transpose(1, 2) for vertices, rank in zip(listed, ranks, strict=True)]
        valid = totals > -torch.inf
        return (self._join(chosen) * valid[..., None]).to(scores.dtype), valid

    @property
    def project(self) -> Callable[[Tensor], Tensor]:
        """Each part's own projection."""
        parts = self._all(SupportsProjection, "project")

        def project(scores: Tensor) -> Tensor:
            blocks = zip(parts, self._split(scores), strict=True)
            return self._join([part.project(block.flatten(0, -2)).reshape(block.shape) for part, block in blocks])

        return project

    @property
    def decompose(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The parts' decompositions coupled along [0, 1): at most sum (S_part - 1) + 1 structures.

        Each part's weights cut [0, 1) into intervals; on each piece of the common refinement every part shows one structure.
        """
        parts = self._all(SupportsDecomposition, "decompose")

        def decompose(mean: Tensor) -> tuple[Tensor, Tensor]:
            listed, ends = [], []
            for part, block in zip(parts, self._split(mean), strict=True):
                vertices, probs = part.decompose(block.flatten(0, -2))
                listed.append(vertices.reshape(*block.shape[:-1], *vertices.shape[1:]))  # [*B, g, S, d]
                end = probs.double().cumsum(-1) / probs.double().sum(-1, keepdim=True)
                ends.append(end.reshape(*block.shape[:-1], end.shape[-1])[..., :-1].contiguous())
            # Cuts of different parts that agree on paper must agree in floating point: a grid of 2^-45, as in Budget.
            one = 1 << 45
            inner = torch.cat([end.flatten(-2) for end in ends], -1)
            inner = (inner * one).round().to(torch.int64).sort(dim=-1).values
            edge = torch.zeros_like(mean[..., :1], dtype=torch.int64)
            cuts = torch.cat([edge, inner, edge + one], -1)
            middle = (cuts[..., 1:] + cuts[..., :-1]).double() / (2 * one)
            atoms = []
            for vertices, end in zip(listed, ends, strict=True):
                shown = torch.searchsorted(end, middle[..., None, :].expand(*end.shape[:-1], -1).contiguous(), right=True)
                atoms.append(_take(vertices, shown).transpose(-2, -3))
            probs = (cuts[..., 1:] - cuts[..., :-1]).double() / one
            return self._join(atoms), probs.to(mean.dtype)

        return decompose

    @property
    def gibbs(self) -> Callable[[Tensor], ProductGibbs]:
        """Independent parts."""
        parts = self._all(SupportsGibbs, "gibbs")

        def gibbs(scores: Tensor) -> ProductGibbs:
            check_dimension(scores, self)
            blocks = zip(parts, self._split(scores), strict=True)
            return ProductGibbs(self.dim, [part.gibbs(block) for part, block in blocks], self._split, self._join)

        return gibbs

    @property
    def halfspaces(self) -> Callable[[], Halfspaces]:
        """The parts' constraints, block by block."""
        groups = self._all(SupportsHalfspaces, "halfspaces")

        def halfspaces() -> Halfspaces:
            each = self._each([part.halfspaces() for part in groups])
            return Halfspaces(
                torch.block_diag(*(half.a_ub for half in each)),
                torch.cat([half.b_ub for half in each]),
                torch.block_diag(*(half.a_eq for half in each)),
                torch.cat([half.b_eq for half in each]),
            )

        return halfspaces

    @property
    def vertices(self) -> Callable[[], Tensor]:
        """Every combination of the parts' structures, the last part fastest."""
        groups = self._all(SupportsVertices, "vertices")

        def vertices() -> Tensor:
            listed = self._each([part.vertices() for part in groups])
            count = 1
            for table in listed:
                count *= len(table)
            if count > MAX_ENUMERATED:
                raise ValueError(f"{self!r} has {count} structures, too many to enumerate (limit {MAX_ENUMERATED})")
            grids = torch.meshgrid(*(torch.arange(len(table)) for table in listed), indexing="ij")
            return torch.cat([table[grid.flatten()] for table, grid in zip(listed, grids, strict=True)], -1)

        return vertices

    def _all(self, capability: type[Part], name: str) -> list[Part]:
        """One part of each group, all of which have the capability."""
        lacking = [part for part in self._groups if not supports(part, capability)]
        if lacking:
            raise AttributeError(f"{self!r} has no {name}: {lacking[0]!r} has none", name=name, obj=self)
        return [part for part in self._groups if supports(part, capability)]

    def _each(self, of_groups: list[Value]) -> list[Value]:
        """What there is for each group, for each part."""
        repeated = [value for value, count in zip(of_groups, self._counts, strict=True) for _ in range(count)]
        return [repeated[place] for place in self._part_order.argsort().tolist()]

    def _split(self, values: Tensor) -> list[Tensor]:
        """[*B, D] -> the blocks of each group, [*B, g, d]."""
        ordered = values if self._sorted else values[..., placed(self._order, values.device)]
        sizes = [part.dim * count for part, count in zip(self._groups, self._counts, strict=True)]
        blocks = zip(ordered.split(sizes, -1), self._counts, strict=True)
        return [block.unflatten(-1, (count, -1)) for block, count in blocks]

    def _join(self, blocks: Sequence[Tensor]) -> Tensor:
        """The inverse of `_split`."""
        ordered = torch.cat([block.flatten(-2) for block in blocks], -1)
        return ordered if self._sorted else ordered[..., placed(self._back, ordered.device)]


# The same under the name by which one looks for many small ones.
Blocks = Product


def best_sums(totals: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest sums of one of k numbers from each of P lists, and which: [B, P, k] -> [B, k], ranks [B, P, k].

    Lists are sorted, largest first. Two are merged by their pairwise sums: the i-th of one and the j-th of the other is
    beaten by the i j - 1 pairs that come no later in both, so only the k log k pairs with i j <= k are candidates. All pairs
    of neighbours are merged at once. Ties: as the sums come out in floating point, then by these pairs.
    """
    batch, count, k = totals.shape
    first = torch.cat([torch.full((k // (i + 1),), i) for i in range(k)]).to(totals.device)
    second = torch.cat([torch.arange(k // (i + 1)) for i in range(k)]).to(totals.device)
    nothing = totals.new_full((batch, 1, k), -torch.inf)
    nothing[..., 0] = 0
    orders = []
    while totals.shape[1] > 1:
        if totals.shape[1] % 2:
            totals = torch.cat([totals, nothing], 1)
        sums = totals[:, 0::2, first] + totals[:, 1::2, second]
        totals, order = (found[..., :k] for found in sums.sort(dim=-1, descending=True, stable=True))
        orders.append(order)
    ranks = torch.arange(k, device=totals.device).expand(batch, 1, k)
    for order in reversed(orders):
        pair = order.gather(-1, ranks[:, : order.shape[1]])
        ranks = torch.stack([first[pair], second[pair]], 2).flatten(1, 2)
    return totals[:, 0], ranks[:, :count]


def _key(part: Polytope) -> object:
    """What equal parts have in common: themselves, or if they cannot be hashed (a dataclass that holds a list) the object."""
    try:
        hash(part)
    except TypeError:
        return id(part)
    return part


def _regularized(parts: tuple[Polytope, ...]) -> Tensor | None:
    """The regularised coordinates of all parts, in the product's numbers; None for all."""
    split = [Parts.of(part) for part in parts]
    if all(each is None for each in split):
        return None
    start, found = 0, []
    for part, each in zip(parts, split, strict=True):
        found.append(start + (torch.arange(part.dim) if each is None else each.regularized))
        start += part.dim
    return torch.cat(found)


def _take(vertices: Tensor, index: Tensor) -> Tensor:
    """vertices [*B, S, D] at index [*B, n] -> [*B, n, D]."""
    return vertices.gather(-2, index[..., None].expand(*index.shape, vertices.shape[-1]))
