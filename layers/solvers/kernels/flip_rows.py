"""Top-k sparsemax on the cube row by row, compiled for the CPU: see `flips`, whose fields these are.

Rows are independent. Nothing of the size of the atoms is written but the atoms themselves.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ....kernels import runs as runs
from ....kernels.ordering import order, room
from ....kernels.selection import Sieve, sieve_of, smallest
from ....kernels.vectors import UNCOUNTED, Array, power_below
from ....oracles.cube import LEAST_TOTAL

SLACK = 1e-9  # far more than rounding makes of numbers of which those that matter are at most 1


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


class Work(NamedTuple):
    """What is computed of one row at a time, for m bits and n sets of flips.

    Attributes:
        size: [D] |t|.
        cost: [m] the smallest.
        sieve: to find these.
        total: [n] what each set costs.
        rounded: [n] the same in 40 bits, then of some of them.
        sets: [n] which.
        ranks, places: what `ordering.order` is given, for n.
    """

    size: Array
    cost: Array
    sieve: Sieve
    total: Array
    rounded: Array
    sets: Array
    ranks: Array
    places: Array


def work_of(dim: int, width: int, sets: int) -> Work:
    """Room for so many bits, of which so many can be flipped, in so many sets."""
    rounded, ranks = np.empty(room(sets)), np.empty(room(sets), np.int64)
    which, places = np.empty(sets, np.int64), np.empty(sets, np.int64)
    return Work(np.empty(dim), np.empty(width), sieve_of(dim, width), np.empty(sets), rounded, which, ranks, places)


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def find(scores: Array, rest: Array, last: Array, work: Work, rows: Rows) -> None:
    """The k structures of largest <a, t> and the sparsemax of these numbers, for scores t [B, D].

    Args:
        scores: any, but number 0 says where they are NaN or +inf.
        rest, last: [n] a tree of sets of flips: set s is set rest[s] < s and the bit order[last[s]]; set 0 is empty.
        work: anything.
        rows: what is found.
    """
    width, k = rows.order.shape[1], rows.chosen.shape[1]
    for row in range(scores.shape[0]):
        rows.number[row] = 0
        if not _sizes(scores[row], work.size):
            continue
        smallest(work.size, work.sieve, rows.order[row])
        for place in range(width):
            bit = rows.order[row, place]
            rows.change[row, place] = -1.0 if scores[row, bit] > 0 else 1.0
            work.cost[place] = work.size[bit]
        _add_up(work.cost, rest, last, work.total, work.rounded)
        found = _least(work, rows.chosen[row])
        number = _project(work.total, found, rows.chosen[row], rows.weights[row])
        rows.number[row], rows.exact[row] = number, number < k


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _sizes(scores: Array, size: Array) -> bool:
    """|t| into size [D]; False: NaN or +inf."""
    others = 0
    for place in range(scores.shape[0]):
        others += not scores[place] < math.inf
        size[place] = abs(scores[place])
    return others == 0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _add_up(cost: Array, rest: Array, last: Array, total: Array, rounded: Array) -> None:
    """What each set of flips costs, as it is and in 40 bits, so that totals tie that are equal on paper."""
    total[0] = 0.0
    for place in range(1, len(rest)):
        total[place] = total[rest[place]] + cost[last[place]]
    for place in range(len(rest)):
        value = total[place]
        grid = power_below(max(value, LEAST_TOTAL)) * 2.0**-39  # pyright: ignore[reportCallIssue]
        rounded[place] = np.rint(value / grid) * grid if value < math.inf else value


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _least(work: Work, chosen: Array) -> int:
    """The sets of least cost in order, of equal ones the first, into chosen: all that can have mass; returns how many."""
    bound, count = _bound(work.rounded, min(len(chosen), len(work.sets))), 0
    for place in range(len(work.sets)):
        value = work.rounded[place]
        work.rounded[count], work.sets[count] = value, place
        count += value <= bound
    order(work.rounded, count, work.ranks, work.places)
    found = min(len(chosen), count)
    for place in range(found):
        chosen[place] = work.sets[work.places[place]]
    return found


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _bound(costs: Array, k: int) -> float:
    """What a set costs at most that has mass: the multiplier of sparsemax over any k sets is at most that over the k best."""
    level, inside, before = -1.0, k, -1
    while inside != before:
        before, inside, total = inside, 0, 1.0
        for place in range(k):
            if -costs[place] > level:
                total += costs[place]
                inside += 1
        level = -total / inside
    return -level + SLACK


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
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


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
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


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
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


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
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
