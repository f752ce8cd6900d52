"""Sums over the derivations of a `Hypergraph`, and the means of their structures, compiled for the CPU.

Row by row and in float64, in a chart that stays in the processor's cache. Importing this module needs Numba.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ...kernels.exponential import exp_of_negative
from ...kernels.vectors import UNCOUNTED, Array
from .derivation_rows import Edges, weight_of


class Sums(NamedTuple):
    """For what is computed of one row."""

    given: Array  # [D + 1] the scores, and 0
    opened: Array  # [G + 1] the gates, and 0
    chart: Array  # [N + 1] log sum of exp(weight) over the derivations of each node, and 0
    share: Array  # [E] in proportion to the probability of an edge given its head
    whole: Array  # [N] what shares of a node sum to; 1 where that is 0
    mass: Array  # [N + 1] the probability that a derivation of the goal needs a node, and anything
    mean: Array  # [D + 1] the mean structure, and anything


@numba.njit(nogil=True, error_model="numpy", cache=True)
def log_totals(scores: Array, gates: Array, edges: Edges, goal: int, totals: Array, means: Array) -> None:
    """Into totals [B] log sum_derivations exp(weight), into means [B, D] their gradients, for scores [B, D] and gates [B, G].

    For means of no rows, none. A row without a derivation has total -inf and mean 0.
    """
    nodes = len(edges.start) - 1
    room = Sums(
        np.zeros(scores.shape[1] + 1),
        np.zeros(gates.shape[1] + 1),
        np.zeros(nodes + 1),
        np.empty(len(edges.gates)),
        np.empty(nodes),
        np.empty(nodes + 1),
        np.empty(scores.shape[1] + 1),
    )
    for row in range(scores.shape[0]):
        room.given[:-1], room.opened[:-1] = scores[row], gates[row]
        _sum_up(edges, room)
        totals[row] = room.chart[goal]
        if means.shape[0] > 0:
            _spread(goal, edges, room)
            for d in range(means.shape[1]):
                means[row, d] = room.mean[d]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _sum_up(edges: Edges, room: Sums) -> None:
    """From the leaves up: `chart`, `share` and `whole`."""
    for node in range(room.chart.shape[0] - 1):
        first, last, peak = edges.start[node], edges.start[node + 1], -np.inf
        for edge in range(first, last):
            value = weight_of(edge, room.given, room.opened, edges)
            value += room.chart[edges.tails[edge, 0]]
            value += room.chart[edges.tails[edge, 1]]
            room.share[edge] = value
            peak = max(peak, value)
        if peak == -np.inf:
            room.chart[node], room.whole[node] = -np.inf, 1.0
            for edge in range(first, last):
                room.share[edge] = 0.0
            continue
        share, total = room.share[first:last], 0.0
        for place in range(share.shape[0]):
            share[place] = exp_of_negative(share[place] - peak)
        for place in range(share.shape[0]):
            total += share[place]
        room.chart[node], room.whole[node] = peak + math.log(total), total


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _spread(goal: int, edges: Edges, room: Sums) -> None:
    """From the goal down: `mass`, and `mean`."""
    for d in range(room.mean.shape[0]):
        room.mean[d] = 0.0
    for node in range(room.mass.shape[0]):
        room.mass[node] = 0.0
    room.mass[goal] = 1.0
    for node in range(room.mass.shape[0] - 2, -1, -1):
        mass = room.mass[node] / room.whole[node]
        if mass == 0.0:
            continue
        for edge in range(edges.start[node], edges.start[node + 1]):
            part = mass * room.share[edge]
            room.mass[edges.tails[edge, 0]] += part
            room.mass[edges.tails[edge, 1]] += part
            for place in range(edges.coordinates.shape[1]):
                room.mean[edges.coordinates[edge, place]] += part
