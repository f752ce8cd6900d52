"""The linear algebra of one row of the active set method, compiled for the CPU: see `row_kernel`, and `WorkingSet`."""

import math

import numba

from ....kernels.sums import add_up, dot
from ....kernels.symmetric import add_square, clear_row, read_row, times
from ....kernels.vectors import UNCOUNTED, Array


@numba.njit(cache=True, **UNCOUNTED)
def products(matrix: Array, on: Array, vector: Array, size: int, out: Array) -> None:
    """out[s] = <matrix[s], vector> of the first `size` entries, for s in use; 0 for others."""
    for s in range(on.shape[0]):
        out[s] = dot(matrix[s], vector, size) if on[s] else 0.0


@numba.njit(cache=True, **UNCOUNTED)
def add_combination(into: Array, scale: float, weights: Array, atoms: Array) -> None:
    """into += scale sum_s w_s a_s over the positive weights, four atoms at a time."""
    i, j, k, count = 0, 0, 0, 0
    for s in range(weights.shape[0]):
        if weights[s] > 0.0:
            if count == 3:
                p, q, u, v = scale * weights[i], scale * weights[j], scale * weights[k], scale * weights[s]
                for r in range(into.shape[0]):
                    into[r] += p * atoms[i, r] + q * atoms[j, r] + u * atoms[k, r] + v * atoms[s, r]
                count = 0
            else:
                i, j, k = j, k, s
                count += 1
    # The last of i, j, k are those that are left.
    for left in range(count):
        s = k if left == count - 1 else (j if left == count - 2 else i)
        share = scale * weights[s]
        for r in range(into.shape[0]):
            into[r] += share * atoms[s, r]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def add(slot: int, pivot: float, change: Array, on: Array, inverse: Array, level: Array) -> None:
    """Puts an atom in a free slot of H and H 1: `WorkingSet.bordering`, of which `change` [S] is y but for the pivot."""
    change[slot] = -1.0
    add_square(inverse, 1.0 / pivot, change)
    _add_multiple(level, add_up(change) / pivot, change)
    on[slot] = True


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def remove(slot: int, on: Array, inverse: Array, level: Array, work: Array) -> None:
    """Takes the atom of a slot out of H and H 1: `WorkingSet.removal`. What is in `work` [S] is lost."""
    size = on.shape[0]
    column = work[:size]
    read_row(inverse, slot, column)
    add_square(inverse, -1.0 / column[slot], column)
    _add_multiple(level, -add_up(column) / column[slot], column)
    clear_row(inverse, slot, size)
    on[slot], level[slot] = False, 0.0


@numba.njit(cache=True, **UNCOUNTED)
def _add_multiple(into: Array, scale: float, values: Array) -> None:
    for place in range(values.shape[0]):
        into[place] += scale * values[place]


@numba.njit(cache=True, **UNCOUNTED)
def center(on: Array, weights: Array, slopes: Array) -> float:
    """Takes from slopes [S] their mean under the weights, which is returned; 0 where a slot is not in use."""
    mean = 0.0
    for s in range(on.shape[0]):
        mean += weights[s] * slopes[s] if on[s] else 0.0
    for s in range(on.shape[0]):
        slopes[s] = slopes[s] - mean if on[s] else 0.0
    return mean


@numba.njit(cache=True, **UNCOUNTED)
def make_way(
    weight_noise: float, combination: Array, on: Array, weights: Array, inverse: Array, level: Array, work: Array
) -> int:
    """`TensorRows._make_way` for one row; the slot that is free now, -1 for none."""
    slots = on.shape[0]
    reached = math.inf
    for s in range(slots):
        if combination[s] > weight_noise:
            reached = min(reached, weights[s] / combination[s])
    leaving = -1
    for s in range(slots):
        near = combination[s] > weight_noise and weights[s] / combination[s] <= reached + weight_noise
        if near and (leaving < 0 or combination[s] > combination[leaving]):
            leaving = s
    if leaving < 0:
        return leaving
    total = 0.0
    for s in range(slots):
        weights[s] = reached if s == leaving else max(weights[s] - reached * combination[s], 0.0)
        total += weights[s]
    for s in range(slots):
        weights[s] /= total
    remove(leaving, on, inverse, level, work)
    return leaving


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def newton_step(inverse: Array, level: Array, deviation: Array, step: Array) -> None:
    """`WorkingSet.step`: into `step` [S], for H and H 1."""
    times(inverse, deviation, step)
    share = add_up(step) / add_up(level)
    for s in range(step.shape[0]):
        step[s] -= share * level[s]
