"""What the compiled active set method leaves: the supports, from the state of the rows when they are done."""

import math
from typing import NamedTuple

import numba
import numpy as np

from ..kernels.vectors import Array
from .row_algebra import add_combination, deviations, dot, newton_step, remove
from .row_kernel import Problem, Rows


@numba.njit(nogil=True, error_model="numpy", cache=True)
def prune(span: Array, least: float, rows: Rows, problem: Problem, margin: Array, count: Array) -> None:
    """Takes out atoms of less mass than `least` (at scale 1), of the rows `span` [n].

    The smallest mass there was goes into margin [B], and the number of atoms that stay into count [B].
    """
    for row in span:
        slots = rows.high[row]
        on, weights = rows.on[row, :slots], rows.weights[row, :slots]
        heaviest, margin[row] = 0.0, math.inf
        work = np.empty(slots)
        for s in range(slots):
            heaviest = max(heaviest, weights[s])
            if weights[s] > 0.0:
                margin[row] = min(margin[row], weights[s])
        total, left = 0.0, 0
        for s in range(slots):
            if on[s] and weights[s] <= least * problem.scale[row] and weights[s] < heaviest:
                remove(s, on, rows.inverse[row], work)
                weights[s] = 0.0
            total += weights[s]
            left += on[s]
        for s in range(slots):
            weights[s] /= total
        count[row] = left


class Places(NamedTuple):
    """Where the used slots of each row are written, one after the other: at the end of one another, or padded.

    Attributes:
        first: [B] int64, where the atoms of a row begin.
        block: [B] int64, where its sensitivity begins.
        stride: [B] int64, how far the rows of the sensitivity are apart.
    """

    first: Array
    block: Array
    stride: Array


@numba.njit(nogil=True, error_model="numpy", cache=True)
def write(
    span: Array, rows: Rows, problem: Problem, places: Places, atoms: Array, probs: Array, sensitivity: Array, means: Array
) -> None:
    """The supports of the rows `span` [n]: atoms [N, D], probs [N], sensitivity as in `Support`, flat, and their means [B, D].

    The weights are those of one more Newton step, where it is feasible.
    """
    for row in span:
        slots = rows.high[row]
        on, weights = rows.on[row, :slots], rows.weights[row, :slots]
        ones, deviation, step, level = np.zeros(slots), np.zeros(slots), np.zeros(slots), np.zeros(slots)
        residual = problem.target[row].copy()
        add_combination(residual, -1.0, weights, rows.atoms[row])
        deviations(on, weights, rows.gains[row], rows.atoms[row], residual, ones, deviation)
        inverse = rows.inverse[row]
        across = newton_step(on, inverse, deviation, ones, step, level)
        used, feasible = np.empty(slots, np.int64), True
        count = 0
        for s in range(slots):
            feasible = feasible and not weights[s] + step[s] < 0.0
            if on[s]:
                used[count] = s
                count += 1
        for s in range(slots):
            step[s] = (weights[s] + step[s] if feasible else weights[s]) if on[s] else 0.0
        means[row] = 0.0
        add_combination(means[row], 1.0, step, rows.vertices[row])
        size = problem.unit[row] * problem.unit[row]
        for place in range(count):
            s, n = used[place], places.first[row] + place
            probs[n] = step[s]
            for d in range(atoms.shape[1]):
                atoms[n, d] = rows.vertices[row, s, d]
            start = places.block[row] + place * places.stride[row]
            for other in range(count):
                k = used[other]
                sensitivity[start + other] = (inverse[s, k] - level[s] * level[k] / across) / size


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pull(first: Array, block: Array, atoms: Array, sensitivity: Array, gradient: Array, result: Array) -> None:
    """A P g row by row: from packed weights [N] to scores [B, D].

    P has no part along 1, so that atoms count relative to any one of them: where all agree the result is exactly 0.
    """
    for row in range(result.shape[0]):
        start, count = first[row], first[row + 1] - first[row]
        result[row] = 0.0
        base, given = atoms[start], gradient[start : start + count]
        for place in range(count):
            begin = block[row] + place * count
            share = dot(sensitivity[begin : begin + count], given, count)
            atom = atoms[start + place]
            for d in range(base.shape[0]):
                result[row, d] += share * (atom[d] - base[d])


@numba.njit(nogil=True, error_model="numpy", cache=True)
def push(first: Array, block: Array, atoms: Array, sensitivity: Array, change: Array, result: Array) -> None:
    """P A'dt row by row: from scores [B, D] to packed weights [N]; the transpose of `pull`."""
    for row in range(change.shape[0]):
        start, count = first[row], first[row + 1] - first[row]
        base, slopes = atoms[start], np.empty(count)
        for place in range(count):
            atom, slope = atoms[start + place], 0.0
            for d in range(base.shape[0]):
                slope += change[row, d] * (atom[d] - base[d])
            slopes[place] = slope
        for place in range(count):
            begin = block[row] + place * count
            result[start + place] = dot(sensitivity[begin : begin + count], slopes, count)
