"""Spanning trees of an undirected graph."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..base import MAX_ENUMERATED, Halfspaces, Polytope
from ..checks import check_count, check_dimension, check_pairs, fits, shown
from ..kbest import partition
from ..placement import lasting, placed
from ..row_kernels import best_in_rows
from .bonds import Bonds
from .heaviest_forest import heaviest_forest
from .spanning_gibbs import SpanningTreeGibbs

# Every set of nodes is a halfspace.
_MOST_NODES = 12


class SpanningTree(Polytope):
    """Spanning trees, as indicators of edges: D = number of edges. The bases of the graphic matroid.

    Graphs that are parts of one graph go in one batch: edges that score `-inf` are not there, nor are nodes that have no other
    edge. `mask` sets those scores.

    Args:
        edges: pairs of nodes, numbered from 0; there may be several between the same two.
        nodes: V, at least 2; by default one more than the largest number.

    Raises:
        ValueError: an edge from a node to itself or to a node that is not there, or a graph in pieces, which has no tree.

    >>> triangle = SpanningTree([(0, 1), (1, 2), (0, 2)])
    >>> triangle.maximize(torch.tensor([[3.0, -1, 2]]))
    tensor([[1., 0., 1.]])
    """

    takes_forbidden = True

    @lasting
    def __init__(self, edges: Sequence[tuple[int, int]], nodes: int | None = None) -> None:
        self.edges = tuple(check_pairs("SpanningTree: edges", edges))
        if not self.edges:
            raise ValueError("SpanningTree: edges must be one or more pairs of nodes, e.g. [(0, 1), (1, 2), (0, 2)]")
        largest = max(map(max, self.edges))
        self.nodes = check_count("SpanningTree: nodes", largest + 1 if nodes is None else nodes, 2)
        for place, (one, other) in enumerate(self.edges):
            if one == other or min(one, other) < 0 or max(one, other) >= self.nodes:
                raise ValueError(
                    f"SpanningTree: edge {place}, {(one, other)}, must join two different nodes of 0..{self.nodes - 1}"
                )
        self.dim = len(self.edges)
        self._bonds = Bonds(self.edges, self.nodes)
        self._ends = self._bonds.ends  # [D, 2]
        joined = int(heaviest_forest(torch.zeros(1, self.dim), torch.arange(self.dim)[None], self._ends, self.nodes).sum())
        if joined < self.nodes - 1:
            raise ValueError(
                f"SpanningTree: the graph has {self.nodes - joined} pieces, so it has no spanning tree; add edges between "
                "them, or leave out nodes without edges"
            )

    def __repr__(self) -> str:
        return f"SpanningTree({self.dim} edges, nodes={self.nodes})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The heaviest tree. Ties: the lower edge first. O(D log D) a row by a kernel on the CPU, or see `heaviest_forest`."""
        order, ends = scores.detach().sort(dim=-1, descending=True, stable=True).indices, placed(self._ends, scores.device)
        in_rows = best_in_rows("spanning_rows", self, scores, (order,), (ends, self.nodes), passes=32)
        if in_rows is not None:
            return in_rows
        present = self._bonds.present(scores)
        chosen = heaviest_forest(scores, order, ends, self.nodes)
        found = (chosen.sum(-1) == present.sum(-1) - 1)[:, None]
        # A row without a structure answers with what is forbidden, by which solvers know it.
        return torch.where(found, chosen, scores.isneginf()).to(scores)

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        from ..kernels.spanning_rows import FreeTree

        return FreeTree(self._ends.numpy(), self.nodes)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best trees: k rounds of V - 1 maximisations a row."""
        present = self._bonds.present(scores)
        ends = placed(self._ends, scores.device)
        absent = ~present[:, ends].all(-1)  # [B, D]

        def maximize(forced: Tensor, graph: Tensor) -> Tensor:
            return self.maximize(forced.masked_fill(absent[graph], -torch.inf))

        vertices, valid = partition(maximize, scores, k, antichain=True)
        some = present.any(-1, keepdim=True)
        return vertices * some[..., None], valid & some

    def gibbs(self, scores: Tensor) -> SpanningTreeGibbs:
        """p(z) proportional to exp <a_z, t>, by the matrix-tree theorem; O(V^3) a row.

        With zero scores, the uniform distribution over spanning trees.
        """
        check_dimension(scores, self)
        return SpanningTreeGibbs(self._bonds, scores)

    def mask(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """The scores [*B, D] of the graphs on some of the nodes, [*B, V] bool.

        Raises:
            ValueError: a graph has fewer than two nodes, or one that no edge joins to another.
        """
        check_dimension(scores, self)
        shape = (*scores.shape[:-1], self.nodes)
        boolean = isinstance(nodes, Tensor) and nodes.dtype == torch.bool
        if not boolean or not (fits(nodes.shape[:-1], shape[:-1]) and nodes.shape[-1:] == shape[-1:]):
            got = f"{nodes.dtype} {list(nodes.shape)}" if isinstance(nodes, Tensor) else type(nodes).__name__
            raise ValueError(f"{self!r}: nodes must be bool {list(shape)}, the nodes that are there, not {got}")
        few = (nodes.sum(-1) < 2).nonzero()
        if len(few):
            count = int(nodes[tuple(few[0])].sum())
            raise ValueError(f"{self!r}: problem {shown(few[0])} has {count} nodes, but needs at least 2")
        joined = nodes[..., placed(self._ends, scores.device)].all(-1)
        edges = torch.where(joined, 0.0, -torch.inf).reshape(-1, self.dim)
        lone = (nodes & ~self._bonds.present(edges).reshape(nodes.shape)).nonzero()
        if len(lone):
            problem, node = shown(lone[0, :-1]), int(lone[0, -1])
            raise ValueError(f"{self!r}: problem {problem} has node {node}, but no edge from there to another of its nodes")
        return torch.where(joined, scores, -torch.inf)

    def halfspaces(self) -> Halfspaces:
        """x >= 0, V - 1 edges, and within any set of nodes one less than it has (Edmonds 1971): 2^V rows, for V up to 12.

        Raises:
            ValueError: V is larger.
        """
        if self.nodes > _MOST_NODES:
            raise ValueError(f"{self!r} has 2^{self.nodes} halfspaces, too many to list (limit V = {_MOST_NODES})")
        sets = (torch.arange(1 << self.nodes)[:, None] >> torch.arange(self.nodes)) & 1
        sets = sets[(sets.sum(-1) > 1) & (sets.sum(-1) < self.nodes)]
        within = sets[:, self._ends].prod(-1).double()  # [sets, D]
        identity = torch.eye(self.dim, dtype=torch.float64)
        b_ub = torch.cat([torch.zeros(self.dim), sets.sum(-1) - 1]).double()
        everything = torch.ones(1, self.dim, dtype=torch.float64)
        total = torch.tensor([self.nodes - 1], dtype=torch.float64)
        return Halfspaces(torch.cat([-identity, within]), b_ub, everything, total)

    def vertices(self) -> Tensor:
        """All trees, by trying every set of V - 1 edges.

        Raises:
            ValueError: there are more than `MAX_ENUMERATED` such sets.
        """
        count = math.comb(self.dim, self.nodes - 1)
        if count > MAX_ENUMERATED:
            raise ValueError(f"{self!r} has up to {count} structures, too many to enumerate (limit {MAX_ENUMERATED})")
        sets = torch.tensor(list(combinations(range(self.dim), self.nodes - 1)))  # [C, V - 1]
        # A set of V - 1 edges is a tree if its incidence matrix, without one node, has determinant +-1, and not 0.
        incidence = torch.zeros(self.dim, self.nodes, dtype=torch.float64)
        incidence.scatter_(1, self._ends, torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(self.dim, -1))
        trees = sets[torch.linalg.det(incidence[sets][..., 1:]).abs() > 0.5]
        return torch.zeros(len(trees), self.dim, dtype=torch.float64).scatter_(1, trees, 1)
