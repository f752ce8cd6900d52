"""What the compiled active set method leaves: the supports, from the state of the rows when they are done."""

import math

import numba
import numpy as np

from ..kernels.vectors import Array
from .row_kernel import Problem, Rows, add_combination, deviations, newton_step, remove


@numba.njit(nogil=True, error_model="numpy", cache=True)
def prune(span: Array, least: float, rows: Rows, problem: Problem, margin: Array, count: Array) -> None:
    """Takes out atoms of less mass than `least` (at scale 1), of the rows `span` [n].

    The smallest mass there was goes into margin [B], and the number of atoms that stay into count [B].
    """
    for row in span:
        slots = rows.high[row]
        on, weights = rows.on[row, :slots], rows.weights[row, :slots]
        heaviest, margin[row] = 0.0, math.inf
        for s in range(slots):
            heaviest = max(heaviest, weights[s])
            if weights[s] > 0.0:
                margin[row] = min(margin[row], weights[s])
        total, left = 0.0, 0
        for s in range(slots):
            if on[s] and weights[s] <= least * problem.scale[row] and weights[s] < heaviest:
                remove(s, on, rows.inverse[row])
                weights[s] = 0.0
            total += weights[s]
            left += on[s]
        for s in range(slots):
            weights[s] /= total
        count[row] = left


@numba.njit(nogil=True, error_model="numpy", cache=True)
def write(span: Array, rows: Rows, problem: Problem, atoms: Array, probs: Array, sensitivity: Array) -> None:
    """The supports of the rows `span` [n], used slots first: the fields of `Support`, zero beforehand.

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
        feasible = True
        for s in range(slots):
            feasible = feasible and not weights[s] + step[s] < 0.0
        place = 0
        size = problem.unit[row] * problem.unit[row]
        for s in range(slots):
            if on[s]:
                probs[row, place] = weights[s] + step[s] if feasible else weights[s]
                for d in range(atoms.shape[2]):
                    atoms[row, place, d] = rows.vertices[row, s, d]
                other = 0
                for k in range(slots):
                    if on[k]:
                        sensitivity[row, place, other] = (inverse[s, k] - level[s] * level[k] / across) / size
                        other += 1
                place += 1
