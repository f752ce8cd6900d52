"""The atoms of the compiled active set method where structures are 0/1 and long: bits of those coordinates that were ever seen.

A labelled chain of 50 has some 100 of 20,000 coordinates, and all structures of a solution together a few hundred. So only
coordinates in which an answer of the oracle has differed from the origin get a bit, in the order in which they came up: what
`bit_atoms` does in every iteration is then done on a few words, of which any coordinate may be next to any other. What `atoms`
names is compiled as a part of what calls it.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from ....kernels.bits import ONE, WORD, combine, count, differences, first_of, overlaps, total, totals, words_of
from ....kernels.vectors import UNCOUNTED, Array
from ....kernels.workspace import borrow, give_back
from ....oracles import Parts
from .bit_atoms import BitStructures, distance_between, subtract

ZERO = np.uint64(0)


class SeenBits(NamedTuple):
    """The atoms of every row, in places that are relative to the origin and change sign where it is 1."""

    start: Array  # [B, D] the gradient at the origin, of coordinates that were not seen
    free: Array  # [D] bool, which are not regularised
    place: Array  # [B, D] int32, of each coordinate; -1 where it was not seen
    coordinate: Array  # [B, 64 W] int32, of each place
    used: Array  # [B] int64, places in use; scores, residual, and what is regularised are 0 beyond
    scores: Array  # [B, 64 W] t, relative to the origin where they are regularised
    regularized: Array  # [B, 64 W] 1 where they are, else 0
    inside: Array  # [B, W] the same in bits
    words: Array  # [B, S, W]; 0 beyond the places in use, but anything in words without any, and in slots beyond `high`
    residual: Array  # [B, 64 W] t - A p, the latter where they are regularised
    terms: Array  # [B] the size of the terms in the products of a structure of all that was seen


class SeenScratch(NamedTuple):
    """What is computed of one row at a time."""

    answer: Array  # [W] by coordinate: where the oracle's answer is not the origin
    found: Array  # [W] the same by place
    within: Array  # [W] the same, where coordinates are regularised
    mean: Array  # [64 W]


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def in_use(places: int) -> int:
    """The words of so many places."""
    return (places + WORD - 1) // WORD


def begin(target: Tensor, origin: Tensor, parts: Parts | None, slots: int) -> SeenBits:
    """Of scores [B, D] and their origin [B, D], with the origin as the only atom; room for `slots`."""
    batch, dim = origin.shape
    width = words_of(dim)
    free = np.zeros(dim, bool)
    if parts is not None:
        free[parts.rest.numpy()] = True
    start = target.numpy() - np.where(free, 0.0, origin.numpy())
    broken = ~np.isfinite(start).all(1)
    start[broken] = np.nan  # masks pass over a single one
    return SeenBits(
        start=start,
        free=free,
        place=np.full((batch, dim), -1, np.int32),
        coordinate=np.zeros((batch, WORD * width), np.int32),
        used=np.zeros(batch, np.int64),
        scores=np.zeros((batch, WORD * width)),
        regularized=np.zeros((batch, WORD * width)),
        inside=np.zeros((batch, width), np.uint64),
        words=borrow((batch, slots, width), np.uint64),
        residual=np.zeros((batch, WORD * width)),
        terms=np.where(broken, np.nan, 0.0),
    )


def structures(count: int, state: SeenBits) -> BitStructures:
    """Room for so many."""
    batch, width = state.inside.shape
    return BitStructures(np.zeros((count, width), np.uint64), np.zeros((batch, width), np.uint64))


def scratch(state: SeenBits) -> SeenScratch:
    """Of anything."""
    size, width = state.scores.shape[1], state.inside.shape[1]
    answer, found, within = np.empty((3, width), np.uint64)
    return SeenScratch(answer, found, within, np.empty(size))


def wider(state: SeenBits, slots: int) -> SeenBits:
    """The same with room for `slots` atoms."""
    batch, before, width = state.words.shape
    words, used = borrow((batch, slots, width), np.uint64), words_of(int(state.used.max(initial=0)))
    words[:, :before, :used] = state.words[:, :, :used]
    release(state)
    return state._replace(words=words)


def atoms(row: int, slots: Array, state: SeenBits) -> Array:
    """Those of a row in some slots, [n, places that are regularised] float64."""
    used = words_of(int(state.used[row]))
    octets = np.ascontiguousarray(state.words[row, slots, :used]).view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return bits[:, state.regularized[row, : WORD * used] > 0].astype(np.float64)


def release(state: SeenBits) -> None:
    """Gives the memory back."""
    give_back(state.words)


def few_change(state: SeenBits) -> bool:
    """Those that were seen."""
    return True


def places(row: int, state: SeenBits) -> int:
    """In use."""
    return state.used[row]


def coordinate(row: int, place: int, state: SeenBits) -> int:
    """In the order in which they came up."""
    return state.coordinate[row, place]


def gradient(row: int, anew: bool, origin: Array, state: SeenBits, out: Array) -> None:
    """The residual, with the sign of the coordinates, where they were seen."""
    if anew:
        for d in range(out.shape[0]):
            out[d] = state.start[row, d]
    for place in range(state.used[row]):
        d = state.coordinate[row, place]
        out[d] = state.residual[row, place] if origin[row, d] == 0.0 else -state.residual[row, place]


def take(row: int, vertex: Array, origin: Array, state: SeenBits, scratch: SeenScratch) -> None:
    """In bits."""
    differences(vertex, origin[row], scratch.answer)


def relate(row: int, origin: Array, state: SeenBits, scratch: SeenScratch) -> tuple[float, float, float]:
    """Fills in `found` and `within`; coordinates that were not seen get a place."""
    _find(row, origin[row], state, scratch)
    used = in_use(state.used[row])
    for w in range(used):
        scratch.within[w] = scratch.found[w] & state.inside[row, w]
    return total(state.residual[row], scratch.found[:used]), 0.0, state.terms[row]


@numba.njit(cache=True, **UNCOUNTED)
def _find(row: int, origin: Array, state: SeenBits, scratch: SeenScratch) -> None:
    """From `answer` to `found`."""
    found, used = scratch.found, state.used[row]
    for w in range(in_use(used)):
        found[w] = ZERO
    for w in range(scratch.answer.shape[0]):
        left = scratch.answer[w]
        while left != ZERO:
            d = WORD * w + first_of(left)
            left &= left - ONE
            place = state.place[row, d]
            if place < 0:
                place = used
                used += 1
                if place % WORD == 0:
                    found[place // WORD] = ZERO
                    for s in range(state.words.shape[1]):
                        state.words[row, s, place // WORD] = ZERO
                _see(row, d, place, origin, state)
            found[place // WORD] |= ONE << np.uint64(place % WORD)
    state.used[row] = used


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def _see(row: int, d: int, place: int, origin: Array, state: SeenBits) -> None:
    """Gives a coordinate its place."""
    state.place[row, d], state.coordinate[row, place] = place, d
    score = state.start[row, d] if origin[d] == 0.0 else -state.start[row, d]
    state.scores[row, place], state.residual[row, place] = score, score
    if not state.free[d]:
        state.regularized[row, place] = 1.0
        state.inside[row, place // WORD] |= ONE << np.uint64(place % WORD)
    state.terms[row] += abs(score) + state.regularized[row, place]


def see_mean(row: int, state: SeenBits, scratch: SeenScratch) -> None:
    """Nothing: the residual is kept."""


def slopes(row: int, on: Array, state: SeenBits, scratch: SeenScratch, out: Array) -> None:
    """<a_s, t - A p>."""
    size, used = on.shape[0], in_use(state.used[row])
    totals(state.residual[row], state.words[row, :size, :used], out)
    for s in range(size):
        out[s] = out[s] if on[s] else 0.0


def compare(row: int, on: Array, state: SeenBits, scratch: SeenScratch, out: Array) -> float:
    """Counts."""
    used = in_use(state.used[row])
    overlaps(state.words[row], on, scratch.within[:used], out)
    size = 0
    for w in range(used):
        size += count(scratch.within[w])  # pyright: ignore[reportCallIssue]
    return float(size)


def distance(row: int, weights: Array, state: SeenBits, scratch: SeenScratch) -> float:
    """Where coordinates are regularised."""
    used = in_use(state.used[row])
    combine(weights, state.words[row, :, :used], scratch.mean)
    return distance_between(scratch.within[:used], state.regularized[row], scratch.mean)


def put(row: int, slot: int, gain: float, state: SeenBits, scratch: SeenScratch) -> None:
    """By place."""
    for w in range(in_use(state.used[row])):
        state.words[row, slot, w] = scratch.found[w]


def move(row: int, weights: Array, state: SeenBits, scratch: SeenScratch) -> None:
    """Keeps the residual there."""
    used = in_use(state.used[row])
    combine(weights, state.words[row, :, :used], scratch.mean)
    subtract(state.scores[row, : WORD * used], state.regularized[row], scratch.mean, state.residual[row, : WORD * used])


def square_unit(row: int, state: SeenBits) -> float:
    """There are none."""
    return 1.0


def write(
    row: int,
    on: Array,
    weights: Array,
    place: int,
    origin: Array,
    state: SeenBits,
    scratch: SeenScratch,
    mean: Array,
    into: BitStructures,
) -> None:
    """In bits of all coordinates."""
    words, used = state.words[row], in_use(state.used[row])
    combine(weights, words[:, :used], scratch.mean)
    for d in range(mean.shape[0]):
        mean[d] = origin[row, d]
    for at in range(state.used[row]):
        d = state.coordinate[row, at]
        mean[d] = scratch.mean[at] if origin[row, d] == 0.0 else 1.0 - scratch.mean[at]
    for d in range(mean.shape[0]):
        if origin[row, d] != 0.0:
            into.first[row, d // WORD] |= ONE << np.uint64(d % WORD)
    first = -1
    for s in range(on.shape[0]):
        if on[s]:
            first = s if first < 0 else first
            for at in range(state.used[row]):
                bit = np.uint64(at % WORD)
                d = state.coordinate[row, at]
                differs = (words[s, at // WORD] ^ words[first, at // WORD]) >> bit & ONE
                into.words[place, d // WORD] |= differs << np.uint64(d % WORD)
            place += 1
    for at in range(state.used[row]):
        d = state.coordinate[row, at]
        into.first[row, d // WORD] ^= (words[first, at // WORD] >> np.uint64(at % WORD) & ONE) << np.uint64(d % WORD)
