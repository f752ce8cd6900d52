"""The best derivations of a `Hypergraph`, compiled for the CPU: row by row, in a chart that stays in the processor's cache.

Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..kernels.vectors import UNCOUNTED, Array


class Edges(NamedTuple):
    """The edges of a hypergraph with N nodes and E edges, by head; heads after all of their tails.

    Places are unsigned: one that might be negative would be looked at before each use, which takes half of the time.
    """

    start: Array  # [N + 1] uint64, where the edges of each node begin
    tails: Array  # [E, 2] uint32; N, a node that always has value one, where there are fewer
    coordinates: Array  # [E, c] uint32; D where there are fewer
    gates: Array  # [E] uint32; G where there is none


@numba.njit(nogil=True, error_model="numpy", cache=True)
def best(scores: Array, gates: Array, edges: Edges, goal: int, structures: Array, totals: Array) -> None:
    """The structures [B, D] of highest total [B], -inf if there is none, for scores [B, D] and gates [B, G]."""
    count, dim = len(edges.start) - 1, scores.shape[1]
    chart = np.zeros(count + 1, scores.dtype)
    given, opened = np.zeros(dim + 1, scores.dtype), np.zeros(gates.shape[1] + 1, scores.dtype)
    choice, waiting = np.empty(count, np.int64), np.empty(count + 1, np.int64)
    for row in range(scores.shape[0]):
        given[:dim], opened[:-1] = scores[row], gates[row]
        _climb(given, opened, edges, chart, choice)
        totals[row], structures[row] = chart[goal], 0
        waiting[0], left = goal, 1
        while left > 0:
            left -= 1
            edge = choice[waiting[left]]
            for place in range(edges.coordinates.shape[1]):
                if edges.coordinates[edge, place] < dim:
                    structures[row, edges.coordinates[edge, place]] += 1
            for side in range(2):
                if edges.tails[edge, side] < count:
                    waiting[left] = edges.tails[edge, side]
                    left += 1


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _climb(given: Array, opened: Array, edges: Edges, chart: Array, choice: Array) -> None:
    """From the leaves up: the value of each node into chart [N + 1], and the first edge that has it into choice [N].

    For scores [D + 1] and gates [G + 1] of one row, of which the last are 0.
    """
    for node in range(choice.shape[0]):
        most, chosen = -np.inf, edges.start[node]
        for edge in range(edges.start[node], edges.start[node + 1]):
            value = given[edges.coordinates[edge, 0]]
            for place in range(1, edges.coordinates.shape[1]):
                value += given[edges.coordinates[edge, place]]
            value += opened[edges.gates[edge]]
            value += chart[edges.tails[edge, 0]]
            value += chart[edges.tails[edge, 1]]
            if value > most:
                most, chosen = value, edge
        chart[node], choice[node] = most, chosen
