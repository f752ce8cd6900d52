"""Top-k sparsemax on the cube row by row, compiled for the CPU: see `flips`, whose fields these are.

Rows are independent. Nothing of the size of the atoms is written but the atoms themselves.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ...kernels.vectors import Array
from ...oracles.cube import LEAST_TOTAL


class Rows(NamedTuple):
    """The structures of each row that have mass, told by what they flip.

    Attributes:
        order: [B, m] int32, the bits of smallest |t|, smallest first.
        change: [B, m] float64, what flipping these adds to them: 1 or -1.
        chosen: [B, k] int32, the sets of flips that have mass, as many as `number` says, of least cost first.
        number: [B] int64, how many; 0 where scores are not finite or `-inf`.
        weights: [B, k] float64, theirs.
        exact: [B] bool, as in `TopKStats`.
    """

    order: Array
    change: Array
    chosen: Array
    number: Array
    weights: Array
    exact: Array


@numba.njit(nogil=True, error_model="numpy", cache=True)
def find(scores: Array, rest: Array, last: Array, rows: Rows) -> None:
    """The k structures of largest <a, t> and the sparsemax of these numbers, for scores t [B, D].

    Args:
        scores: any, but number 0 says where they are NaN or +inf.
        rest, last: [n] a tree of sets of flips: set s is set rest[s] < s and the bit order[last[s]]; set 0 is empty.
        rows: what is found.
    """
    width, k = rows.order.shape[1], rows.chosen.shape[1]
    size, cost, total, rounded = np.empty(width + 1), np.empty(width), np.empty(len(rest)), np.empty(len(rest))
    for row in range(scores.shape[0]):
        rows.number[row] = 0
        if not _smallest(scores[row], size, rows.order[row]):
            continue
        for place in range(width):
            rows.change[row, place] = -1.0 if scores[row, rows.order[row, place]] > 0 else 1.0
            cost[place] = size[place]
        _add_up(cost, rest, last, total, rounded)
        found = _least(rounded, rows.chosen[row])
        number = _project(total, found, rows.chosen[row], rows.weights[row])
        rows.number[row], rows.exact[row] = number, number < k or found < k


@numba.njit(error_model="numpy", inline="always", cache=True)
def _smallest(scores: Array, size: Array, order: Array) -> bool:
    """The smallest |t| in order, of equal ones the first, into size [m + 1] and where into order [m]; False: NaN or +inf."""
    width, held = len(order), 0
    for place in range(len(scores)):
        value = abs(scores[place])
        if not scores[place] < math.inf:
            return False
        if held == width and (width == 0 or value >= size[width - 1]):
            continue
        here = min(held, width - 1)
        held = here + 1
        while here > 0 and size[here - 1] > value:
            size[here], order[here] = size[here - 1], order[here - 1]
            here -= 1
        size[here], order[here] = value, place
    return True


@numba.njit(error_model="numpy", inline="always", cache=True)
def _add_up(cost: Array, rest: Array, last: Array, total: Array, rounded: Array) -> None:
    """What each set of flips costs, as it is and in 40 bits, so that totals tie that are equal on paper."""
    total[0], rounded[0] = 0.0, 0.0
    for place in range(1, len(rest)):
        value = total[rest[place]] + cost[last[place]]
        total[place], rounded[place] = value, value
        if value < math.inf:
            grid = math.ldexp(1.0, math.frexp(max(value, LEAST_TOTAL))[1] - 40)
            rounded[place] = np.rint(value / grid) * grid


@numba.njit(error_model="numpy", inline="always", cache=True)
def _least(rounded: Array, chosen: Array) -> int:
    """The sets of least cost in order, of equal ones the first, into chosen; returns how many there are."""
    found = 0
    for place in range(len(rounded)):
        value = rounded[place]
        if value == math.inf or (found == len(chosen) and value >= rounded[chosen[found - 1]]):
            continue
        here = min(found, len(chosen) - 1)
        found = here + 1
        while here > 0 and rounded[chosen[here - 1]] > value:
            chosen[here] = chosen[here - 1]
            here -= 1
        chosen[here] = place
    return found


@numba.njit(error_model="numpy", inline="always", cache=True)
def _project(total: Array, found: int, chosen: Array, weights: Array) -> int:
    """Sparsemax of -total over the chosen sets: those that have mass to the front, their weights; returns how many.

    The multiplier that holds for all of them rises as those below it leave (Michelot 1986), so that none comes back.
    """
    kept, before = found, 0
    level = 0.0
    while kept != before:
        level = -1.0
        for place in range(kept):
            level -= total[chosen[place]]
        level /= kept
        before, kept = kept, 0
        for place in range(before):
            if -total[chosen[place]] > level:
                chosen[kept] = chosen[place]
                kept += 1
    for place in range(kept):
        weights[place] = -total[chosen[place]] - level
    return kept


@numba.njit(nogil=True, error_model="numpy", cache=True)
def write(scores: Array, rest: Array, last: Array, rows: Rows, first: Array, atoms: Array, probs: Array) -> None:
    """The structures [N, D] and their weights [N], from `first` [B + 1] of each row on."""
    for row in range(scores.shape[0]):
        for number in range(rows.number[row]):
            place = first[row] + number
            probs[place] = rows.weights[row, number]
            for bit in range(scores.shape[1]):
                atoms[place, bit] = scores[row, bit] > 0
            flips = rows.chosen[row, number]
            while flips > 0:
                bit = rows.order[row, last[flips]]
                atoms[place, bit] = 1 - atoms[place, bit]
                flips = rest[flips]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pull(rest: Array, last: Array, rows: Rows, first: Array, gradient: Array, out: Array) -> None:
    """From a gradient in the weights [N] to the one in the scores, [B, D]."""
    for row in range(out.shape[0]):
        out[row] = 0
        mean = 0.0
        for place in range(first[row], first[row + 1]):
            mean += gradient[place]
        mean /= rows.number[row]
        for number in range(rows.number[row]):
            share, flips = gradient[first[row] + number] - mean, rows.chosen[row, number]
            while flips > 0:
                bit = last[flips]
                out[row, rows.order[row, bit]] += share * rows.change[row, bit]
                flips = rest[flips]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def push(rest: Array, last: Array, rows: Rows, first: Array, change: Array, out: Array) -> None:
    """From a change of the scores [B, D] to that of the weights, [N]."""
    for row in range(change.shape[0]):
        mean = 0.0
        for number in range(rows.number[row]):
            total, flips = 0.0, rows.chosen[row, number]
            while flips > 0:
                bit = last[flips]
                total += rows.change[row, bit] * change[row, rows.order[row, bit]]
                flips = rest[flips]
            out[first[row] + number] = total
            mean += total
        mean /= rows.number[row]
        for place in range(first[row], first[row + 1]):
            out[place] -= mean
