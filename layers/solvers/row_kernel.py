"""The active set method's iteration, compiled for the CPU: row by row, each in one pass over its own small working set.

In tensor operations an iteration is a hundred calls, each of which reads or writes the whole batch. Row by row all of it
stays in the processor's cache. This is the iteration of `active_set._Rows`, line by line, and tests hold the two together.
A row's arithmetic depends on that row alone, not on the batch around it nor on how many slots others need. Importing this
module needs Numba; `active_set` does so only where it is installed. What is called with many arrays is inlined: a call copies
their descriptions. Numba keeps what it has compiled until the file changes in which it stands: after a change here,
`row_results` has to be compiled again, too (delete its `__pycache__`).
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ..kernels.vectors import Array
from .kinds import AT_MOST, CUBE, SIMPLEX
from .limits import POLL, STALE, Limits


class Problem(NamedTuple):
    """What does not change. Everything but `origin` is relative to the origin and in units, as in `active_set._Rows`."""

    target: Array  # [B, R]
    prices: Array  # [B, D - R]
    origin: Array  # [B, D]
    unit: Array  # [B]
    scale: Array  # [B]
    regularized: Array  # [R] int64
    rest: Array  # [D - R] int64


class Rows(NamedTuple):
    """The state of every row, updated in place; S slots, of which a row has used no more than the first `high`.

    Atoms are int8 where that is exact, as for 0/1 structures: an eighth of the memory to go through in every iteration.
    """

    # These three hold anything in slots that were never used.
    atoms: Array  # [B, S, R] the atoms where they are regularised, relative to the origin and in units
    vertices: Array  # [B, S, D] the atoms as the oracle gave them
    inverse: Array  # [B, S, S], see `WorkingSet`
    on: Array  # [B, S] bool
    weights: Array  # [B, S]
    gains: Array  # [B, S]
    high: Array  # [B] int64
    mean: Array  # [B, R]
    reach: Array  # [B, R]
    reach_of_rest: Array  # [B, D - R]
    dropping: Array  # [B] int64
    stalled: Array  # [B] int64
    iterations: Array  # [B] int64
    gap: Array  # [B]
    exact: Array  # [B] bool
    converged: Array  # [B] bool


class Asks(NamedTuple):
    """What is asked of an oracle that is compiled: `kinds`, and `base.Ties`."""

    kind: int
    budget: int
    grid: Array  # [B, D]
    tie_break: Array  # [D]


class Scratch(NamedTuple):
    """What is computed of one row; by slot, zero where a slot is not in use, so that products with H need no index."""

    residual: Array  # [R] t - A p
    found: Array  # [R] the oracle's answer, relative to the origin and in units
    ones: Array  # [S] 1 where a slot is in use
    deviation: Array  # [S] how far each slope is from the others
    gram: Array  # [S] <(a_s, 1), (found, 1)>
    change: Array  # [S]
    step: Array  # [S] of the weights


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
def add_combination(into: Array, scale: float, weights: Array, atoms: Array) -> None:
    """into += scale sum_s w_s a_s over the positive weights, four atoms at a time."""
    chosen = np.empty(weights.shape[0], np.int64)
    count = 0
    for s in range(weights.shape[0]):
        if weights[s] > 0.0:
            chosen[count] = s
            count += 1
    for start in range(0, count - 3, 4):
        i, j, k, m = chosen[start], chosen[start + 1], chosen[start + 2], chosen[start + 3]
        p, q, u, v = scale * weights[i], scale * weights[j], scale * weights[k], scale * weights[m]
        one, two, three, four = atoms[i], atoms[j], atoms[k], atoms[m]
        for r in range(into.shape[0]):
            into[r] += p * one[r] + q * two[r] + u * three[r] + v * four[r]
    for place in range(count - count % 4, count):
        add_scaled(into, float(scale * weights[chosen[place]]), atoms[chosen[place]])


@numba.njit(cache=True)
def update(inverse: Array, change: Array, pivot: float) -> None:
    """H += y y' / pivot for the change y, in the slots that y has."""
    slots = change.shape[0]
    for s in range(slots):
        if change[s] != 0.0:
            add_scaled(inverse[s, :slots], change[s] / pivot, change)


@numba.njit(cache=True)
def remove(slot: int, on: Array, inverse: Array) -> None:
    """Takes the atom of a slot out of H: `WorkingSet.removal`."""
    update(inverse, inverse[slot, : on.shape[0]].copy(), -inverse[slot, slot])
    on[slot] = False


@numba.njit(inline="always", cache=True)
def combine(on: Array, inverse: Array, gram: Array, combination: Array) -> None:
    """`WorkingSet.combination`: H g into `combination`, [S]."""
    slots = on.shape[0]
    for s in range(slots):
        combination[s] = dot(inverse[s, :slots], gram[:slots]) if on[s] else 0.0


@numba.njit(inline="always", cache=True)
def deviations(on: Array, weights: Array, gains: Array, atoms: Array, residual: Array, ones: Array, deviation: Array) -> float:
    """Into `deviation` [S] the slopes <a_s, t - A p>, less their mean under the weights, which is returned; `ones` [S] too."""
    level = 0.0
    for s in range(on.shape[0]):
        ones[s], deviation[s] = on[s], 0.0
        if on[s]:
            deviation[s] = dot(atoms[s], residual) + gains[s]
            level += weights[s] * deviation[s]
    for s in range(on.shape[0]):
        deviation[s] -= level * ones[s]
    return level


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
    remove(leaving, on, inverse)
    return leaving


@numba.njit(nogil=True, error_model="numpy", cache=True)
def residuals(live: Array, problem: Problem, rows: Rows, out: Array) -> None:
    """The gradients of the objective at the means of the rows `live` [n], as the oracle takes them: into out [n, D]."""
    for place in range(live.shape[0]):
        row = live[place]
        unit = problem.unit[row]
        for r in range(problem.regularized.shape[0]):
            out[place, problem.regularized[r]] = (problem.target[row, r] - rows.mean[row, r]) * unit
        for r in range(problem.rest.shape[0]):
            out[place, problem.rest[r]] = problem.prices[row, r] * unit


@numba.njit(nogil=True, error_model="numpy", cache=True)
def advance(live: Array, vertex: Array, limits: Limits, problem: Problem, rows: Rows) -> None:
    """One iteration of the rows `live` [n], after the oracle's answers, vertex [n, D].

    Rows that have not converged test, add or drop one atom, and take a Newton step as far as it is feasible. Every row needs a
    free slot, and answers that the dtype of the atoms holds.
    """
    width, slots = problem.regularized.shape[0], rows.on.shape[1]
    by_slot = np.zeros((5, slots))
    scratch = Scratch(np.empty(width), np.empty(width), by_slot[0], by_slot[1], by_slot[2], by_slot[3], by_slot[4])
    for place in range(live.shape[0]):
        if not rows.converged[live[place]]:
            _iterate(live[place], vertex[place], limits, problem, rows, scratch)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def run(live: Array, asks: Asks, most: int, limits: Limits, problem: Problem, rows: Rows) -> None:
    """Every iteration of the rows `live` [n], one row after the other, with the oracle of the kind asked.

    A row is left where it has converged, has done `most` iterations, is to be factorised afresh, or has no free slot but could
    have one.
    """
    width, slots, dim = problem.regularized.shape[0], rows.on.shape[1], problem.origin.shape[1]
    by_slot = np.zeros((5, slots))
    scratch = Scratch(np.empty(width), np.empty(width), by_slot[0], by_slot[1], by_slot[2], by_slot[3], by_slot[4])
    asked, vertex, work = np.empty(dim), np.empty(dim), np.empty(dim)
    for row in live:
        while not rows.converged[row] and rows.iterations[row] < most:
            if rows.high[row] == slots and slots < width + 2:
                break
            if rows.iterations[row] % POLL == 0 and rows.stalled[row] >= STALE:
                break
            share = 0.0 if rows.exact[row] else 1.0
            for d in range(dim):
                size = asks.grid[row, d]
                residual = (problem.target[row, d] - rows.mean[row, d]) * problem.unit[row]
                asked[d] = (np.rint(residual / size) + share * asks.tie_break[d]) * size
            _maximize(asks.kind, asks.budget, asked, work, vertex)
            _iterate(row, vertex, limits, problem, rows, scratch)


@numba.njit(error_model="numpy", inline="always", cache=True)
def _maximize(kind: int, budget: int, scores: Array, work: Array, vertex: Array) -> None:
    """`maximize` of the polytopes in `kinds`, ties and all: into `vertex` [D]."""
    dim = scores.shape[0]
    if kind == SIMPLEX:
        vertex[:] = 0.0
        vertex[np.argmax(scores)] = 1.0
        return
    positive = 0
    for d in range(dim):
        vertex[d] = 1.0 if scores[d] > 0.0 else 0.0
        positive += scores[d] > 0.0
        work[d] = scores[d]
    if kind == CUBE or (kind == AT_MOST and positive <= budget):
        return
    vertex[:] = 0.0
    if budget == 0:
        return
    last = np.partition(work, dim - budget)[dim - budget]
    left = budget
    for d in range(dim):
        if scores[d] > last:
            vertex[d] = 1.0
            left -= 1
    for d in range(dim):  # of those that tie at the last place, the first
        if left > 0 and scores[d] == last:
            vertex[d] = 1.0
            left -= 1


@numba.njit(nogil=True, cache=True)
def are_signs(values: Array) -> bool:
    """Whether all values [n, D] are -1, 0 or 1."""
    others = 0
    for row in range(values.shape[0]):
        for place in range(values.shape[1]):
            value = values[row, place]
            others += value * value * value != value
    return others == 0


@numba.njit(error_model="numpy", inline="always", cache=True)
def _iterate(row: int, vertex: Array, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch) -> None:
    gain, terms = _relate(row, vertex, problem, rows, scratch)
    noise = 8 * np.finfo(np.float64).eps * terms
    on, deviation, drop = rows.on[row, : rows.high[row]], scratch.deviation, rows.dropping[row]
    level = deviations(on, rows.weights[row], rows.gains[row], rows.atoms[row], scratch.residual, scratch.ones, deviation)
    spread = 0.0
    for s in range(on.shape[0]):
        spread = max(spread, abs(deviation[s]))
    settled = drop < 0 and spread <= limits.settled * problem.scale[row] + noise
    gap = dot(scratch.residual, scratch.found) + gain - level
    exhausted = False
    if settled:
        rows.gap[row] = max(gap, 0.0)
        exhausted = gap <= limits.tol * problem.scale[row] + noise
        if exhausted and rows.exact[row]:
            rows.converged[row] = True
            return
        rows.exact[row] = rows.exact[row] or exhausted
    rows.iterations[row] += 1

    moved = exhausted or drop >= 0
    if drop >= 0:
        remove(drop, on, rows.inverse[row])
        scratch.ones[drop], deviation[drop] = 0.0, 0.0
    elif settled and not exhausted:
        moved = _add(row, vertex, gain, gap, limits, problem, rows, scratch)
    rows.stalled[row] = 0 if moved else rows.stalled[row] + 1
    _move(row, limits, rows, scratch)


@numba.njit(error_model="numpy", inline="always", cache=True)
def _relate(row: int, vertex: Array, problem: Problem, rows: Rows, scratch: Scratch) -> tuple[float, float]:
    """Fills in `residual` and `found`.

    Returns what the vertex gains in the coordinates that are not regularised, and the size of the terms in its products.
    """
    unit = problem.unit[row]
    gain, terms = 0.0, 0.0
    for r in range(problem.regularized.shape[0]):
        target, d = problem.target[row, r], problem.regularized[r]
        value = (vertex[d] - problem.origin[row, d]) / unit
        scratch.found[r], scratch.residual[r] = value, target - rows.mean[row, r]
        rows.reach[row, r] = max(rows.reach[row, r], abs(value))
        terms += (abs(target) + rows.reach[row, r]) * rows.reach[row, r]
    for r in range(problem.rest.shape[0]):
        price, d = problem.prices[row, r], problem.rest[r]
        value = (vertex[d] - problem.origin[row, d]) / unit
        gain += value * price
        rows.reach_of_rest[row, r] = max(rows.reach_of_rest[row, r], abs(value))
        terms += abs(price) * rows.reach_of_rest[row, r]
    return gain, terms


@numba.njit(error_model="numpy", inline="always", cache=True)
def _add(
    row: int, vertex: Array, gain: float, gap: float, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch
) -> bool:
    """Adds what the oracle found to the atoms, if it is not an affine combination of them; whether it did."""
    slots = rows.high[row]  # those that were ever in use
    on, weights, atoms, inverse = rows.on[row], rows.weights[row], rows.atoms[row], rows.inverse[row]
    found, gram, change = scratch.found, scratch.gram, scratch.change
    slot = slots
    for s in range(slots):
        gram[s] = dot(atoms[s], found) + 1.0 if on[s] else 0.0
        if not on[s]:
            slot = min(slot, s)
    if slot == on.shape[0]:
        return False
    size, start = dot(found, found), 0.0
    least = limits.pivot_noise * (1.0 + size)
    combine(on[:slots], inverse, gram, change)
    pivot = 1.0 + size - dot(gram[:slots], change[:slots])
    if pivot <= least:
        leaving = -1
        if problem.rest.shape[0] > 0:
            leaving = make_way(limits.weight_noise, change[:slots], on[:slots], weights[:slots], inverse)
        if leaving < 0:
            return False
        # What left had a share in the new atom, so that this is independent of those that stay, though maybe hardly so.
        slot, start = leaving, weights[leaving]
        gram[slot] = 0.0
        combine(on[:slots], inverse, gram, change)
        pivot = max(1.0 + size - dot(gram[:slots], change[:slots]), least)
    if slot == slots:
        slots += 1
        rows.high[row] = slots
        inverse[slot, :slots], inverse[:slots, slot] = 0.0, 0.0
    change[slot] = -1.0
    update(inverse, change[:slots], pivot)
    for r in range(found.shape[0]):
        atoms[slot, r] = found[r]
    for d in range(vertex.shape[0]):
        rows.vertices[row, slot, d] = vertex[d]
    rows.gains[row, slot], weights[slot], on[slot] = gain, start, True
    scratch.ones[slot], scratch.deviation[slot] = 1.0, gap
    return True


@numba.njit(error_model="numpy", inline="always", cache=True)
def _move(row: int, limits: Limits, rows: Rows, scratch: Scratch) -> None:
    """The Newton step on the weights, as far as they stay nonnegative (paper eq. 15), and the mean there."""
    slots = rows.high[row]
    weights, step, mean = rows.weights[row, :slots], scratch.step, rows.mean[row]
    newton_step(rows.on[row, :slots], rows.inverse[row], scratch.deviation[:slots], scratch.ones[:slots], step, scratch.change)
    reached = math.inf
    for s in range(slots):
        full = weights[s] + step[s]
        if full < -limits.weight_noise:
            reached = min(reached, weights[s] / (weights[s] - full))
    blocking = -1
    for s in range(slots):
        full = weights[s] + step[s]
        near = full < -limits.weight_noise and weights[s] / (weights[s] - full) <= reached + limits.weight_noise
        if reached <= 1.0 and blocking < 0 and near:
            blocking = s
    rows.dropping[row] = blocking
    for s in range(slots):
        weights[s] = 0.0 if s == blocking else max(weights[s] + min(reached, 1.0) * step[s], 0.0)
    mean[:] = 0.0
    add_combination(mean, 1.0, weights, rows.atoms[row])


@numba.njit(error_model="numpy", cache=True)
def newton_step(on: Array, inverse: Array, deviation: Array, ones: Array, step: Array, level: Array) -> float:
    """`WorkingSet.step`: into `step`; also H 1 into `level` [S], and 1'H 1 as the result."""
    slots = on.shape[0]
    along, across = 0.0, 0.0
    for s in range(slots):
        step[s], level[s] = 0.0, 0.0
        if on[s]:
            step[s] = dot(inverse[s, :slots], deviation)
            level[s] = dot(inverse[s, :slots], ones)
            along += step[s]
            across += level[s]
    for s in range(slots):
        step[s] -= along / across * level[s]
    return across
