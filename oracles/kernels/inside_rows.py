"""Sums over the derivations of a `Hypergraph`, their gradients, and samples, compiled for the CPU.

Row by row and in float64, in a chart that stays in the processor's cache. Importing this module needs Numba.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ...kernels.exponential import exponentiate
from ...kernels.lanes import LANES
from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar, maximum
from .derivation_rows import Edges, switch_on_edge, weight_of


class Sums(NamedTuple):
    """For what is computed of one row. What an edge has is in proportion to its probability given its head, `share / whole`."""

    given: Array  # [D + 1] the scores, and 0
    opened: Array  # [G + 1] the gates, and 0
    chart: Array  # [N + 1] log sum of exp(weight) over the derivations of each node, and 0
    below: Array  # [E, and room for a vector] how far the value of an edge is below the highest of its head
    share: Array  # likewise, exp of that, negated
    whole: Array  # [N] what shares of a node sum to; 1 where that is 0
    entropy: Array  # [N + 1] of the derivation of each node, and 0
    mass: Array  # [N + 1] the probability that a derivation of the goal needs a node, and anything
    change: Array  # [N + 1] the derivative in `chart`, and anything
    slope: Array  # [D + 1] the gradient, and anything


@numba.njit(nogil=True, error_model="numpy", cache=True)
def sums(scores: Array, gates: Array, edges: Edges, goal: int, of_entropy: bool, found: Array, slopes: Array) -> None:
    """Into found [B] log sum_derivations exp(weight), or the entropy of the derivation, nats; into slopes [B, D] its gradient.

    For scores [B, D] and gates [B, G]; for slopes of no rows, none. The gradient of the first is the mean structure. A row
    without a derivation has log 0 = -inf, and 0 for all else.
    """
    room = _room(scores, gates, edges)
    for row in range(scores.shape[0]):
        room.given[:-1], room.opened[:-1] = scores[row], gates[row]
        _sum_up(edges, room)
        if of_entropy:
            _find_entropies(edges, room)
        found[row] = room.entropy[goal] if of_entropy else room.chart[goal]
        if slopes.shape[0] > 0:
            _spread(goal, 1.0 if of_entropy else 0.0, 0.0 if of_entropy else 1.0, edges, room)
            for d in range(slopes.shape[1]):
                slopes[row, d] = room.slope[d]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def samples(scores: Array, gates: Array, edges: Edges, goal: int, uniform: Array, structures: Array) -> None:
    """Into structures [B, S, D] independent ones, by numbers in [0, 1) for each node, uniform [B, S, N]; likewise."""
    room, waiting = _room(scores, gates, edges), np.empty(len(edges.start), np.int64)
    for row in range(scores.shape[0]):
        room.given[:-1], room.opened[:-1] = scores[row], gates[row]
        _sum_up(edges, room)
        for place in range(structures.shape[1]):
            structures[row, place] = 0
            _draw(goal, uniform[row, place], edges, room, waiting, structures[row, place])


@numba.njit(error_model="numpy", cache=True, **COUNTED)
def _room(scores: Array, gates: Array, edges: Edges) -> Sums:
    """Of scores [*, D] and gates [*, G]."""
    nodes, width, many = len(edges.start), scores.shape[1] + 1, len(edges.gates) + LANES
    return Sums(
        given=np.zeros(width),
        opened=np.zeros(gates.shape[1] + 1),
        chart=np.zeros(nodes),
        below=np.empty(many),
        share=np.empty(many),
        whole=np.empty(nodes - 1),
        entropy=np.zeros(nodes),
        mass=np.empty(nodes),
        change=np.empty(nodes),
        slope=np.empty(width),
    )


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _sum_up(edges: Edges, room: Sums) -> None:
    """From the leaves up: `chart`, `below`, `share` and `whole`."""
    for node in range(room.whole.shape[0]):
        first, last, peak = edges.start[node], edges.start[node + 1], -np.inf
        for edge in range(first, last):
            value = weight_of(edge, room.given, room.opened, edges)
            value += room.chart[edges.tails[edge, 0]]
            value += room.chart[edges.tails[edge, 1]]
            room.below[edge] = value
            peak = maximum(peak, value)  # pyright: ignore[reportCallIssue]
        if peak == -np.inf:
            room.chart[node], room.whole[node] = -np.inf, 1.0
            for edge in range(first, last):
                room.below[edge], room.share[edge] = np.inf, 0.0
            continue
        # What is written beyond are the edges of the next node, which are to come.
        exponentiate(room.below, first, last - first, peak, room.share)
        total = 0.0
        for edge in range(first, last):
            total += room.share[edge]
        room.chart[node], room.whole[node] = peak + math.log(total), total


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _find_entropies(edges: Edges, room: Sums) -> None:
    """From the leaves up: H(node) = sum_e p_e (-log p_e + H(its tails)); no difference of large numbers."""
    for node in range(room.whole.shape[0]):
        total, least = 0.0, math.log(room.whole[node])
        for edge in range(edges.start[node], edges.start[node + 1]):
            if room.share[edge] > 0.0:
                total += room.share[edge] * (least + room.below[edge] + _entropy_below(edge, edges, room))
        room.entropy[node] = total / room.whole[node]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _entropy_below(edge: int, edges: Edges, room: Sums) -> Scalar:
    return room.entropy[edges.tails[edge, 0]] + room.entropy[edges.tails[edge, 1]]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _spread(goal: int, of_entropy: float, of_total: float, edges: Edges, room: Sums) -> None:
    """From the goal down: `slope`, of of_entropy H(goal) + of_total log Z(goal), and on the way `mass` and `change`.

    With the value v_e = weight + log Z(its tails) of an edge, d log Z(node) / dv_e = p_e and
    dH(node) / dv_e = p_e (-log p_e + H(its tails) - H(node)).
    """
    for d in range(room.slope.shape[0]):
        room.slope[d] = 0.0
    for node in range(room.mass.shape[0]):
        room.mass[node], room.change[node] = 0.0, 0.0
    room.mass[goal], room.change[goal] = of_entropy, of_total
    for node in range(room.whole.shape[0] - 1, -1, -1):
        mass, change = room.mass[node] / room.whole[node], room.change[node] / room.whole[node]
        if mass == 0.0 and change == 0.0:
            continue
        more = math.log(room.whole[node]) - room.entropy[node]
        for edge in range(edges.start[node], edges.start[node + 1]):
            share = room.share[edge]
            if share > 0.0:
                part = change * share
                one, other = edges.tails[edge, 0], edges.tails[edge, 1]
                if mass > 0.0:
                    part += mass * share * (more + room.below[edge] + _entropy_below(edge, edges, room))
                    room.mass[one] += mass * share
                    room.mass[other] += mass * share
                room.change[one] += part
                room.change[other] += part
                for place in range(edges.coordinates.shape[1]):
                    room.slope[edges.coordinates[edge, place]] += part


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _draw(goal: int, uniform: Array, edges: Edges, room: Sums, waiting: Array, structure: Array) -> None:
    """Into structure [D], 0 to begin with: from the goal down, each node's edge by its share."""
    waiting[0], left = goal, 1
    while left > 0:
        left -= 1
        node = waiting[left]
        level, cumulative, edge = uniform[node] * room.whole[node], 0.0, edges.start[node]
        for other in range(edges.start[node], edges.start[node + 1]):
            if room.share[other] > 0.0:
                edge = other
                cumulative += room.share[other]
                if cumulative > level:
                    break
        switch_on_edge(edge, edges, structure)
        for side in range(2):
            if edges.tails[edge, side] < room.whole.shape[0]:
                waiting[left] = edges.tails[edge, side]
                left += 1
