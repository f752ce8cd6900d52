"""The active set method's iteration, compiled for the CPU: row by row, each in one pass over its own small working set.

In tensor operations an iteration is a hundred calls, each of which reads or writes the whole batch. Row by row all of it
stays in the processor's cache. This is the iteration of `TensorRows`, and tests hold the two together.
A row's arithmetic depends on that row alone, not on the batch around it nor on how many slots others need. Importing this
module needs Numba; `active_set` does so only where it is installed. What is called with many arrays is inlined: a call copies
their descriptions.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ....kernels.sums import dot
from ....kernels.symmetric import SIDE, clear_block, times
from ....kernels.vectors import UNCOUNTED, Array
from ....oracles.kernels.row_oracles import RowOracle, best_of_row
from ..limits import POLL, STALE, Limits
from . import atoms
from .row_algebra import add, center, make_way, newton_step, remove


class Rows(NamedTuple):
    """The state of every row, updated in place; S slots, of which a row has used no more than the first `high`.

    Slots come into use a tile of the factorisation at a time.
    """

    atoms: atoms.State
    origin: Array  # [B, D]
    scale: Array  # [B]
    some_are_free: bool  # whether there are coordinates that are not regularised
    inverse: Array  # [B, T, 8, 8], `symmetric` for S: see `WorkingSet`; 0 in slots not in use, anything beyond `high`
    level: Array  # [B, S] H 1, likewise
    on: Array  # [B, S] bool
    weights: Array  # [B, S]
    high: Array  # [B] int64
    dropping: Array  # [B] int64
    stalled: Array  # [B] int64
    iterations: Array  # [B] int64
    gap: Array  # [B]
    exact: Array  # [B] bool
    converged: Array  # [B] bool


class CompiledOracle(NamedTuple):
    """An oracle that is compiled, and its `ties.Ties`."""

    of_rows: RowOracle
    grid: Array  # [B, D]
    tie_break: Array  # [D]
    forbidden: Array  # [B, D] bool, coordinates that are 0 in every structure; of no rows where there are none
    origin: Array  # [B, W] the structures to start from, in bits


class Scratch(NamedTuple):
    """What is computed of one row; by slot, 0 to begin with and, but for `change` and `step`, where it is not in use."""

    atoms: atoms.Scratch
    deviation: Array  # [S] how far each slope is from the others
    gram: Array  # [S] <(a_s, 1), (found, 1)>
    change: Array  # [S]
    step: Array  # [S] of the weights


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def gradients(live: Array, grid: Array, tie_break: Array, rows: Rows, out: Array) -> None:
    """What the rows `live` [n] ask an oracle, into out [n, D]: the gradients of the objective at their means.

    On the grid [B, D] and with the tie-break [D] of `ties.Ties`; a grid of no rows is none.
    """
    for place in range(live.shape[0]):
        row, asked = live[place], out[place]
        atoms.gradient(row, True, rows.origin, rows.atoms, asked)
        if grid.shape[0] > 0:
            share = 0.0 if rows.exact[row] else 1.0
            for d in range(asked.shape[0]):
                asked[d] = _broken(asked[d], grid[row, d], share * tie_break[d])


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _broken(value: float, size: float, tie_break: float) -> float:
    """`ties.Ties.broken` of one coordinate."""
    return (np.rint(value / size) + tie_break) * size


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def advance(live: Array, vertex: Array, most: int, limits: Limits, rows: Rows, scratch: Scratch) -> None:
    """The rows `live` [n] from the oracle's answers, vertex [n, D], to their next questions.

    Rows that have not converged test, add or drop one atom, and take a Newton step as far as it is feasible; while there is an
    atom to drop no answer is needed, and they go on, up to `most` iterations in all. Every row needs a free slot, and answers
    that are 0/1 if atoms are bits.
    """
    for place in range(live.shape[0]):
        row = live[place]
        asked = True
        while not rows.converged[row] and rows.iterations[row] < most and (asked or rows.dropping[row] >= 0):
            if asked:
                atoms.take(row, vertex[place], rows.origin, rows.atoms, scratch.atoms)
            _iterate(row, limits, rows, scratch)
            asked = False


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def run(live: Array, oracle: CompiledOracle, work: Array, most: int, limits: Limits, rows: Rows, scratch: Scratch) -> None:
    """Every iteration of the rows `live` [n], one row after the other, with the oracle of the kind asked.

    A row is left where it has converged, has done `most` iterations, is to be factorised afresh, or has no free slot but could
    have one. `work` is [2, D]. Atoms are bits.
    """
    slots, dim = rows.on.shape[1], rows.origin.shape[1]
    question, room, answer = work[0:1], work[1:2], scratch.atoms.answer
    asked = question[0]
    for row in live:
        anew = True
        while not rows.converged[row] and rows.iterations[row] < most:
            if slots < dim + 2 and rows.high[row] == slots and _used(rows.on[row]) == slots:
                break
            if rows.iterations[row] % POLL == 0 and rows.stalled[row] >= STALE:
                break
            if rows.dropping[row] < 0:
                _ask(row, anew, oracle, rows, asked)
                best_of_row(row, oracle.of_rows, question, room, answer)
                for w in range(answer.shape[0]):
                    answer[w] ^= oracle.origin[row, w]
                anew = False
            was_exact = rows.exact[row]
            _iterate(row, limits, rows, scratch)
            anew = anew or rows.exact[row] != was_exact


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _ask(row: int, anew: bool, oracle: CompiledOracle, rows: Rows, asked: Array) -> None:
    """Into asked [D] what a row asks.

    Unless it is `anew`, that is what the row has asked before with the same share of the tie-break: of thousands of coordinates
    a few hundred may have changed.
    """
    share = 0.0 if rows.exact[row] else 1.0
    every = anew or not atoms.few_change(rows.atoms)
    atoms.gradient(row, every, rows.origin, rows.atoms, asked)
    if every:
        for d in range(asked.shape[0]):
            asked[d] = _broken(asked[d], oracle.grid[row, d], share * oracle.tie_break[d])
        if oracle.forbidden.shape[0] > 0:
            for d in range(asked.shape[0]):
                if oracle.forbidden[row, d]:
                    asked[d] = -math.inf
    else:  # what is forbidden is not among these
        for place in range(atoms.places(row, rows.atoms)):
            seen = atoms.coordinate(row, place, rows.atoms)
            asked[seen] = _broken(asked[seen], oracle.grid[row, seen], share * oracle.tie_break[seen])


@numba.njit(cache=True, **UNCOUNTED)
def _used(on: Array) -> int:
    total = 0
    for s in range(on.shape[0]):
        total += on[s]
    return total


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _iterate(row: int, limits: Limits, rows: Rows, scratch: Scratch) -> None:
    """One iteration; the answer in scratch counts where there is no atom to drop."""
    on, deviation, drop = rows.on[row, : rows.high[row]], scratch.deviation, rows.dropping[row]
    gap, gain, terms = 0.0, 0.0, 0.0
    if drop < 0:
        gap, gain, terms = atoms.relate(row, rows.origin, rows.atoms, scratch.atoms)
    else:
        atoms.see_mean(row, rows.atoms, scratch.atoms)
    atoms.slopes(row, on, rows.atoms, scratch.atoms, deviation)
    noise = 8 * np.finfo(np.float64).eps * terms
    gap -= center(on, rows.weights[row], deviation)
    spread = 0.0
    for s in range(on.shape[0]):
        spread = max(spread, abs(deviation[s]))
    settled = drop < 0 and spread <= limits.settled * rows.scale[row] + noise
    exhausted = False
    if settled:
        rows.gap[row] = max(gap, 0.0)
        exhausted = gap <= limits.tol * rows.scale[row] + noise
        if exhausted and rows.exact[row]:
            rows.converged[row] = True
            return
        rows.exact[row] = rows.exact[row] or exhausted
    rows.iterations[row] += 1

    moved = exhausted or drop >= 0
    if drop >= 0:
        remove(drop, on, rows.inverse[row], rows.level[row, : on.shape[0]], scratch.change)
        deviation[drop] = 0.0
    elif settled and not exhausted:
        moved = _add(row, gain, gap, limits, rows, scratch)
    rows.stalled[row] = 0 if moved else rows.stalled[row] + 1
    _move(row, limits, rows, scratch)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _add(row: int, gain: float, gap: float, limits: Limits, rows: Rows, scratch: Scratch) -> bool:
    """Adds what the oracle found to the atoms, if it is not an affine combination of them; whether it did."""
    slots = rows.high[row]
    on, weights, inverse = rows.on[row], rows.weights[row], rows.inverse[row]
    gram, change = scratch.gram, scratch.change
    size = atoms.compare(row, on[:slots], rows.atoms, scratch.atoms, gram)
    slot = slots
    for s in range(slots):
        if on[s]:
            gram[s] += 1.0
        else:
            slot = min(slot, s)
    if slot == on.shape[0]:
        return False
    start, least = 0.0, limits.pivot_noise * (1.0 + size)
    times(inverse, gram[:slots], change[:slots])
    pivot = 1.0 + size - dot(gram, change, slots)
    if pivot <= limits.pivot_in_doubt * (1.0 + size):
        pivot = _distance(row, change[:slots], rows, scratch)
    if pivot <= least:
        leaving = -1
        if rows.some_are_free:
            leaving = make_way(limits.weight_noise, change, on[:slots], weights, inverse, rows.level[row, :slots], scratch.step)
        if leaving < 0:
            return False
        # What left had a share in the new atom, so that this is independent of those that stay, though maybe hardly so.
        slot, start = leaving, weights[leaving]
        gram[slot] = 0.0
        times(inverse, gram[:slots], change[:slots])
        pivot = max(_distance(row, change[:slots], rows, scratch), least)
    if slot == slots:
        slots = min(slots + SIDE, on.shape[0])
        rows.high[row] = slots
        clear_block(inverse, slot // SIDE)
        gram[slot:slots], change[slot:slots] = 0.0, 0.0
        rows.level[row, slot:slots], scratch.deviation[slot:slots] = 0.0, 0.0
    atoms.put(row, slot, gain, rows.atoms, scratch.atoms)
    add(slot, pivot, change[:slots], on, inverse, rows.level[row, :slots])
    weights[slot], scratch.deviation[slot] = start, gap
    return True


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _distance(row: int, weights: Array, rows: Rows, scratch: Scratch) -> float:
    """The squared distance of (found, 1) to the combination of the (a_s, 1) with these weights [S]."""
    rest = 1.0
    for s in range(weights.shape[0]):
        rest -= weights[s]
    return atoms.distance(row, weights, rows.atoms, scratch.atoms) + rest * rest


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _move(row: int, limits: Limits, rows: Rows, scratch: Scratch) -> None:
    """The Newton step on the weights, as far as they stay nonnegative (paper eq. 15), and the mean there."""
    slots = rows.high[row]
    weights, step = rows.weights[row, :slots], scratch.step
    newton_step(rows.inverse[row], rows.level[row, :slots], scratch.deviation[:slots], step[:slots])
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
    atoms.move(row, weights, rows.atoms, scratch.atoms)
