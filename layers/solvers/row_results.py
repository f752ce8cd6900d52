"""What the compiled active set method leaves: the supports, from the state of the rows when they are done."""

import math
from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import ONE, WORD, combine, differences, total
from ...kernels.symmetric import read_row, times
from ...kernels.vectors import Array
from . import bit_atoms, real_atoms
from .row_algebra import add_combination, center, dot, newton_step, remove
from .row_kernel import Rows


@numba.njit(nogil=True, error_model="numpy", cache=True)
def prune(span: Array, least: float, rows: Rows, margin: Array, count: Array) -> None:
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
        mass, left = 0.0, 0
        for s in range(slots):
            if on[s] and weights[s] <= least * rows.scale[row] and weights[s] < heaviest:
                remove(s, on, rows.inverse[row], rows.level[row, :slots], work)
                weights[s] = 0.0
            mass += weights[s]
            left += on[s]
        for s in range(slots):
            weights[s] /= mass
        count[row] = left


class Places(NamedTuple):
    """Where the used slots of each row are written, one after the other: at the end of one another, or padded."""

    first: Array  # [B] int64, where the atoms of a row begin
    block: Array  # [B] int64, where its sensitivity begins
    stride: Array  # [B] int64, how far the rows of the sensitivity are apart


class Found(NamedTuple):
    """What is written of the supports, N places in all."""

    probs: Array  # [N]
    sensitivity: Array  # as in `Support`, flat
    means: Array  # [B, D]
    words: Array  # [N, W] of 0/1 structures, where each is not the first of its row; else of no rows
    first: Array  # [B, W] the first structure of each row; likewise
    atoms: Array  # [N, D] structures that are not 0/1; else of no rows


@numba.njit(nogil=True, error_model="numpy", cache=True)
def write(span: Array, rows: Rows, places: Places, found: Found) -> None:
    """The supports of the rows `span` [n]. The weights are those of one more Newton step, where it is feasible."""
    for row in span:
        slots = rows.high[row]
        on, weights, inverse = rows.on[row, :slots], rows.weights[row, :slots], rows.inverse[row]
        deviation, step, level = np.zeros(slots), np.zeros(slots), np.zeros(slots)
        if rows.is_bits:
            mean = np.empty(rows.bits.scores.shape[1])
            bit_atoms.move(row, weights, rows.bits, mean)
            bit_atoms.slopes(row, on, rows.bits, deviation)
        else:
            residual = rows.reals.target[row].copy()
            add_combination(residual, -1.0, weights, rows.reals.atoms[row])
            real_atoms.slopes(row, residual, on, rows.reals, deviation)
        center(on, weights, deviation)
        times(inverse, on.astype(np.float64), level)  # afresh: updates leave rounding in it
        across = level.sum()
        newton_step(inverse, level, deviation, step)
        used, feasible, line = np.empty(slots, np.int64), True, np.empty(slots)
        count = 0
        for s in range(slots):
            feasible = feasible and not weights[s] + step[s] < 0.0
            if on[s]:
                used[count] = s
                count += 1
        for s in range(slots):
            step[s] = (weights[s] + step[s] if feasible else weights[s]) if on[s] else 0.0
        if rows.is_bits:
            _write_bits(row, used[:count], places, step, rows, found)
        else:
            found.means[row] = 0.0
            add_combination(found.means[row], 1.0, step, rows.reals.vertices[row])
            for place in range(count):
                found.atoms[places.first[row] + place] = rows.reals.vertices[row, used[place]]
        size = 1.0 if rows.is_bits else rows.reals.unit[row] * rows.reals.unit[row]
        for place in range(count):
            s = used[place]
            found.probs[places.first[row] + place] = step[s]
            read_row(inverse, s, line)
            start = places.block[row] + place * places.stride[row]
            for other in range(count):
                k = used[other]
                found.sensitivity[start + other] = (line[k] - level[s] * level[k] / across) / size


@numba.njit(error_model="numpy", cache=True)
def _write_bits(row: int, used: Array, places: Places, weights: Array, rows: Rows, found: Found) -> None:
    """The structures of a row in the slots `used` [n], and their mean under the weights [S]."""
    words, origin = rows.bits.words[row], rows.origin[row]
    mean = np.empty(rows.bits.scores.shape[1])
    combine(weights, words, mean)
    for d in range(origin.shape[0]):
        found.means[row, d] = mean[d] if origin[d] == 0.0 else 1.0 - mean[d]
    differences(origin, np.zeros_like(origin), found.first[row])
    for w in range(words.shape[1]):
        found.first[row, w] ^= words[used[0], w]
        for place in range(used.shape[0]):
            found.words[places.first[row] + place, w] = words[used[place], w] ^ words[used[0], w]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def unpack(start: Array, count: Array, first: Array, words: Array, atoms: Array) -> None:
    """The structures of `Found` as numbers: count [B] of each row, from start [B] on, into atoms [N, D]."""
    for row in range(count.shape[0]):
        for n in range(start[row], start[row] + count[row]):
            for w in range(words.shape[1]):
                word = words[n, w] ^ first[row, w]
                for d in range(min(WORD, atoms.shape[1] - WORD * w)):
                    atoms[n, WORD * w + d] = 1 if word & (ONE << np.uint64(d)) else 0


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pull(start: Array, block: Array, first: Array, words: Array, sensitivity: Array, gradient: Array, result: Array) -> None:
    """A P g row by row: from packed weights [N] to scores [B, D].

    P has no part along 1, so that atoms count relative to any one of them: where all agree the result is exactly 0.
    """
    sums = np.empty(WORD * words.shape[1])
    for row in range(result.shape[0]):
        begin, end = start[row], start[row + 1]
        given, count = gradient[begin:end], end - begin
        share = np.empty(count)
        for place in range(count):
            here = block[row] + place * count
            share[place] = dot(sensitivity[here : here + count], given, count)
        combine(share, words[begin:end], sums)
        for d in range(result.shape[1]):
            flipped = first[row, d // WORD] & (ONE << np.uint64(d % WORD))
            result[row, d] = -sums[d] if flipped else sums[d]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def push(start: Array, block: Array, first: Array, words: Array, sensitivity: Array, change: Array, result: Array) -> None:
    """P A'dt row by row: from scores [B, D] to packed weights [N]; the transpose of `pull`."""
    signed = np.zeros(WORD * words.shape[1])
    for row in range(change.shape[0]):
        begin, count = start[row], start[row + 1] - start[row]
        for d in range(change.shape[1]):
            flipped = first[row, d // WORD] & (ONE << np.uint64(d % WORD))
            signed[d] = -change[row, d] if flipped else change[row, d]
        slopes = np.empty(count)
        for place in range(count):
            slopes[place] = total(signed, words[begin + place])
        for place in range(count):
            here = block[row] + place * count
            result[begin + place] = dot(sensitivity[here : here + count], slopes, count)
