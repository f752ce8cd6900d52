"""The linear algebra of one row of the active set method, compiled for the CPU: see `row_kernel`, and `WorkingSet`."""

import math

import numba

from ...kernels.symmetric import add_square, clear_row, read_row, times
from ...kernels.vectors import UNCOUNTED, Array


# Sums may be reordered, so that they can use vector instructions; the order is fixed when the code is compiled.
@numba.njit(fastmath={"reassoc", "contract"}, cache=True, **UNCOUNTED)
def dot(left: Array, right: Array, size: int) -> float:
    """<left, right> of the first `size` entries."""
    total = 0.0
    for place in range(size):
        total += left[place] * right[place]
    return total


@numba.njit(fastmath={"reassoc", "contract"}, cache=True, **UNCOUNTED)
def products(matrix: Array, on: Array, vector: Array, size: int, out: Array) -> None:
    """out[s] = <matrix[s], vector> of the first `size` entries, for s in use; 0 for others."""
    for s in range(on.shape[0]):
        total = 0.0
        if on[s]:
            for place in range(size):
                total += matrix[s, place] * vector[place]
        out[s] = total


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
def remove(slot: int, on: Array, inverse: Array, work: Array) -> None:
    """Takes the atom of a slot out of H: `WorkingSet.removal`. What is in `work` [S] is lost."""
    size = on.shape[0]
    read_row(inverse, slot, work[:size])
    add_square(inverse, -1.0 / work[slot], work[:size])
    clear_row(inverse, slot, size)
    on[slot] = False


@numba.njit(cache=True, **UNCOUNTED)
def center(on: Array, weights: Array, slopes: Array, ones: Array) -> float:
    """Takes from slopes [S] their mean under the weights, which is returned; `ones` [S], too, as of now."""
    level = 0.0
    for s in range(on.shape[0]):
        ones[s] = on[s]
        level += weights[s] * slopes[s] if on[s] else 0.0
    for s in range(on.shape[0]):
        slopes[s] -= level * ones[s]
    return level


@numba.njit(cache=True, **UNCOUNTED)
def make_way(weight_noise: float, combination: Array, on: Array, weights: Array, inverse: Array, work: Array) -> int:
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
    remove(leaving, on, inverse, work)
    return leaving


@numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy", cache=True, **UNCOUNTED)
def newton_step(inverse: Array, deviation: Array, ones: Array, step: Array, level: Array) -> float:
    """`WorkingSet.step`: into `step` [S]; also H 1 into `level` [S], and 1'H 1 as the result."""
    times(inverse, deviation, step)
    times(inverse, ones, level)
    along, across = 0.0, 0.0
    for s in range(step.shape[0]):
        along += step[s]
        across += level[s]
    share = along / across
    for s in range(step.shape[0]):
        step[s] -= share * level[s]
    return across
