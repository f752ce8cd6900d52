"""The Cartesian product of polytopes: independent parts side by side."""

from collections.abc import Callable
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
from .gibbs import ProductGibbs
from .kbest import topk
from .parts import Parts

Part = TypeVar("Part")


class Product(Polytope):
    """P x Q x ...: coordinates of the parts one after the other.

    Has `maximize` and `topk` always, and `project`, `decompose`, `gibbs`, `halfspaces`, `vertices` where every part has
    them (asking for one that a part lacks is an AttributeError, so `supports` answers for the product too).
    """

    def __init__(self, *parts: Polytope) -> None:
        if not parts or not all(isinstance(part, Polytope) for part in parts):
            raise ValueError(f"Product needs one or more polytopes, e.g. Product(Simplex(3), Budget(8, 2)), not {parts!r}")
        self.parts = parts
        self.takes_forbidden = all(getattr(part, "takes_forbidden", False) for part in parts)
        self.dims = [part.dim for part in parts]
        self.dim = sum(self.dims)
        self.regularized = _regularized(parts)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.parts))})"

    def maximize(self, scores: Tensor) -> Tensor:
        """Each part's own maximiser."""
        blocks = scores.split(self.dims, -1)
        return torch.cat([part.maximize(block) for part, block in zip(self.parts, blocks, strict=True)], -1)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best of the pairwise sums of the parts' k best, part after part; O(k log^2 k) a part.

        The i-th best of one part with the j-th best of another is beaten by the i j - 1 pairs that come no later in both,
        so only pairs with i j <= k can be among the k best: about k log k of them.
        """
        first = torch.cat([torch.full((k // (i + 1),), i) for i in range(k)]).to(scores.device)
        second = torch.cat([torch.arange(k // (i + 1)) for i in range(k)]).to(scores.device)
        blocks = scores.double().split(self.dims, -1)
        best, valid, totals = None, None, None
        for part, block in zip(self.parts, blocks, strict=True):
            vertices, found = topk(part, block, k, check=False)
            finite = torch.where(block.isneginf(), 0, block)
            gains = torch.where(found, (vertices * finite[..., None, :]).sum(-1), -torch.inf)
            if best is None or totals is None:
                best, valid, totals = vertices, found, gains
                continue
            sums = totals[..., first] + gains[..., second]
            totals, order = (pairs[..., :k] for pairs in sums.sort(dim=-1, descending=True, stable=True))
            best = torch.cat([_take(best, first[order]), _take(vertices, second[order])], -1)
            valid = totals > -torch.inf
        assert best is not None
        assert valid is not None
        return (best * valid[..., None]).to(scores.dtype), valid

    @property
    def project(self) -> Callable[[Tensor], Tensor]:
        """Each part's own projection."""
        parts = self._all(SupportsProjection, "project")

        def project(scores: Tensor) -> Tensor:
            blocks = scores.split(self.dims, -1)
            return torch.cat([part.project(block) for part, block in zip(parts, blocks, strict=True)], -1)

        return project

    @property
    def decompose(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The parts' decompositions coupled along [0, 1): at most sum (S_part - 1) + 1 structures.

        Each part's weights cut [0, 1) into intervals; on each piece of the common refinement every part shows one structure.
        """
        parts = self._all(SupportsDecomposition, "decompose")

        def decompose(mean: Tensor) -> tuple[Tensor, Tensor]:
            blocks = mean.split(self.dims, -1)
            pairs = [part.decompose(block) for part, block in zip(parts, blocks, strict=True)]
            ends = [probs.double().cumsum(-1) / probs.double().sum(-1, keepdim=True) for _, probs in pairs]
            inner = torch.cat([end[..., :-1] for end in ends], -1)
            # Cuts of different parts that agree on paper must agree in floating point: a grid of 2^-45, as in Budget.
            one = 1 << 45
            inner = (inner * one).round().to(torch.int64).sort(dim=-1).values
            edge = torch.zeros_like(mean[..., :1], dtype=torch.int64)
            cuts = torch.cat([edge, inner, edge + one], -1)
            middle = (cuts[..., 1:] + cuts[..., :-1]).double() / (2 * one)
            atoms = [
                _take(vertices, torch.searchsorted(end[..., :-1].contiguous(), middle, right=True))
                for (vertices, _), end in zip(pairs, ends, strict=True)
            ]
            probs = (cuts[..., 1:] - cuts[..., :-1]).double() / one
            return torch.cat(atoms, -1), probs.to(mean.dtype)

        return decompose

    @property
    def gibbs(self) -> Callable[[Tensor], ProductGibbs]:
        """Independent parts."""
        parts = self._all(SupportsGibbs, "gibbs")

        def gibbs(scores: Tensor) -> ProductGibbs:
            check_dimension(scores, self)
            blocks = scores.split(self.dims, -1)
            return ProductGibbs([part.gibbs(block) for part, block in zip(parts, blocks, strict=True)], self.dims)

        return gibbs

    @property
    def halfspaces(self) -> Callable[[], Halfspaces]:
        """The parts' constraints, block by block."""
        parts = self._all(SupportsHalfspaces, "halfspaces")

        def halfspaces() -> Halfspaces:
            each = [part.halfspaces() for part in parts]
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
        parts = self._all(SupportsVertices, "vertices")

        def vertices() -> Tensor:
            listed = [part.vertices() for part in parts]
            count = 1
            for table in listed:
                count *= len(table)
            if count > MAX_ENUMERATED:
                raise ValueError(f"{self!r} has {count} structures, too many to enumerate (limit {MAX_ENUMERATED})")
            grids = torch.meshgrid(*(torch.arange(len(table)) for table in listed), indexing="ij")
            return torch.cat([table[grid.flatten()] for table, grid in zip(listed, grids, strict=True)], -1)

        return vertices

    def _all(self, capability: type[Part], name: str) -> list[Part]:
        lacking = [part for part in self.parts if not supports(part, capability)]
        if lacking:
            raise AttributeError(f"{self!r} has no {name}: {lacking[0]!r} has none", name=name, obj=self)
        return [part for part in self.parts if supports(part, capability)]


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
