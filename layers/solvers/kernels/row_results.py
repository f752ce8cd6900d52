"""What the compiled active set method leaves: the supports, from the state of the rows when they are done."""

import math
from typing import NamedTuple

import numba
import numpy as np

from ....kernels.bits import ONE, WORD, combine, total
from ....kernels.sums import dot
from ....kernels.symmetric import read_row, times
from ....kernels.vectors import UNCOUNTED, Array
from . import atoms
from .row_algebra import center, newton_step, remove
from .row_kernel import Rows, Scratch


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def prune(span: Array, least: float, rows: Rows, margin: Array, count: Array, scratch: Scratch) -> None:
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
        mass, left = 0.0, 0
        for s in range(slots):
            if on[s] and weights[s] <= least * rows.scale[row] and weights[s] < heaviest:
                remove(s, on, rows.inverse[row], rows.level[row, :slots], scratch.change)
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
    structures: atoms.Structures


@numba.njit(nogil=True, error_model="numpy", cache=True, **UNCOUNTED)
def write(span: Array, rows: Rows, places: Places, found: Found, scratch: Scratch) -> None:
    """The supports of the rows `span` [n]. The weights are those of one more Newton step, where it is feasible."""
    for row in span:
        slots, origin = rows.high[row], rows.origin
        on, weights, inverse = rows.on[row, :slots], rows.weights[row, :slots], rows.inverse[row]
        deviation, step = scratch.deviation[:slots], scratch.step[:slots]
        level, line = scratch.gram[:slots], scratch.change[:slots]
        atoms.move(row, weights, rows.atoms, scratch.atoms)
        atoms.see_mean(row, rows.atoms, scratch.atoms)
        atoms.slopes(row, on, rows.atoms, scratch.atoms, deviation)
        center(on, weights, deviation)
        for s in range(slots):
            line[s] = on[s]
        times(inverse, line, level)  # afresh: updates leave rounding in it
        newton_step(inverse, level, deviation, step)
        feasible, across = True, 0.0
        for s in range(slots):
            feasible = feasible and not weights[s] + step[s] < 0.0
            across += level[s]
        for s in range(slots):
            step[s] = (weights[s] + step[s] if feasible else weights[s]) if on[s] else 0.0
        first, start = int(places.first[row]), places.block[row]
        atoms.write(row, on, step, first, origin, rows.atoms, scratch.atoms, found.means[row], found.structures)
        per_size = 1.0 / atoms.square_unit(row, rows.atoms)  # a power of two
        for s in range(slots):
            if on[s]:
                found.probs[first] = step[s]
                read_row(inverse, s, line)
                here = start
                for k in range(slots):
                    if on[k]:
                        found.sensitivity[here] = (line[k] - level[s] * level[k] / across) * per_size
                        here += 1
                first, start = first + 1, start + places.stride[row]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def unpack(start: Array, count: Array, first: Array, words: Array, out: Array) -> None:
    """Structures in bits as numbers: count [B] of each row, from start [B] on, into out [N, D]."""
    for row in range(count.shape[0]):
        for n in range(start[row], start[row] + count[row]):
            for w in range(words.shape[1]):
                word = words[n, w] ^ first[row, w]
                for d in range(min(WORD, out.shape[1] - WORD * w)):
                    out[n, WORD * w + d] = 1 if word & (ONE << np.uint64(d)) else 0


@numba.njit(nogil=True, error_model="numpy", cache=True)
def combine_rows(start: Array, first: Array, words: Array, probs: Array, means: Array) -> None:
    """Into means [B, D] those of structures in bits under probs [N], added up in order. What is in words is lost."""
    sums = np.empty(WORD * words.shape[1])
    for row in range(means.shape[0]):
        begin, end = start[row], start[row + 1]
        for n in range(begin, end):
            for w in range(words.shape[1]):
                words[n, w] ^= first[row, w]
        combine(probs[begin:end], words[begin:end], sums)
        means[row] = sums[: means.shape[1]]


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
