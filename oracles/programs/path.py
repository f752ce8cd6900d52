"""Paths from a source to a target in a directed acyclic graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import Halfspaces
from ..checks import check_count, check_pairs
from ..placement import lasting
from .derivations import Derivations
from .hyperedges import Edge
from .hypergraph import Hypergraph


class ShortestPath(Derivations):
    """Paths of a directed acyclic graph, as indicators of its arcs: D = number of arcs.

    `maximize` finds the path of highest total score; for a shortest path give negative lengths. Arcs that score `-inf` are not
    there, so that graphs that are parts of one graph go in one batch.

    Args:
        arcs: (from, to) pairs of node numbers, one coordinate each.
        source, target: nodes; by default the smallest and the largest number.

    Raises:
        ValueError: the graph has a cycle that a path could run into, two equal arcs, or no path.

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
        self.arcs = tuple(arcs)
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

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        return self.graph.row_oracle(scores, self.gates(scores))

    def halfspaces(self) -> Halfspaces:
        """A unit of flow from source to target; arcs on no path carry none."""
        used = {int(c) for c in self.graph.coordinates.unique() if c < self.dim}
        nodes = sorted({node for place in used for node in self.arcs[place]})
        a_eq = torch.zeros(len(nodes) + self.dim - len(used), self.dim, dtype=torch.float64)
        b_eq = torch.zeros(len(a_eq), dtype=torch.float64)
        for line, node in enumerate(nodes):
            for place in used:
                tail, head = self.arcs[place]
                a_eq[line, place] = float(tail == node) - float(head == node)
            b_eq[line] = float(node == self.source) - float(node == self.target)
        for line, place in enumerate(sorted(set(range(self.dim)) - used)):
            a_eq[len(nodes) + line, place] = 1
        return Halfspaces(-torch.eye(self.dim, dtype=torch.float64), torch.zeros(self.dim, dtype=torch.float64), a_eq, b_eq)
