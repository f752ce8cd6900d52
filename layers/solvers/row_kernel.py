"""One iteration of the active set method, compiled for the CPU: row by row, each in one pass over its own small working set.

In tensor operations an iteration is a hundred calls, each of which reads or writes the whole batch. Row by row all of it
stays in the processor's cache. This is the iteration of `active_set._Rows._advance`, line by line, and tests hold the two
together. Importing this module needs Numba; `active_set` does so only where it is installed.
"""

import math

import numba
import numpy as np

Array = np.ndarray


# Sums may be reordered, so that they can use vector instructions; the order is fixed when the code is compiled.
@numba.njit(fastmath={"reassoc", "contract"}, cache=True)
def dot(left: Array, right: Array) -> float:
    """<left, right>."""
    total = 0.0
    for place in range(left.shape[0]):
        total += left[place] * right[place]
    return total


@numba.njit(cache=True)
def add_scaled(into: Array, scale: float, values: Array) -> None:
    """into += scale values."""
    for place in range(into.shape[0]):
        into[place] += scale * values[place]


@numba.njit(cache=True)
def make_way(weight_noise: float, combination: Array, on: Array, weights: Array, inverse: Array) -> int:
    """`active_set._Rows._make_way` for one row; the slot that is free now, -1 for none."""
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
    pivot = inverse[leaving, leaving]
    column = inverse[leaving].copy()
    for s in range(slots):
        if column[s] != 0.0:
            add_scaled(inverse[s], -column[s] / pivot, column)
    on[leaving] = False
    return leaving


@numba.njit(nogil=True, error_model="numpy", cache=True)
def advance(
    weight_noise: float,
    pivot_noise: float,
    partly: bool,  # whether there are coordinates that are not regularised
    residual: Array,  # [B, R] t - A p
    vertex: Array,  # [B, D] what the oracle answered
    found: Array,  # [B, R] the same relative to the origin, where it is regularised
    gain: Array,  # [B] what it gains elsewhere
    settled_at: Array,  # [B] spread of the slopes at which weights count as optimal
    enough: Array,  # [B] gap at which a row has converged
    atoms: Array,  # [B, S, R], and all that follows, is updated in place
    vertices: Array,  # [B, S, D]
    on: Array,  # [B, S] bool
    inverse: Array,  # [B, S, S]
    weights: Array,  # [B, S]
    gains: Array,  # [B, S]
    mean: Array,  # [B, R]
    dropping: Array,  # [B] int64
    stalled: Array,  # [B] int64
    iterations: Array,  # [B] int64
    gaps: Array,  # [B]
    exact: Array,  # [B] bool
    converged: Array,  # [B] bool
) -> None:
    """One iteration of every row that has not converged: test, add or drop one atom, take a feasible Newton step."""
    batch, slots = on.shape
    # By slot, zero where a slot is not in use, so that products with the rows of the inverse need no index.
    ones, deviation, gram, change = np.zeros(slots), np.zeros(slots), np.zeros(slots), np.zeros(slots)
    step = np.empty(slots)
    for row in range(batch):
        if converged[row]:
            continue
        slot = -1
        level = 0.0
        for s in range(slots):
            ones[s] = on[row, s]
            deviation[s], gram[s] = 0.0, 0.0
            if on[row, s]:
                deviation[s] = dot(atoms[row, s], residual[row]) + gains[row, s]
                level += weights[row, s] * deviation[s]
            elif slot < 0:
                slot = s
        spread = 0.0
        for s in range(slots):
            deviation[s] -= level * ones[s]
            spread = max(spread, abs(deviation[s]))

        drop = dropping[row]
        settled = drop < 0 and spread <= settled_at[row]
        gap = dot(residual[row], found[row]) + gain[row] - level
        exhausted = False
        if settled:
            gaps[row] = max(gap, 0.0)
            exhausted = gap <= enough[row]
            if exhausted and exact[row]:
                converged[row] = True
                continue
            exact[row] = exact[row] or exhausted
        iterations[row] += 1

        added = False
        if settled and not exhausted and slot >= 0:
            size = dot(found[row], found[row])
            for s in range(slots):
                if on[row, s]:
                    gram[s] = dot(atoms[row, s], found[row]) + 1.0
            for s in range(slots):
                change[s] = dot(inverse[row, s], gram) if on[row, s] else 0.0
            pivot = 1.0 + size - dot(gram, change)
            least = pivot_noise * (1.0 + size)
            added = pivot > least
            start = 0.0
            if partly and not added:
                leaving = make_way(weight_noise, change, on[row], weights[row], inverse[row])
                if leaving >= 0:
                    added = True
                    slot = leaving
                    start = weights[row, slot]
                    gram[slot] = 0.0
                    for s in range(slots):
                        change[s] = dot(inverse[row, s], gram) if on[row, s] else 0.0
                    pivot = max(1.0 + size - dot(gram, change), least)
            if added:
                change[slot] = -1.0
                for s in range(slots):
                    if change[s] != 0.0:
                        add_scaled(inverse[row, s], change[s] / pivot, change)
                atoms[row, slot] = found[row]
                vertices[row, slot] = vertex[row]
                gains[row, slot] = gain[row]
                on[row, slot] = True
                ones[slot] = 1.0
                weights[row, slot] = start
                deviation[slot] = gap
        elif drop >= 0:
            pivot = inverse[row, drop, drop]
            change[:] = inverse[row, drop]
            for s in range(slots):
                if change[s] != 0.0:
                    add_scaled(inverse[row, s], -change[s] / pivot, change)
            on[row, drop] = False
            ones[drop] = 0.0
            deviation[drop] = 0.0
        stalled[row] = 0 if added or drop >= 0 or exhausted else stalled[row] + 1

        along, across = 0.0, 0.0
        for s in range(slots):
            step[s], change[s] = 0.0, 0.0
            if on[row, s]:
                step[s] = dot(inverse[row, s], deviation)
                change[s] = dot(inverse[row, s], ones)
                along += step[s]
                across += change[s]
        reached = math.inf
        for s in range(slots):
            step[s] -= along / across * change[s]  # the Newton step
            full = weights[row, s] + step[s]
            if full < -weight_noise:
                reached = min(reached, weights[row, s] / (weights[row, s] - full))
        blocking = -1
        for s in range(slots):
            full = weights[row, s] + step[s]
            near = full < -weight_noise and weights[row, s] / (weights[row, s] - full) <= reached + weight_noise
            if reached <= 1.0 and blocking < 0 and near:
                blocking = s
        dropping[row] = blocking
        mean[row] = 0.0
        for s in range(slots):
            weights[row, s] = 0.0 if s == blocking else max(weights[row, s] + min(reached, 1.0) * step[s], 0.0)
            if weights[row, s] > 0.0:
                add_scaled(mean[row], weights[row, s], atoms[row, s])
