"""Projective dependency trees of a sentence, by Eisner's algorithm."""

from typing import Any

import torch
from torch import Tensor

from ..placement import lasting
from ..programs.derivations import Derivations
from ..programs.hyperedges import Edge
from ..programs.hypergraph import Hypergraph
from ..row_kernels import best_in_rows
from .dependency_arcs import OverArcs


class ProjectiveTree(OverArcs, Derivations):
    """Projective dependency trees over n words: no two arcs cross (Eisner 1996).

    Coordinates: `arcs`, a `DependencyArcs`. `scores` makes them from a matrix, `heads` reads a structure,
    `structures` writes one.

    Shorter sentences in the same batch: the first word that no arc may reach, all of them scoring `-inf`, ends the sentence;
    `mask` sets those scores.

    Args:
        words: n.
        single_root: whether exactly one word hangs on the root; any number otherwise.

    Cost: O(n^3) a row, in 2 n steps for the whole batch where there is no kernel for it.
    """

    projective = True

    @lasting
    def __init__(self, words: int, *, single_root: bool = False) -> None:
        OverArcs.__init__(self, words, single_root=single_root)
        number = self.arcs.number
        size = words + 1

        def node(kind: int, i: int, j: int) -> int:
            return (kind * size + i) * size + j

        # Spans i..j whose head is the left (right) end: complete, or with the arc between the ends just made.
        left, right, arc_right, arc_left = range(4)
        edges = [Edge(node(kind, i, i)) for i in range(size) for kind in (left, right)]
        for width in range(1, size):
            for i in range(size - width):
                j = i + width
                for k in range(i, j):
                    both = (node(left, i, k), node(right, k + 1, j))
                    edges.append(Edge(node(arc_right, i, j), both, (number[i, j],)))
                    if i > 0:
                        edges.append(Edge(node(arc_left, i, j), both, (number[j, i],)))
                for k in range(i + 1, j + 1):
                    edges.append(Edge(node(left, i, j), (node(arc_right, i, k), node(left, k, j))))
                for k in range(i, j) if i > 0 else ():
                    edges.append(Edge(node(right, i, j), (node(right, i, k), node(arc_left, k, j))))
        goal = 4 * size * size
        for last in reversed(range(1, size)):
            if not single_root:
                edges.append(Edge(goal, (node(left, 0, last),), (), last - 1))
                continue
            for child in range(1, last + 1):
                edges.append(Edge(goal, (node(right, 1, child), node(left, child, last)), (number[0, child],), last - 1))
        Derivations.__init__(self, Hypergraph(words * words, edges, goal))

    def maximize(self, scores: Tensor) -> Tensor:
        """The best tree; O(n^3) a row. Ties: as in the graph."""
        found = best_in_rows("projective_rows", self, scores, (), (self.words, self.single_root), passes=self.words)
        return super().maximize(scores) if found is None else found

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        from ..kernels.projective_rows import NestedTree

        return NestedTree(self.words, self.single_root)

    def gates(self, scores: Tensor) -> Tensor:
        """The sentence ends before its first word that no arc may reach."""
        present = self.arcs.present(scores)
        last = present & ~torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], -1)
        return torch.where(last, 0.0, -torch.inf).to(scores)
