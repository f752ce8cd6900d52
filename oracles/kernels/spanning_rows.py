"""Heaviest spanning trees compiled for the CPU, one graph after the other: Kruskal (1956), with a forest of pointers to sets.

The trees are those of `heaviest_forest`. Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, spread, switch_on, words_of
from ...kernels.vectors import COUNTED, UNCOUNTED, Array
from .forbidden_rows import answer_forbidden


class FreeTree(NamedTuple):
    """The oracle of a `SpanningTree`: see `row_oracles`."""

    ends: Array  # [D, 2] int64, the nodes that each edge joins
    nodes: int


def best_of_row(row: int, oracle: FreeTree, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    order = np.argsort(-scores[0], kind="mergesort")  # of equal edges the first one comes first
    solve(scores[0], order, oracle.ends, np.empty(oracle.nodes, np.int64), np.empty(oracle.nodes, np.bool_), structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, order: Array, ends: Array, nodes: int, structures: Array) -> None:
    """Into structures [B, D] the best trees on the nodes that have an edge; a row that has none answers with what is forbidden.

    Args:
        scores: [B, D]; edges are there where these are above `-inf`.
        order: [B, D] int64, the edges, best first.
        ends: [D, 2] int64, the nodes that they join.
        nodes: V.
    """
    above, touched = np.empty(nodes, np.int64), np.empty(nodes, np.bool_)
    words = np.empty(words_of(scores.shape[1]), np.uint64)
    for row in range(scores.shape[0]):
        solve(scores[row], order[row], ends, above, touched, words)
        spread(words, structures[row])


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, order: Array, ends: Array, above: Array, touched: Array, structure: Array) -> None:
    """`best` of one row, scores [D] and order [D], in bits [W]; the other arrays [V] are room for anything."""
    for node in range(above.shape[0]):
        above[node], touched[node] = node, False
    clear(structure)
    pieces = 0
    for place in range(order.shape[0]):
        edge = order[place]
        if not scores[edge] > -np.inf:
            continue
        for side in range(2):
            pieces += not touched[ends[edge, side]]
            touched[ends[edge, side]] = True
        one, other = _top(ends[edge, 0], above), _top(ends[edge, 1], above)
        if one != other:
            above[one] = other
            switch_on(structure, edge)
            pieces -= 1
    if pieces != 1:
        answer_forbidden(scores, structure)


@numba.njit(cache=True, **UNCOUNTED)
def _top(node: int, above: Array) -> int:
    """The node that stands for the set of one; ways there are halved as they are gone."""
    while above[node] != node:
        above[node] = above[above[node]]
        node = above[node]
    return node
