"""The sorted decomposition on the cube row by row, compiled for the CPU: intervals that begin at one place, see `cuts`."""

import math

import numba
import numpy as np

from ....kernels import runs as runs
from ....kernels.vectors import UNCOUNTED, Array
from ..limits import SORTED_PRUNE
from .cut_rows import NEVER, Line, certify, sort, spoilt
from .cut_rows import Rows as Rows
from .cut_rows import line_of as line_of


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def find(target: Array, line: Line, rows: Rows) -> None:
    """The cube: mu = clip(t, 0, 1), one interval [0, mu_i) a coordinate, of points [B, D]; `-inf` is off."""
    dim = target.shape[1]
    for row in range(target.shape[0]):
        coordinate = rows.coordinate[row]
        between, outside, size = 0, 0.0, 0.0
        if spoilt(target[row]):
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
        sort(line, coordinate, between)
        _nest(row, line.level, target[row], between, rows)
        rows.binding[row] = False
        certify(row, outside, size, rows)


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
def write(rows: Rows, first: Array, atoms: Array, probs: Array) -> None:
    """The structures [N, D] and their weights [N]; those of row b from first[b] on."""
    for row in range(rows.number.shape[0]):
        on, base = rows.on[row], first[row]
        for structure in range(rows.number[row]):
            probs[base + structure] = rows.weights[row, structure]
            number = np.int32(structure)
            for d in range(atoms.shape[1]):  # nothing goes off
                atoms[base + structure, d] = number >= on[d]


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def pull(rows: Rows, first: Array, gradient: Array, result: Array) -> None:
    """The scores' gradient [B, D] from that of the weights [N]: `push` transposed."""
    for row in range(result.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        result[row] = 0
        begin = 0
        while begin < between:
            cut, end = slot[begin], begin
            while end < between and slot[end] == cut:
                end += 1
            for place in range(begin, end):
                result[row, coordinate[place]] = (gradient[base + cut] - gradient[base + cut - 1]) / (end - begin)
            begin = end


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def push(rows: Rows, first: Array, change: Array, result: Array) -> None:
    """The change of the weights [N] with the scores [B, D]: of the ends of the intervals, less that of the ends before."""
    for row in range(change.shape[0]):
        coordinate, slot, between, base = rows.coordinate[row], rows.slot[row], rows.between[row], first[row]
        for n in range(base, base + rows.number[row]):
            result[n] = 0
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
