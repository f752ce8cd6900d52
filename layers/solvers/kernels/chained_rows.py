"""The sorted decomposition on the budget polytope row by row, compiled for the CPU: intervals end to end, see `cuts`."""

import math

import numba
import numpy as np

from ....kernels import runs as runs
from ....kernels.ordering import order
from ....kernels.selection import nth_largest
from ....kernels.vectors import UNCOUNTED, Array
from ..limits import CLOSED, MULTIPLIER_STEPS, SORTED_PRUNE
from .cut_rows import NEVER, Line, certify, sort, spoilt
from .cut_rows import Rows as Rows
from .cut_rows import line_of as line_of


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def find(target: Array, budget: int, exactly: bool, line: Line, rows: Rows) -> None:
    """The budget polytope: intervals end to end, of points [B, D]; `-inf` is off. Number 0 where cuts coincide."""
    dim = target.shape[1]
    for row in range(target.shape[0]):
        values, coordinate = target[row], rows.coordinate[row]
        if spoilt(values):
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
        if budget > 0:
            level = shift + origin if exactly else max(shift + origin, 0.0)
            best, terms = _bound(line.residual, level, budget)
            outside += best
            size += terms
        rows.between[row], rows.binding[row] = between, binding
        sort(line, coordinate, between)
        _chain(row, line, between, rows)
        certify(row, outside, size, rows)


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
def _bound(residual: Array, level: float, budget: int) -> tuple[float, float]:
    """A bound on max <r, v> over the structures v, for the residual r [D], and the size of its terms.

    By duality budget l + sum max(r_i - l, 0) is one for every level l, or for every l >= 0 where fewer bits may be on. It is
    the maximum itself where l is what the residual is on the fractional coordinates.
    """
    above = 0.0
    for place in range(residual.shape[0]):
        above += max(residual[place] - level, 0.0)
    return budget * level + above, budget * abs(level) + above


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


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def write(rows: Rows, first: Array, atoms: Array, probs: Array) -> None:
    """The structures [N, D] and their weights [N]; those of row b from first[b] on."""
    for row in range(rows.number.shape[0]):
        on, off, base = rows.on[row], rows.off[row], first[row]
        for structure in range(rows.number[row]):
            probs[base + structure] = rows.weights[row, structure]
            number = np.int32(structure)
            for d in range(atoms.shape[1]):
                atoms[base + structure, d] = (number >= on[d]) ^ (number >= off[d]) ^ (off[d] < on[d])


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def pull(rows: Rows, first: Array, gradient: Array, result: Array) -> None:
    """The scores' gradient [B, D] from that of the weights [N]: `push` transposed."""
    for row in range(result.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        result[row] = 0
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


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def push(rows: Rows, first: Array, change: Array, result: Array) -> None:
    """The change of the weights [N] with the scores [B, D]: of the ends of the intervals, less that of the ends before."""
    for row in range(change.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        for n in range(base, base + rows.number[row]):
            result[n] = 0
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
