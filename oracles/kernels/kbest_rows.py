"""The k best derivations of a `Hypergraph`, compiled for the CPU: row by row, and at each node no more than are asked for.

Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.vectors import UNCOUNTED, Array, Scalar
from .derivation_rows import Edges, broken, climb, switch_on_edge, weight_of


class Ranked(NamedTuple):
    """Derivations of each node, best first, as many as were found: an edge, and which derivation of each tail."""

    value: Array  # [N + 1, k], -inf where there is none, or where it was not looked for
    edge: Array  # [N, k] int64
    ranks: Array  # [N, k, 2] int64
    known: Array  # [N + 1] int64, how many were found
    complete: Array  # [N + 1] bool, whether there are no others


class Frontier(NamedTuple):
    """What may be the next best derivation of each node, in any order, from where its room begins."""

    begin: Array  # [N] int64
    size: Array  # [N] int64, -1 where nothing was put there yet
    value: Array  # [F]
    edge: Array  # [F] int64
    ranks: Array  # [F, 2] int64


@numba.njit(nogil=True, error_model="numpy", cache=True)
def kbest(scores: Array, gates: Array, edges: Edges, goal: int, structures: Array, totals: Array) -> None:
    """The k structures [B, k, D] of highest total [B, k], best first, -inf beyond their number, for float64 as `best` has it.

    The best derivation of every node is found first. What comes next at a node is looked for when another asks for it, from a
    frontier of what may be next (Huang and Chiang 2005, Algorithm 3): that is along the k best derivations of the goal. Of tied
    ones those of the first edge come first, and of one edge those of the better first tail, as in `Hypergraph`.
    """
    count, dim, k = len(edges.start) - 1, scores.shape[1], totals.shape[1]
    # Each edge is in a frontier once, and once more after each derivation that is found.
    begin = np.array([np.int64(edges.start[node]) + node * k for node in range(count)])
    room = len(edges.gates) + count * k
    found = Ranked(
        np.empty((count + 1, k)),
        np.empty((count, k), np.int64),
        np.empty((count, k, 2), np.int64),
        np.empty(count + 1, np.int64),
        np.empty(count + 1, np.bool_),
    )
    frontier = Frontier(
        begin, np.empty(count, np.int64), np.empty(room), np.empty(room, np.int64), np.empty((room, 2), np.int64)
    )
    given, opened = np.zeros(dim + 1), np.zeros(gates.shape[1] + 1)
    chart, choice = np.zeros(count + 1), np.empty(count, np.int64)
    waiting, rank = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    for row in range(scores.shape[0]):
        given[:dim], opened[:-1] = scores[row], gates[row]
        climb(given, opened, edges, chart, choice)
        _start(chart, choice, found, frontier)
        while found.known[goal] < k and not found.complete[goal]:
            _find_next(goal, given, opened, edges, found, frontier, waiting)
        nan = broken(given)
        for place in range(k):
            totals[row, place], structures[row, place] = found.value[goal, place] if not nan else np.nan, 0
            if not totals[row, place] > -np.inf:
                continue
            waiting[0], rank[0], left = goal, place, 1
            while left > 0:
                left -= 1
                node, which = waiting[left], rank[left]
                edge = found.edge[node, which]
                switch_on_edge(edge, edges, structures[row, place])
                for side in range(2):
                    if edges.tails[edge, side] < count:
                        waiting[left], rank[left] = edges.tails[edge, side], found.ranks[node, which, side]
                        left += 1


@numba.njit(cache=True, **UNCOUNTED)
def _start(chart: Array, choice: Array, found: Ranked, frontier: Frontier) -> None:
    """With the best derivation of each node, of values chart [N + 1] and edges choice [N], and no other."""
    for node in range(choice.shape[0]):
        for place in range(1, found.value.shape[1]):
            found.value[node, place] = -np.inf
        found.value[node, 0], found.edge[node, 0] = chart[node], choice[node]
        found.ranks[node, 0, 0] = found.ranks[node, 0, 1] = 0
        found.known[node], found.complete[node], frontier.size[node] = 1, chart[node] == -np.inf, -1
    one = choice.shape[0]  # the node of value one
    for place in range(1, found.value.shape[1]):
        found.value[one, place] = -np.inf
    found.value[one, 0], found.known[one], found.complete[one] = 0.0, 1, True


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _find_next(node: int, given: Array, opened: Array, edges: Edges, found: Ranked, frontier: Frontier, waiting: Array) -> None:
    """One more derivation of a node, and of others as far as that takes, or that it has no more.

    A node waits, in `waiting` [N + 1], for the next derivations of the tails that the last one found of it has.
    """
    k = found.value.shape[1]
    waiting[0], left = node, 1
    while left > 0:
        node = waiting[left - 1]
        if frontier.size[node] < 0:
            _begin(node, given, opened, edges, found, frontier)
        last = found.known[node] - 1
        edge, one, two = found.edge[node, last], found.ranks[node, last, 0], found.ranks[node, last, 1]
        first, second = np.int64(edges.tails[edge, 0]), np.int64(edges.tails[edge, 1])
        if two == 0 and one + 1 < k and _is_missing(first, one + 1, found):
            waiting[left] = first
            left += 1
        elif two + 1 < k and _is_missing(second, two + 1, found):
            waiting[left] = second
            left += 1
        else:
            if two == 0 and one + 1 < k:
                _put(node, edge, one + 1, 0, given, opened, edges, found, frontier)
            if two + 1 < k:
                _put(node, edge, one, two + 1, given, opened, edges, found, frontier)
            _take(node, found, frontier)
            left -= 1


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _is_missing(node: Scalar, rank: Scalar, found: Ranked) -> bool:
    return found.known[node] <= rank and not found.complete[node]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _begin(node: int, given: Array, opened: Array, edges: Edges, found: Ranked, frontier: Frontier) -> None:
    """The frontier of a node whose best derivation alone was found."""
    frontier.size[node] = 0
    for edge in range(edges.start[node], edges.start[node + 1]):
        if edge != found.edge[node, 0]:
            _put(node, edge, 0, 0, given, opened, edges, found, frontier)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _take(node: int, found: Ranked, frontier: Frontier) -> None:
    """Takes the best of a node's frontier as its next derivation; there are no more if it is empty."""
    begin, size, place = frontier.begin[node], frontier.size[node], found.known[node]
    if size == 0:
        found.complete[node] = True
        return
    best, last = begin, begin + size - 1
    for other in range(begin + 1, begin + size):
        if _precedes(other, best, frontier):
            best = other
    found.value[node, place], found.edge[node, place] = frontier.value[best], frontier.edge[best]
    found.ranks[node, place, 0], found.ranks[node, place, 1] = frontier.ranks[best, 0], frontier.ranks[best, 1]
    found.known[node] += 1
    frontier.value[best], frontier.edge[best] = frontier.value[last], frontier.edge[last]
    frontier.ranks[best, 0], frontier.ranks[best, 1] = frontier.ranks[last, 0], frontier.ranks[last, 1]
    frontier.size[node] = size - 1


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _precedes(one: int, other: int, frontier: Frontier) -> bool:
    """Whether one place of a frontier comes before another: by value, then by edge, then by the first tail's rank."""
    if frontier.value[one] != frontier.value[other]:
        return frontier.value[one] > frontier.value[other]
    if frontier.edge[one] != frontier.edge[other]:
        return frontier.edge[one] < frontier.edge[other]
    return frontier.ranks[one, 0] < frontier.ranks[other, 0]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _put(
    node: int, edge: int, one: int, two: int, given: Array, opened: Array, edges: Edges, found: Ranked, frontier: Frontier
) -> None:
    """Puts an edge into a node, with those derivations of its tails, into its frontier if they exist."""
    value = weight_of(edge, given, opened, edges)
    value += found.value[edges.tails[edge, 0], one]
    value += found.value[edges.tails[edge, 1], two]
    if value > -np.inf:
        place = frontier.begin[node] + frontier.size[node]
        frontier.value[place], frontier.edge[place] = value, edge
        frontier.ranks[place, 0], frontier.ranks[place, 1] = one, two
        frontier.size[node] += 1
