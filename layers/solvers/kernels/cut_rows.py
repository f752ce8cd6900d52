"""Sorted decompositions row by row, compiled for the CPU: see `cuts`, whose fields these are.

Rows are independent. Nothing of the size of the atoms is written but the atoms themselves.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ....kernels import runs as runs
from ....kernels.ordering import order, room
from ....kernels.selection import nth_largest
from ....kernels.vectors import UNCOUNTED, Array
from ..limits import CLOSED, MULTIPLIER_STEPS, SORTED_PRUNE

NEVER = np.int32(2**31 - 1)


class Rows(NamedTuple):
    """Where the structures of each row change, and what the change depends on; see `cuts`.

    Attributes:
        coordinate: [B, D] int32, the fractional coordinates along the line, as many as `between` says.
        slot: [B, D] int32, of these: which cut lies at the end of each, from 1; 0 for none.
        between: [B] int64, the number of fractional coordinates.
        on, off: [B, D] int32, by coordinate: from which structure on they have it, and from which on not; NEVER is beyond all.
            If `off` is less, those before it have it too. On the cube nothing goes off, and only `on` is there.
        number: [B] int64, of structures; 0 where this form of the answer does not hold.
        binding: [B] bool, whether the sum is held fixed, so that only differences of scores count.
        weights: [B, D + 1] float64, of the structures.
        gap, margin: [B] float64, as in `SolverStats`.
        converged: [B] bool.
    """

    coordinate: Array
    slot: Array
    between: Array
    on: Array
    off: Array
    number: Array
    binding: Array
    weights: Array
    gap: Array
    margin: Array
    converged: Array


class Line(NamedTuple):
    """What is computed of one row at a time.

    Attributes:
        level: [D] the means that are strictly between 0 and 1, in the order of the line once they are sorted.
        values, ranks, places: what `ordering.order` is given.
        before: [D] int32, what is to be permuted.
        residual: [D] what the means leave of the scores.
        work: [D], of which the order is lost.
    """

    level: Array
    values: Array
    ranks: Array
    places: Array
    before: Array
    residual: Array
    work: Array


def line_of(dim: int) -> Line:
    """Room for rows of so many coordinates."""
    length = room(dim)
    level, residual, work = np.empty((3, dim))
    places, before = np.empty(dim, np.int64), np.empty(dim, np.int32)
    return Line(level, np.empty(length), np.empty(length, np.int64), places, before, residual, work)


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def find_nested(target: Array, line: Line, rows: Rows) -> None:
    """The cube: mu = clip(t, 0, 1), one interval [0, mu_i) a coordinate, of points [B, D]; `-inf` is off."""
    dim = target.shape[1]
    for row in range(target.shape[0]):
        coordinate = rows.coordinate[row]
        between, outside, size = 0, 0.0, 0.0
        if _spoilt(target[row]):
            rows.number[row] = 0
            continue
        for place in range(dim):
            value = target[row, place]
            mean = min(max(value, 0.0), 1.0)
            rows.on[row, place] = 0 if mean == 1.0 else NEVER
            if 0.0 < mean < 1.0:
                line.level[between], coordinate[between] = mean, place
                between += 1
            elif value > -math.inf:
                # The gap is 0 here and there, up to what cancels in it.
                residual = value - mean
                outside += max(residual, 0.0) - residual * mean
                size += abs(residual) * ((1.0 if residual > 0.0 else 0.0) + mean)
        _sort(line, coordinate, between)
        _nest(row, line.level, target[row], between, rows)
        rows.binding[row] = False
        _certify(row, outside, size, rows)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _nest(row: int, level: Array, target: Array, between: int, rows: Rows) -> None:
    """The nested sets of the sorted levels and their weights: differences of means of the scores over blocks."""
    coordinate, slot, weights = rows.coordinate[row], rows.slot[row], rows.weights[row]
    count, total, margin = 0, 0.0, math.inf
    above = 1.0
    for place in range(between + 1):
        below = level[place] if place < between else 0.0
        if above - below > SORTED_PRUNE:
            count += 1
            total += above - below
            margin = min(margin, above - below)
        if place < between:
            slot[place] = count
        above = below
    # What every structure has on, or none, does not count: it is not between.
    first, last = 0, between
    while first < between and slot[first] == 0:
        rows.on[row, coordinate[first]] = 0
        first += 1
    while last > first and slot[last - 1] == count:
        last -= 1
    for place in range(first, last):
        slot[place - first], coordinate[place - first] = slot[place], coordinate[place]
        rows.on[row, coordinate[place]] = slot[place]
    rows.between[row], rows.number[row], rows.margin[row] = last - first, count, margin / total
    place, upper = 0, 1.0
    for block in range(1, count):
        mean, size = 0.0, 0
        while place < last - first and slot[place] == block:
            mean += target[coordinate[place]]
            size += 1
            place += 1
        mean /= size
        weights[block - 1] = upper - mean
        upper = mean
    weights[count - 1] = upper


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def find_chained(target: Array, budget: int, exactly: bool, line: Line, rows: Rows) -> None:
    """The budget polytope: intervals end to end, of points [B, D]; `-inf` is off. Number 0 where cuts coincide."""
    dim = target.shape[1]
    for row in range(target.shape[0]):
        values, coordinate = target[row], rows.coordinate[row]
        if _spoilt(values):
            rows.number[row] = 0
            continue
        free = 0.0
        for place in range(dim):
            free += min(max(values[place], 0.0), 1.0)
        binding = exactly or free > budget
        origin, shift = 0.0, 0.0
        if budget > 0 and binding:
            for place in range(dim):
                line.work[place] = values[place]
            origin = nth_largest(line.work, budget)
            shift = _multiplier(values, origin, budget) if origin > -math.inf else math.nan  # too few are allowed
            if shift != shift:
                rows.number[row] = 0
                continue
        between = 0
        outside, size = 0.0, 0.0
        for place in range(dim):
            mean = 0.0
            if budget > 0:
                relative = values[place] - origin
                mean = min(max((min(max(relative, -2.0), 2.0) if binding else relative) - shift, 0.0), 1.0)
            rows.on[row, place], rows.off[row, place] = 0 if mean == 1.0 else NEVER, NEVER
            if 0.0 < mean < 1.0:
                line.level[between], coordinate[between] = mean, place
                between += 1
            line.residual[place] = values[place] - mean
            if mean > 0.0:  # elsewhere a score may be -inf
                outside -= line.residual[place] * mean
                size += abs(line.residual[place]) * mean
        best, largest = _best(line, budget, exactly)
        outside += best
        size += largest
        rows.between[row], rows.binding[row] = between, binding
        _sort(line, coordinate, between)
        _chain(row, line, between, rows)
        _certify(row, outside, size, rows)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _multiplier(values: Array, origin: float, budget: int) -> float:
    """The lambda in [-1, 0] with sum clip(v - origin - lambda, 0, 1) = budget, where origin is the budget-th largest value.

    Newton's method on a decreasing, piecewise linear function, kept in a bracket that is wider than what can be. Values are cut
    as in `Budget.project`. NaN if it does not end.
    """
    low, high, shift, ones_before, between_before = -1.5, 0.5, -0.5, -1, -1
    for _ in range(MULTIPLIER_STEPS):
        ones, above, total = 0, 0, 0.0
        for place in range(values.shape[0]):
            relative = min(max(values[place] - origin, -2.0), 2.0)
            is_one, is_above = relative - shift >= 1.0, relative - shift > 0.0
            ones += is_one
            above += is_above
            total += relative if is_above != is_one else 0.0
        between = above - ones
        if ones == ones_before and between == between_before:
            return shift
        excess = ones + total - shift * between - budget
        if excess > 0.0:
            low = shift
        elif excess < 0.0:
            high = shift
        else:
            return shift
        step = (total + ones - budget) / between if between > 0 else math.nan
        ones_before, between_before = -1, -1
        if low < step < high:  # at either end the excess is not 0
            ones_before, between_before = ones, between
            shift = step
        else:
            shift = low + (high - low) / 2
    return math.nan


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _best(line: Line, budget: int, exactly: bool) -> tuple[float, float]:
    """max <r, v> over the structures v, and sum |r_i| over what is on there, for the residual r."""
    residual, best, size = line.residual, 0.0, 0.0
    if budget > 0:
        for place in range(residual.shape[0]):
            line.work[place] = residual[place]
        last, left = nth_largest(line.work, budget), budget
        for place in range(residual.shape[0]):
            if residual[place] > last:
                left -= 1
                if exactly or residual[place] > 0.0:
                    best += residual[place]
                    size += abs(residual[place])
        if exactly or last > 0.0:  # and of those that tie at the last place
            best += left * last
            size += left * abs(last)
    return best, size


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _chain(row: int, line: Line, between: int, rows: Rows) -> None:
    """Where a grid of unit steps passes the ends of the intervals, and the structures that it hits meanwhile."""
    coordinate, slot, weights = rows.coordinate[row], rows.slot[row], rows.weights[row]
    end, cuts = 0.0, 0
    rows.number[row] = 0
    if between > 0:
        rows.on[row, coordinate[0]] = 0
    for place in range(between):
        end += line.level[place]
        whole = round(end)
        if place == between - 1 and rows.binding[row] and abs(end - whole) < CLOSED:
            end = whole  # no cut: there the line begins anew
            slot[place] = 0
        else:
            line.values[cuts], line.before[cuts] = end - math.floor(end), place
            cuts += 1
    order(line.values, cuts, line.ranks, line.places)
    before, margin = 0.0, math.inf
    for cut in range(cuts + 1):
        position = line.values[line.places[cut]] if cut < cuts else 1.0
        weights[cut] = position - before
        # Of cuts that coincide the structures between have no mass: they are not to be used, so that this form does not hold.
        if not weights[cut] > SORTED_PRUNE:
            return
        margin = min(margin, weights[cut])
        if cut < cuts:
            place = line.before[line.places[cut]]
            slot[place] = cut + 1
            rows.off[row, coordinate[place]] = cut + 1
            if place + 1 < between:
                rows.on[row, coordinate[place + 1]] = cut + 1
        before = position
    rows.margin[row] = margin
    rows.number[row] = cuts + 1


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _spoilt(values: Array) -> bool:
    """Whether there is NaN or +inf."""
    others = 0
    for place in range(values.shape[0]):
        others += not values[place] < math.inf
    return others > 0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _sort(line: Line, coordinate: Array, count: int) -> None:
    """Levels and coordinates by falling level, of equal ones the first first."""
    for place in range(count):
        line.values[place], line.before[place] = -line.level[place], coordinate[place]
    order(line.values, count, line.ranks, line.places)
    for place in range(count):
        line.level[place], coordinate[place] = -line.values[line.places[place]], line.before[line.places[place]]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _certify(row: int, gap: float, size: float, rows: Rows) -> None:
    """As `sorted._certify`: the gap of an exact projection is rounding noise, of the size of what cancels in it."""
    rows.gap[row] = max(gap, 0.0)
    rows.converged[row] = gap <= CLOSED + 64 * np.finfo(np.float64).eps * size


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def write(rows: Rows, chained: bool, first: Array, atoms: Array, probs: Array) -> None:
    """The structures [N, D] and their weights [N]; those of row b from first[b] on."""
    for row in range(rows.number.shape[0]):
        on, off, base = rows.on[row], rows.off[row], first[row]
        for structure in range(rows.number[row]):
            probs[base + structure] = rows.weights[row, structure]
            number = np.int32(structure)
            if chained:
                for d in range(atoms.shape[1]):
                    atoms[base + structure, d] = (number >= on[d]) ^ (number >= off[d]) ^ (off[d] < on[d])
            else:  # nothing goes off
                for d in range(atoms.shape[1]):
                    atoms[base + structure, d] = number >= on[d]


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def pull(rows: Rows, chained: bool, first: Array, gradient: Array, result: Array) -> None:
    """The scores' gradient [B, D] from that of the weights [N]: `push` transposed."""
    for row in range(result.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        result[row] = 0
        if chained:
            total, sum_of_all = 0.0, 0.0
            for place in range(between - 1, -1, -1):
                cut = slot[place]
                if cut > 0:
                    total += gradient[base + cut - 1] - gradient[base + cut]
                result[row, coordinate[place]] = total
                sum_of_all += total
            if rows.binding[row]:
                for place in range(between):
                    result[row, coordinate[place]] -= sum_of_all / between
        else:
            begin = 0
            while begin < between:
                cut, end = slot[begin], begin
                while end < between and slot[end] == cut:
                    end += 1
                for place in range(begin, end):
                    result[row, coordinate[place]] = (gradient[base + cut] - gradient[base + cut - 1]) / (end - begin)
                begin = end


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def push(rows: Rows, chained: bool, first: Array, change: Array, result: Array) -> None:
    """The change of the weights [N] with the scores [B, D]: of the ends of the intervals, less that of the ends before."""
    for row in range(change.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        for n in range(base, base + rows.number[row]):
            result[n] = 0
        if chained:
            mean, end = 0.0, 0.0
            if rows.binding[row]:
                for place in range(between):
                    mean += change[row, coordinate[place]] / between
            for place in range(between):
                end += change[row, coordinate[place]] - mean
                cut = slot[place]
                if cut > 0:
                    result[base + cut - 1] += end
                    result[base + cut] -= end
        else:
            begin = 0
            while begin < between:
                cut, end = slot[begin], begin
                mean = 0.0
                while end < between and slot[end] == cut:
                    mean += change[row, coordinate[end]]
                    end += 1
                mean /= end - begin
                result[base + cut - 1] -= mean
                result[base + cut] += mean
                begin = end
