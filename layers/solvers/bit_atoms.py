"""The atoms of the compiled active set method where structures are 0/1: each the set of bits in which it is not the origin.

Relative to the origin, and times -1 where that is 1, all atoms are 0/1 vectors: an eighth of a byte for each coordinate to go
through in every iteration, with inner products that are counts. Only what is regularised changes: of structures with many
parts that are not, what each gains there is kept.
"""

from functools import cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ...kernels.bits import WORD, combine, count, differences, overlaps, total, totals, words_of
from ...kernels.vectors import UNCOUNTED, Array
from ...kernels.workspace import borrow, give_back
from ...oracles import Parts


class Bits(NamedTuple):
    """The atoms of every row, in coordinates that are relative to the origin and change sign where it is 1."""

    scores: Array  # [B, 64 W] t, relative to the origin where they are regularised
    regularized: Array  # [64 W] 1 where they are, else 0
    inside: Array  # [W] the same in bits
    changing: int  # V, the words up to the last with a coordinate that is regularised: the residual changes in these
    words: Array  # [B, S, W]; anything in slots beyond `high`
    gains: Array  # [B, S] <t, a_s> in the other words
    residual: Array  # [B, 64 W] t - A p, the latter where they are regularised
    seen: Array  # [B, W] where any answer of the oracle has differed from the origin
    terms: Array  # [B] the size of the terms in the products of such a structure


class BitScratch(NamedTuple):
    """What is computed of one row at a time."""

    found: Array  # [W] where the oracle's answer is not the origin
    within: Array  # [W] the same, where coordinates are regularised
    mean: Array  # [64 W]


def bits(target: Tensor, origin: Tensor, parts: Parts | None, slots: int) -> Bits:
    """Of scores [B, D] and their origin [B, D], with the origin as the only atom; room for `slots`."""
    batch, dim = origin.shape
    width = words_of(dim)
    regularized = np.zeros(WORD * width)
    regularized[:dim] = 1.0
    if parts is not None:
        regularized[parts.rest.numpy()] = 0.0
    flip, scores = 1.0 - 2.0 * origin.numpy(), np.zeros((batch, WORD * width))
    scores[:, :dim] = (target.numpy() - origin.numpy() * regularized[:dim]) * flip
    broken = ~np.isfinite(scores).all(1)
    scores[broken] = np.nan  # masks pass over a single one
    inside = np.packbits(regularized != 0, bitorder="little").view(np.uint64)
    state = Bits(
        scores=scores,
        regularized=regularized,
        inside=inside,
        changing=int(inside.nonzero()[0].max(initial=-1)) + 1,
        words=borrow((batch, slots, width), np.uint64),
        gains=np.zeros((batch, slots)),
        residual=scores.copy(),
        seen=np.zeros((batch, width), np.uint64),
        terms=np.where(broken, np.nan, 0.0),
    )
    state.words[:, 0] = 0
    return state


@cache
def none(dim: int) -> Bits:
    """Of no rows."""
    nothing = torch.empty(0, dim, dtype=torch.float64)
    return bits(nothing, nothing, None, 1)


def wider(state: Bits, slots: int) -> Bits:
    """The same with room for `slots` atoms."""
    batch, before, width = state.words.shape
    words = borrow((batch, slots, width), np.uint64)
    words[:, :before] = state.words
    release(state)
    return state._replace(words=words, gains=np.pad(state.gains, ((0, 0), (0, slots - before))))


def atoms(row: int, slots: Array, state: Bits) -> Array:
    """Those of a row in some slots, [n, R] float64."""
    octets = np.ascontiguousarray(state.words[row, slots]).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")[:, state.regularized > 0].astype(np.float64)


def release(state: Bits) -> None:
    """Gives the memory back."""
    give_back(state.words)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def gradient(row: int, origin: Array, state: Bits, out: Array) -> None:
    """Into out [D]: that of the objective at the mean of a row."""
    residual = state.residual[row]
    for d in range(out.shape[0]):
        out[d] = residual[d] if origin[row, d] == 0.0 else -residual[d]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def relate(row: int, vertex: Array, origin: Array, state: Bits, scratch: BitScratch) -> tuple[float, float]:
    """Fills in `found` and `within`; returns what the vertex gains at the mean, and the size of the terms in such products."""
    found, seen, fresh = scratch.found, state.seen, np.uint64(0)
    differences(vertex, origin[row], found)
    for w in range(found.shape[0]):
        scratch.within[w] = found[w] & state.inside[w]
        fresh |= found[w] & ~seen[row, w]
        seen[row, w] |= found[w]
    if fresh != 0:
        sizes = scratch.mean
        for d in range(sizes.shape[0]):
            sizes[d] = abs(state.scores[row, d]) + state.regularized[d]
        state.terms[row] = total(sizes, seen[row])
    return total(state.residual[row], found), state.terms[row]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def slopes(row: int, on: Array, state: Bits, out: Array) -> None:
    """Into out [S]: <a_s, t - A p> of the slots in use."""
    size, gains = on.shape[0], state.gains[row]
    totals(state.residual[row], state.words[row, :size, : state.changing], out)
    for s in range(size):
        out[s] = out[s] + gains[s] if on[s] else 0.0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def compare(row: int, on: Array, state: Bits, scratch: BitScratch, out: Array) -> float:
    """Into out [S] the inner products of what was found with the slots in use; returns that with itself."""
    overlaps(state.words[row], on, scratch.within[: state.changing], out)
    size = 0
    for w in range(state.changing):
        size += count(scratch.within[w])  # pyright: ignore[reportCallIssue]
    return float(size)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def distance(row: int, weights: Array, state: Bits, scratch: BitScratch) -> float:
    """The squared distance of what was found to the atoms' combination with these weights [S], where it is regularised."""
    combine(weights, state.words[row, :, : state.changing], scratch.mean)
    return _distance(scratch.within[: state.changing], state.regularized, scratch.mean)


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, cache=True, **UNCOUNTED)
def _distance(words: Array, regularized: Array, others: Array) -> float:
    result = 0.0
    for w in range(words.shape[0]):
        word = words[w]
        for d in range(WORD):
            place = WORD * w + d
            rest = (1.0 if word & (np.uint64(1) << np.uint64(d)) else 0.0) - others[place]
            result += regularized[place] * rest * rest
    return result


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def put(row: int, slot: int, state: Bits, scratch: BitScratch) -> None:
    """Puts what was found in a slot."""
    found, rest = scratch.found, state.changing
    state.gains[row, slot] = total(state.scores[row, WORD * rest :], found[rest:])
    for w in range(found.shape[0]):
        state.words[row, slot, w] = found[w]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def move(row: int, weights: Array, state: Bits, mean: Array) -> None:
    """The residual at the mean under the weights [S]; mean [64 W] is lost."""
    end = WORD * state.changing
    combine(weights, state.words[row, :, : state.changing], mean)
    _subtract(state.scores[row, :end], state.regularized, mean, state.residual[row, :end])


@numba.njit(fastmath={"contract"}, cache=True, **UNCOUNTED)
def _subtract(scores: Array, regularized: Array, mean: Array, out: Array) -> None:
    """out = scores - regularized * mean."""
    for d in range(out.shape[0]):
        out[d] = scores[d] - regularized[d] * mean[d]
