"""The active set method's iteration, compiled for the CPU: row by row, each in one pass over its own small working set.

In tensor operations an iteration is a hundred calls, each of which reads or writes the whole batch. Row by row all of it
stays in the processor's cache. This is the iteration of `TensorRows`, line by line, and tests hold the two together.
A row's arithmetic depends on that row alone, not on the batch around it nor on how many slots others need. Importing this
module needs Numba; `active_set` does so only where it is installed. What is called with many arrays is inlined: a call copies
their descriptions. Numba keeps what it has compiled until the file changes in which it stands: after a change of `row_algebra`
what calls it has to be compiled again, too (delete `__pycache__`).
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ..kernels.selection import nth_largest
from ..kernels.vectors import Array, maximum
from .kinds import AT_MOST, CUBE, SIMPLEX
from .limits import POLL, STALE, Limits
from .row_algebra import (
    UNCOUNTED,
    add_combination,
    deviations,
    dot,
    make_way,
    newton_step,
    products,
    products_of_signs,
    remove,
    update,
)


class Problem(NamedTuple):
    """What does not change. Everything but `origin` is relative to the origin and in units, as in `tensor_rows.TensorRows`."""

    target: Array  # [B, R]
    prices: Array  # [B, D - R]
    origin: Array  # [B, D]
    unit: Array  # [B]
    scale: Array  # [B]
    regularized: Array  # [R] int64
    rest: Array  # [D - R] int64


class Rows(NamedTuple):
    """The state of every row, updated in place; S slots, of which a row has used no more than the first `high`.

    Atoms are int8 where that is exact, as for 0/1 structures: an eighth of the memory to go through in every iteration. Their
    inner products are then exact too, and kept, so that slopes need only these: A't - (A'A) p. Slots come into use BLOCK at a
    time, so that loops over them are a whole number of vector instructions long.
    """

    # These hold anything in slots beyond `high`.
    atoms: Array  # [B, S, R] the atoms where they are regularised, relative to the origin and in units
    vertices: Array  # [B, S, D] the atoms as the oracle gave them
    inverse: Array  # [B, S, S], see `WorkingSet`
    gram: Array  # [B, S, S] float32, A'A, anything where one of the two is not in use; [B, 0, 0] unless atoms are int8
    on: Array  # [B, S] bool
    weights: Array  # [B, S]
    gains: Array  # [B, S] <a_s, t> where they are not regularised
    aims: Array  # [B, S] <a_s, t> where they are regularised
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


class CompiledOracle(NamedTuple):
    """An oracle that is compiled: one of `kinds`, and its `base.Ties`."""

    kind: int
    budget: int
    grid: Array  # [B, D]
    tie_break: Array  # [D]


class Scratch(NamedTuple):
    """What is computed of one row; by slot, zero to begin with and where it is not in use: products need no index."""

    residual: Array  # [R] t - A p
    found: Array  # [R] the oracle's answer, relative to the origin and in units, in the dtype of the atoms
    ones: Array  # [S] 1 where a slot is in use
    deviation: Array  # [S] how far each slope is from the others
    gram: Array  # [S] <(a_s, 1), (found, 1)>
    change: Array  # [S]
    step: Array  # [S] of the weights


# Slots that come into use at a time.
BLOCK = 16
# Slopes from inner products are sums of terms of size 1 however small the scores; below this, from the residual, they are not.
LEAST_SCALE = 2.0**-4


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def residuals(live: Array, grid: Array, tie_break: Array, problem: Problem, rows: Rows, out: Array) -> None:
    """What the rows `live` [n] ask an oracle, into out [n, D]: the gradients of the objective at their means.

    On the grid [B, D] and with the tie-break [D] of `base.Ties`; a grid of no rows is none.
    """
    target, mean, prices, regularized, rest = problem.target, rows.mean, problem.prices, problem.regularized, problem.rest
    for place in range(live.shape[0]):
        row = live[place]
        unit = problem.unit[row]
        for r in range(regularized.shape[0]):
            out[place, regularized[r]] = (target[row, r] - mean[row, r]) * unit
        for r in range(rest.shape[0]):
            out[place, rest[r]] = prices[row, r] * unit
        if grid.shape[0] > 0:
            share = 0.0 if rows.exact[row] else 1.0
            for d in range(out.shape[1]):
                size = grid[row, d]
                out[place, d] = (np.rint(out[place, d] / size) + share * tie_break[d]) * size


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def advance(live: Array, vertex: Array, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch) -> None:
    """One iteration of the rows `live` [n], after the oracle's answers, vertex [n, D].

    Rows that have not converged test, add or drop one atom, and take a Newton step as far as it is feasible. Every row needs a
    free slot, and answers that the dtype of the atoms holds.
    """
    for place in range(live.shape[0]):
        if not rows.converged[live[place]]:
            _iterate(live[place], vertex[place], limits, problem, rows, scratch)


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def run(
    live: Array, oracle: CompiledOracle, work: Array, most: int, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch
) -> None:
    """Every iteration of the rows `live` [n], one row after the other, with the oracle of the kind asked.

    A row is left where it has converged, has done `most` iterations, is to be factorised afresh, or has no free slot but could
    have one. `work` is [3, D].
    """
    slots, dim = rows.on.shape[1], problem.origin.shape[1]
    asked, vertex, ordered = work[0], work[1], work[2]
    grid, tie_break = oracle.grid, oracle.tie_break
    target, mean = problem.target, rows.mean
    for row in live:
        unit = problem.unit[row]
        while not rows.converged[row] and rows.iterations[row] < most:
            if slots < dim + 2 and rows.high[row] == slots and _used(rows.on[row]) == slots:
                break
            if rows.iterations[row] % POLL == 0 and rows.stalled[row] >= STALE:
                break
            share = 0.0 if rows.exact[row] else 1.0
            for d in range(dim):
                size = grid[row, d]
                residual = (target[row, d] - mean[row, d]) * unit
                asked[d] = (np.rint(residual / size) + share * tie_break[d]) * size
            _maximize(oracle.kind, oracle.budget, asked, ordered, vertex)
            _iterate(row, vertex, limits, problem, rows, scratch)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
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
    last = nth_largest(work, budget)
    left = budget
    for d in range(dim):
        if scores[d] > last:
            vertex[d] = 1.0
            left -= 1
    for d in range(dim):  # of those that tie at the last place, the first
        if left > 0 and scores[d] == last:
            vertex[d] = 1.0
            left -= 1


@numba.njit(cache=True, **UNCOUNTED)
def _used(on: Array) -> int:
    total = 0
    for s in range(on.shape[0]):
        total += on[s]
    return total


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def are_signs(values: Array) -> bool:
    """Whether all values [n, D] are -1, 0 or 1."""
    others = 0
    for row in range(values.shape[0]):
        for place in range(values.shape[1]):
            value = values[row, place]
            others += value * value * value != value
    return others == 0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _iterate(row: int, vertex: Array, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch) -> None:
    gain, terms = _relate(row, vertex, problem, rows, scratch)
    noise = 8 * np.finfo(np.float64).eps * terms
    on, deviation, drop = rows.on[row, : rows.high[row]], scratch.deviation, rows.dropping[row]
    if rows.gram.shape[1] > 0 and problem.scale[row] >= LEAST_SCALE:
        level = _exact_deviations(row, rows, scratch)
    else:
        level = deviations(on, rows.weights[row], rows.gains[row], rows.atoms[row], scratch.residual, scratch.ones, deviation)
    spread = 0.0
    for s in range(on.shape[0]):
        spread = max(spread, abs(deviation[s]))
    settled = drop < 0 and spread <= limits.settled * problem.scale[row] + noise
    gap = dot(scratch.residual, scratch.found, scratch.found.shape[0]) + gain - level
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
        remove(drop, on, rows.inverse[row], scratch.change)
        scratch.ones[drop], deviation[drop] = 0.0, 0.0
    elif settled and not exhausted:
        moved = _add(row, vertex, gain, gap, limits, problem, rows, scratch)
    rows.stalled[row] = 0 if moved else rows.stalled[row] + 1
    _move(row, limits, rows, scratch)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _relate(row: int, vertex: Array, problem: Problem, rows: Rows, scratch: Scratch) -> tuple[float, float]:
    """Fills in `residual` and `found`.

    Returns what the vertex gains in the coordinates that are not regularised, and the size of the terms in its products.
    """
    if problem.rest.shape[0] == 0:
        one = 1.0 / problem.unit[row]  # exact, as units are powers of two
        origin, target, mean = problem.origin[row], problem.target[row], rows.mean[row]
        return 0.0, relate_all(vertex, origin, one, target, mean, rows.reach[row], scratch.residual, scratch.found)
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


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True, **UNCOUNTED)
def relate_all(
    vertex: Array, origin: Array, per_unit: float, target: Array, mean: Array, reach: Array, residual: Array, found: Array
) -> float:
    """`_relate` where all coordinates are regularised; the size of the terms."""
    terms = 0.0
    for r in range(vertex.shape[0]):
        value = (vertex[r] - origin[r]) * per_unit
        found[r] = value
        residual[r] = target[r] - mean[r]
        reach[r] = maximum(reach[r], abs(value))  # pyright: ignore[reportCallIssue]
        terms += (abs(target[r]) + reach[r]) * reach[r]
    return terms


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _exact_deviations(row: int, rows: Rows, scratch: Scratch) -> float:
    """`deviations`, from inner products."""
    high = rows.high[row]
    on, weights, ones, deviation = rows.on[row], rows.weights[row], scratch.ones, scratch.deviation
    gram, aims, gains, level = rows.gram[row], rows.aims[row], rows.gains[row], 0.0
    products(gram, on[:high], weights, high, deviation)
    for s in range(high):
        ones[s] = on[s]
        if on[s]:
            deviation[s] = aims[s] + gains[s] - deviation[s]
            level += weights[s] * deviation[s]
    for s in range(high):
        deviation[s] -= level * ones[s]
    return level


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _add(
    row: int, vertex: Array, gain: float, gap: float, limits: Limits, problem: Problem, rows: Rows, scratch: Scratch
) -> bool:
    """Adds what the oracle found to the atoms, if it is not an affine combination of them; whether it did."""
    slots, width = rows.high[row], scratch.found.shape[0]
    on, weights, atoms, inverse = rows.on[row], rows.weights[row], rows.atoms[row], rows.inverse[row]
    found, gram, change, signs = scratch.found, scratch.gram, scratch.change, rows.gram.shape[1] > 0
    if signs:
        products_of_signs(atoms, on[:slots], found, width, gram)
    else:
        products(atoms, on[:slots], found, width, gram)
    slot = slots
    for s in range(slots):
        if on[s]:
            gram[s] += 1.0
        else:
            slot = min(slot, s)
    if slot == on.shape[0]:
        return False
    size, start = dot(found, found, width), 0.0
    least = limits.pivot_noise * (1.0 + size)
    products(inverse, on[:slots], gram, slots, change)
    pivot = 1.0 + size - dot(gram, change, slots)
    if pivot <= least:
        leaving = -1
        if problem.rest.shape[0] > 0:
            leaving = make_way(limits.weight_noise, change, on[:slots], weights, inverse, scratch.step)
        if leaving < 0:
            return False
        # What left had a share in the new atom, so that this is independent of those that stay, though maybe hardly so.
        slot, start = leaving, weights[leaving]
        gram[slot] = 0.0
        products(inverse, on[:slots], gram, slots, change)
        pivot = max(1.0 + size - dot(gram, change, slots), least)
    if slot == slots:
        slots = min(slots + BLOCK, on.shape[0])
        rows.high[row] = slots
        inverse[slot:slots, :slots], inverse[:slot, slot:slots] = 0.0, 0.0
        gram[slot:slots], change[slot:slots] = 0.0, 0.0
        scratch.ones[slot:slots], scratch.deviation[slot:slots] = 0.0, 0.0
        if signs:
            rows.gram[row, slot:slots, :slots], rows.gram[row, :slot, slot:slots] = 0.0, 0.0
    if signs:
        kept = rows.gram[row]
        for s in range(slots):
            product = gram[s] - 1.0 if on[s] else 0.0
            kept[slot, s], kept[s, slot] = product, product
        kept[slot, slot] = size
    rows.aims[row, slot] = dot(found, problem.target[row], width)
    change[slot] = -1.0
    update(inverse, change, pivot, slots)
    for r in range(found.shape[0]):
        atoms[slot, r] = found[r]
    vertices = rows.vertices[row]
    for d in range(vertex.shape[0]):
        vertices[slot, d] = vertex[d]
    rows.gains[row, slot], weights[slot], on[slot] = gain, start, True
    scratch.ones[slot], scratch.deviation[slot] = 1.0, gap
    return True


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
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
