"""Paths from a source to a target in a directed acyclic graph."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..base import Halfspaces
from ..checks import cannot_branch, check_count, check_pairs
from ..placement import lasting, placed
from ..written import check_structures, checked_numbers, refuse
from .derivations import Derivations
from .hyperedges import Edge
from .hypergraph import Hypergraph


class ShortestPath(Derivations):
    """Paths of a directed acyclic graph, as indicators of its arcs: D = number of arcs.

    `maximize` finds the path of highest total score; for a shortest path give negative lengths. Arcs that score `-inf` are not
    there, so that graphs that are parts of one graph go in one batch. `nodes` reads a path, `structures` writes one.

    Args:
        arcs: (from, to) pairs of node numbers, one coordinate each.
        source, target: nodes; by default the smallest and the largest number.

    Raises:
        ValueError: the graph has a cycle that a path could run into, two equal arcs, a negative node, or no path.

    >>> ShortestPath([(0, 1), (1, 3), (0, 2), (2, 3)]).maximize(torch.tensor([[1.0, 0, 3, -1]]))
    tensor([[0., 0., 1., 1.]])
    """

    @lasting
    def __init__(self, arcs: Sequence[tuple[int, int]], source: int | None = None, target: int | None = None) -> None:
        arcs = check_pairs("ShortestPath: arcs", arcs)
        if not arcs:
            raise ValueError("ShortestPath: arcs must be one or more (from, to) pairs, e.g. [(0, 1), (1, 2)]")
        if len(set(arcs)) < len(arcs):
            twice = next(arc for arc in arcs if arcs.count(arc) > 1)
            raise ValueError(f"ShortestPath: the arc {twice} is there twice, so paths would not be told apart: give it once")
        nodes = {node for arc in arcs for node in arc}
        if min(nodes) < 0:
            raise ValueError(f"ShortestPath: nodes must be numbered from 0 on, not {min(nodes)}")
        self.arcs, self._largest = tuple(arcs), max(nodes)
        self.source = min(nodes) if source is None else check_count("ShortestPath: source", source, min(nodes))
        self.target = max(nodes) if target is None else check_count("ShortestPath: target", target, min(nodes))
        if self.source == self.target or not {self.source, self.target} <= nodes:
            raise ValueError(
                f"ShortestPath: source {self.source} and target {self.target} must be different nodes of the graph"
            )
        edges = [Edge(self.source)]
        edges += [Edge(head, (tail,), (place,)) for place, (tail, head) in enumerate(arcs) if head != self.source]
        try:
            graph = Hypergraph(len(arcs), edges, self.target)
        except ValueError as error:
            raise ValueError(
                f"ShortestPath needs a directed acyclic graph with a path from {self.source} to {self.target}, but {error}"
            ) from error
        super().__init__(graph)

    @classmethod
    def grid(cls, rows: int, columns: int, *, diagonal: bool = False) -> "ShortestPath":
        """Paths through a grid from its first to its last cell, down or right, and (`diagonal`) down and right at once."""
        rows, columns = check_count("ShortestPath.grid: rows", rows, 1), check_count("ShortestPath.grid: columns", columns, 1)
        if rows * columns == 1:
            raise ValueError("ShortestPath.grid needs two or more cells, not a grid of one, in which there is no path")
        steps = [(0, 1), (1, 0), (1, 1)] if diagonal else [(0, 1), (1, 0)]
        arcs = [
            (r * columns + c, (r + down) * columns + c + right)
            for r in range(rows)
            for c in range(columns)
            for down, right in steps
            if r + down < rows and c + right < columns
        ]
        return cls(arcs, 0, rows * columns - 1)

    def __repr__(self) -> str:
        return f"ShortestPath({len(self.arcs)} arcs, {self.source} to {self.target})"

    def nodes(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, L] int64: the nodes of each path from source to target, -1 beyond; L is that of the longest path.

        Raises:
            ValueError: no structures, but means of some.
        """
        check_structures(f"{self!r}.nodes", structures, self.dim, "of a mean mu, `maximize(mu)` has a path")
        heads, depths = (placed(table, structures.device) for table in self._heads_and_depths)
        length = int(self._heads_and_depths[1].max())
        order = torch.where(structures != 0, depths, length + 1).sort(-1)
        visited = torch.where(order.values <= length, heads[order.indices], -1)[..., :length]
        return torch.nn.functional.pad(visited, (1, 0), value=self.source)

    def structures(self, nodes: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The paths through these nodes: the inverse of `nodes`, for targets.

        Args:
            nodes: [*B, L] ints, from source to target, -1 beyond; of any L.
            dtype: of the result, by default torch's.

        Returns:
            [*B, D].

        Raises:
            ValueError: another shape; or that is no path of the graph.
        """
        name = f"{self!r}.structures"
        nodes = checked_numbers(name, nodes, None, self._largest, None)
        there, before, after = nodes >= 0, nodes[..., :-1], nodes[..., 1:]
        keys, places = (placed(table, nodes.device) for table in self._arcs_in_order)
        wanted = before * (self._largest + 1) + after
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        missing = torch.nn.functional.pad((keys[found] != wanted) & there[..., 1:], (1, 0))
        if not cannot_branch(nodes):
            first = torch.arange(nodes.shape[-1], device=nodes.device) == 0
            last = there & ~torch.nn.functional.pad(there[..., 1:], (0, 1))
            refuse(name, nodes, first & (nodes != self.source), f"paths begin at the source, {self.source}")
            refuse(name, nodes, missing, "no path has an arc to it from the node before")
            refuse(name, nodes, last & (nodes != self.target), f"paths end at the target, {self.target}")
        made = torch.zeros(*nodes.shape[:-1], self.dim, dtype=dtype or torch.get_default_dtype(), device=nodes.device)
        return made.scatter_add(-1, places[found], there[..., 1:].to(made))

    @cached_property
    @lasting
    def _arcs_in_order(self) -> tuple[Tensor, Tensor]:
        """The arcs that are on paths as numbers, in order, and their coordinates, [n] int64 each."""
        used = torch.tensor(self._used)
        tails, heads = torch.tensor(self.arcs)[used].T
        keys, order = (tails * (self._largest + 1) + heads).sort()
        return keys, used[order]

    @cached_property
    @lasting
    def _heads_and_depths(self) -> tuple[Tensor, Tensor]:
        """Of each arc [D] int64: where it ends, and how many arcs the longest way to there has; 0 for arcs on no path."""
        depths = torch.zeros(self.dim, dtype=torch.int64)
        for depth, level in enumerate(self.graph.levels):
            places = self.graph.coordinates[level.edges].flatten()
            depths[places[places < self.dim]] = depth
        return torch.tensor([head for _, head in self.arcs]), depths

    @property
    def _used(self) -> list[int]:
        """The arcs that are on paths, in order."""
        return [int(place) for place in self.graph.coordinates.unique() if place < self.dim]

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        return self.graph.row_oracle(scores, self.gates(scores))

    def halfspaces(self) -> Halfspaces:
        """A unit of flow from source to target; arcs on no path carry none."""
        used = self._used
        nodes = sorted({node for place in used for node in self.arcs[place]})
        a_eq = torch.zeros(len(nodes) + self.dim - len(used), self.dim, dtype=torch.float64)
        b_eq = torch.zeros(len(a_eq), dtype=torch.float64)
        for line, node in enumerate(nodes):
            for place in used:
                tail, head = self.arcs[place]
                a_eq[line, place] = float(tail == node) - float(head == node)
            b_eq[line] = float(node == self.source) - float(node == self.target)
        for line, place in enumerate(sorted(set(range(self.dim)) - set(used))):
            a_eq[len(nodes) + line, place] = 1
        return Halfspaces(-torch.eye(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64), a_eq, b_eq)
