"""The atoms of the compiled active set method where structures are 0/1: each the set of bits in which it is not the origin.

Relative to the origin, and times -1 where that is 1, all atoms are 0/1 vectors: an eighth of a byte for each coordinate to go
through in every iteration, with inner products that are counts. Only what is regularised changes: of structures with many
parts that are not, what each gains there is kept. What `atoms` names is compiled as a part of what calls it.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from ....kernels.bits import ONE, WORD, combine, count, differences, overlaps, total, totals, words_of
from ....kernels.sums import dot
from ....kernels.vectors import UNCOUNTED, Array
from ....kernels.workspace import borrow, give_back
from ....oracles import Parts


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

    answer: Array  # [W] where the oracle's answer is not the origin
    within: Array  # [W] the same, where coordinates are regularised
    mean: Array  # [64 W]


class BitStructures(NamedTuple):
    """The structures of packed supports, N in all."""

    words: Array  # [N, W], where each is not the first of its row
    first: Array  # [B, W] the first structure of each row


def begin(target: Tensor, origin: Tensor, parts: Parts | None, slots: int) -> Bits:
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
    made = Bits(
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
    made.words[:, 0] = 0
    return made


def structures(count: int, state: Bits) -> BitStructures:
    """Room for so many."""
    batch, width = state.seen.shape
    return BitStructures(np.empty((count, width), np.uint64), np.empty((batch, width), np.uint64))


def scratch(state: Bits) -> BitScratch:
    """Of anything."""
    size, width = state.scores.shape[1], state.words.shape[2]
    return BitScratch(np.empty(width, np.uint64), np.empty(width, np.uint64), np.empty(size))


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


def few_change(state: Bits) -> bool:
    """All may change."""
    return False


def places(row: int, state: Bits) -> int:
    """Not asked for."""
    return 0


def coordinate(row: int, place: int, state: Bits) -> int:
    """Likewise."""
    return place


def gradient(row: int, anew: bool, origin: Array, state: Bits, out: Array) -> None:
    """The residual, with the sign of the coordinates."""
    residual = state.residual[row]
    for d in range(out.shape[0]):
        out[d] = residual[d] if origin[row, d] == 0.0 else -residual[d]


def take(row: int, vertex: Array, origin: Array, state: Bits, scratch: BitScratch) -> None:
    """In bits."""
    differences(vertex, origin[row], scratch.answer)


def relate(row: int, origin: Array, state: Bits, scratch: BitScratch) -> tuple[float, float, float]:
    """Fills in `within`."""
    found, seen, fresh = scratch.answer, state.seen, np.uint64(0)
    for w in range(found.shape[0]):
        scratch.within[w] = found[w] & state.inside[w]
        fresh |= found[w] & ~seen[row, w]
        seen[row, w] |= found[w]
    if fresh != 0:
        sizes = scratch.mean
        for d in range(sizes.shape[0]):
            sizes[d] = abs(state.scores[row, d]) + state.regularized[d]
        state.terms[row] = total(sizes, seen[row])
    return total(state.residual[row], found), 0.0, state.terms[row]  # `put` sees what is gained where they are not regularised


def see_mean(row: int, state: Bits, scratch: BitScratch) -> None:
    """Nothing: the residual is kept."""


def slopes(row: int, on: Array, state: Bits, scratch: BitScratch, out: Array) -> None:
    """<a_s, t - A p>."""
    size, gains = on.shape[0], state.gains[row]
    totals(state.residual[row], state.words[row, :size, : state.changing], out)
    for s in range(size):
        out[s] = out[s] + gains[s] if on[s] else 0.0


def compare(row: int, on: Array, state: Bits, scratch: BitScratch, out: Array) -> float:
    """Counts."""
    overlaps(state.words[row], on, scratch.within[: state.changing], out)
    size = 0
    for w in range(state.changing):
        size += count(scratch.within[w])  # pyright: ignore[reportCallIssue]
    return float(size)


def distance(row: int, weights: Array, state: Bits, scratch: BitScratch) -> float:
    """Where coordinates are regularised."""
    combine(weights, state.words[row, :, : state.changing], scratch.mean)
    return distance_between(scratch.within[: state.changing], state.regularized, scratch.mean)


@numba.njit(cache=True, **UNCOUNTED)
def distance_between(words: Array, regularized: Array, others: Array) -> float:
    """The squared distance of a structure in bits [W] to others [64 W], which are lost, where coordinates are regularised."""
    for w in range(words.shape[0]):
        word = words[w]
        for d in range(WORD):
            place = WORD * w + d
            others[place] = regularized[place] * ((1.0 if word & (ONE << np.uint64(d)) else 0.0) - others[place])
    return dot(others, others, WORD * words.shape[0])


def put(row: int, slot: int, gain: float, state: Bits, scratch: BitScratch) -> None:
    """With what it gains in the words that do not change."""
    found, rest = scratch.answer, state.changing
    state.gains[row, slot] = total(state.scores[row, WORD * rest :], found[rest:])
    for w in range(found.shape[0]):
        state.words[row, slot, w] = found[w]


def move(row: int, weights: Array, state: Bits, scratch: BitScratch) -> None:
    """Keeps the residual there."""
    end = WORD * state.changing
    combine(weights, state.words[row, :, : state.changing], scratch.mean)
    subtract(state.scores[row, :end], state.regularized, scratch.mean, state.residual[row, :end])


@numba.njit(cache=True, **UNCOUNTED)
def subtract(scores: Array, regularized: Array, mean: Array, out: Array) -> None:
    """out = scores - regularized * mean."""
    for d in range(out.shape[0]):
        out[d] = scores[d] - regularized[d] * mean[d]


def square_unit(row: int, state: Bits) -> float:
    """There are none."""
    return 1.0


def write(
    row: int,
    on: Array,
    weights: Array,
    place: int,
    origin: Array,
    state: Bits,
    scratch: BitScratch,
    mean: Array,
    into: BitStructures,
) -> None:
    """In bits."""
    words, first = state.words[row], -1
    combine(weights, words, scratch.mean)
    for d in range(mean.shape[0]):
        mean[d] = scratch.mean[d] if origin[row, d] == 0.0 else 1.0 - scratch.mean[d]
    scratch.mean[:] = 0.0
    differences(origin[row], scratch.mean, into.first[row])
    for s in range(on.shape[0]):
        if on[s]:
            first = s if first < 0 else first
            for w in range(words.shape[1]):
                into.words[place, w] = words[s, w] ^ words[first, w]
            place += 1
    for w in range(words.shape[1]):
        into.first[row, w] ^= words[first, w]
