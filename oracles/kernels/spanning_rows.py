"""Heaviest spanning trees compiled for the CPU, one graph after the other: Kruskal (1956), with a forest of pointers to sets.

The trees are those of `heaviest_forest`. Importing this module needs Numba.
"""

import numba
import numpy as np

from ...kernels.vectors import UNCOUNTED, Array
from .forbidden_rows import answer_forbidden


@numba.njit(nogil=True, error_model="numpy", cache=True)
def best(scores: Array, order: Array, ends: Array, nodes: int, structures: Array) -> None:
    """Into structures [B, D] the best trees on the nodes that have an edge; a row that has none answers with what is forbidden.

    Args:
        scores: [B, D]; edges are there where these are above `-inf`.
        order: [B, D] int64, the edges, best first.
        ends: [D, 2] int64, the nodes that they join.
        nodes: V.
    """
    above, touched = np.empty(nodes, np.int64), np.empty(nodes, np.bool_)
    for row in range(scores.shape[0]):
        for node in range(nodes):
            above[node], touched[node] = node, False
        structures[row] = 0
        pieces = 0
        for edge in order[row]:
            if not scores[row, edge] > -np.inf:
                continue
            for side in range(2):
                pieces += not touched[ends[edge, side]]
                touched[ends[edge, side]] = True
            one, other = _top(ends[edge, 0], above), _top(ends[edge, 1], above)
            if one != other:
                above[one] = other
                structures[row, edge] = 1
                pieces -= 1
        if pieces != 1:
            answer_forbidden(scores[row], structures[row])


@numba.njit(cache=True, **UNCOUNTED)
def _top(node: int, above: Array) -> int:
    """The node that stands for the set of one; ways there are halved as they are gone."""
    while above[node] != node:
        above[node] = above[above[node]]
        node = above[node]
    return node
