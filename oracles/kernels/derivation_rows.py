"""The best derivations of a `Hypergraph`, compiled for the CPU; the k best are in `kbest_rows`.

Row by row, in a chart that stays in the processor's cache. Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, switch_on
from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar
from .forbidden_rows import answer_forbidden


class Edges(NamedTuple):
    """The edges of a hypergraph with N nodes and E edges, by head; heads after all of their tails.

    Places are unsigned: one that might be negative would be looked at before each use, which takes half of the time.
    """

    start: Array  # [N + 1] uint64, where the edges of each node begin
    tails: Array  # [E, 2] uint32; N, a node that always has value one, where there are fewer
    coordinates: Array  # [E, c] uint32; D where there are fewer
    gates: Array  # [E] uint32; G where there is none


class Derivation(NamedTuple):
    """The oracle of a polytope whose structures are derivations, all of them 0/1: see `row_oracles`."""

    gates: Array  # [B, G]
    edges: Edges
    goal: int


def best_of_row(row: int, oracle: Derivation, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    edges, room = oracle.edges, _room(scores, oracle.gates.shape[1], oracle.edges)
    if solve(scores[0], oracle.gates[row], edges, oracle.goal, room) == -np.inf:
        answer_forbidden(scores[0], structure)
        return
    clear(structure)
    left = 1
    while left > 0:
        edge, left = _open(left, edges, room)
        for place in range(edges.coordinates.shape[1]):
            if edges.coordinates[edge, place] < scores.shape[1]:
                switch_on(structure, np.int64(edges.coordinates[edge, place]))


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, gates: Array, edges: Edges, goal: int, structures: Array, totals: Array) -> None:
    """The structures [B, D] of highest total [B], -inf if there is none, for scores [B, D] and gates [B, G].

    A row without a structure answers with what is forbidden. The total of a row with NaN is NaN.
    """
    room = _room(scores, gates.shape[1], edges)
    for row in range(scores.shape[0]):
        totals[row] = solve(scores[row], gates[row], edges, goal, room)
        none = totals[row] == -np.inf
        for d in range(structures.shape[1]):
            structures[row, d] = none and scores[row, d] == -np.inf
        left = 0 if none else 1
        while left > 0:
            edge, left = _open(left, edges, room)
            switch_on_edge(edge, edges, structures[row])


class Room(NamedTuple):
    """For what is computed of one row."""

    given: Array  # [D + 1] the scores, and 0
    opened: Array  # [G + 1] the gates, and 0
    chart: Array  # [N + 1] the value of each node, and 0
    choice: Array  # [N] int64, the edge that has it
    waiting: Array  # [N + 1] int64, nodes that are to be opened


@numba.njit(error_model="numpy", cache=True, **COUNTED)
def _room(scores: Array, gates: int, edges: Edges) -> Room:
    """Of scores [*, D] and so many gates."""
    nodes, kind = len(edges.start) - 1, scores.dtype
    given, opened, chart = np.zeros(scores.shape[-1] + 1, kind), np.zeros(gates + 1, kind), np.zeros(nodes + 1, kind)
    return Room(given, opened, chart, np.empty(nodes, np.int64), np.empty(nodes + 1, np.int64))


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, gates: Array, edges: Edges, goal: int, room: Room) -> Scalar:
    """The highest total of one row, scores [D] and gates [G]; what is to be opened of its derivation is the goal."""
    for d in range(scores.shape[0]):
        room.given[d] = scores[d]
    for gate in range(gates.shape[0]):
        room.opened[gate] = gates[gate]
    climb(room.given, room.opened, edges, room.chart, room.choice)
    room.waiting[0] = goal
    return room.chart[goal] if not broken(room.given) else np.nan


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _open(left: int, edges: Edges, room: Room) -> tuple[Scalar, int]:
    """The edge into the last of so many nodes that wait, and how many wait when its tails do."""
    left -= 1
    edge = room.choice[room.waiting[left]]
    for side in range(2):
        if edges.tails[edge, side] < room.choice.shape[0]:
            room.waiting[left] = edges.tails[edge, side]
            left += 1
    return edge, left


@numba.njit(cache=True, **UNCOUNTED)
def broken(values: Array) -> bool:
    """Whether there is NaN, which no comparison finds."""
    others = 0
    for place in range(values.shape[0]):
        others += values[place] != values[place]
    return others > 0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def weight_of(edge: Scalar, given: Array, opened: Array, edges: Edges) -> Scalar:
    """Of one edge, for scores [D + 1] and gates [G + 1] of one row, of which the last are 0: `Hypergraph.weights`."""
    value = given[edges.coordinates[edge, 0]]
    for place in range(1, edges.coordinates.shape[1]):
        value += given[edges.coordinates[edge, place]]
    return value + opened[edges.gates[edge]]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def switch_on_edge(edge: Scalar, edges: Edges, structure: Array) -> None:
    """Adds the coordinates of an edge to a structure [D]."""
    for place in range(edges.coordinates.shape[1]):
        if edges.coordinates[edge, place] < structure.shape[0]:
            structure[edges.coordinates[edge, place]] += 1


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def climb(given: Array, opened: Array, edges: Edges, chart: Array, choice: Array) -> None:
    """From the leaves up: the value of each node into chart [N + 1], and the first edge that has it into choice [N]."""
    for node in range(choice.shape[0]):
        most, chosen = -np.inf, edges.start[node]
        for edge in range(edges.start[node], edges.start[node + 1]):
            value = weight_of(edge, given, opened, edges)
            value += chart[edges.tails[edge, 0]]
            value += chart[edges.tails[edge, 1]]
            if value > most:
                most, chosen = value, edge
        chart[node], choice[node] = most, chosen
