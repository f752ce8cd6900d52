"""Sets of 0/1 structures as bits, compiled for the CPU: compared by counting, added up by masks.

A structure of D coordinates is W = ceil(D / 64) words; coordinate d is bit d % 64 of word d // 64, and bits beyond D are 0.
"""

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .lanes import INDEX, LANES, Lanes
from .sums import SUMS
from .vectors import UNCOUNTED, Array, Scalar

if sys.byteorder != "little":
    raise ImportError("bits are read as bytes, in the order of little-endian machines: without these kernels on others")

WORD = 64
ONE = np.uint64(1)
OCTETS = WORD // LANES


@register_jitable(inline="always")
def words_of(dim: int) -> int:
    """W."""
    return -(-dim // WORD)


def in_words(structures: Array) -> Array:
    """0/1 [B, D] as words [B, W]."""
    batch, dim = structures.shape
    whole = np.zeros((batch, WORD * words_of(dim)), bool)
    whole[:, :dim] = structures
    return np.packbits(whole, axis=1, bitorder="little").view(np.uint64)


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def are_bits(values: Array) -> bool:
    """Whether all values [n, D] are 0 or 1."""
    others = 0
    for row in range(values.shape[0]):
        for place in range(values.shape[1]):
            value = values[row, place]
            others += (value != 0.0) & (value != 1.0)
    return others == 0


@numba.njit(cache=True, **UNCOUNTED)
def differences(values: Array, others: Array, words: Array) -> None:
    """Into words [W]: where values [D] and others [D] are not the same."""
    for w in range(words.shape[0]):
        start, word = WORD * w, np.uint64(0)
        for d in range(min(WORD, values.shape[0] - start)):
            word |= np.uint64(values[start + d] != others[start + d]) << np.uint64(d)
        words[w] = word


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def clear(words: Array) -> None:
    """None of them [W]."""
    for w in range(words.shape[0]):
        words[w] = np.uint64(0)


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def switch_on(words: Array, d: Scalar) -> None:
    """One more coordinate in words [W]."""
    words[d >> 6] |= ONE << np.uint64(d & 63)


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def first_of(word: Scalar) -> int:
    """The lowest bit that is set; `word & (word - 1)` has the others."""
    return count((word & (~word + ONE)) - ONE)  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **UNCOUNTED)
def where_above(values: Array, least: float, words: Array) -> int:
    """Into words [W]: which of values [D] are above `least`; how many they are."""
    found = 0
    for w in range(words.shape[0]):
        start, word = WORD * w, np.uint64(0)
        for d in range(min(WORD, values.shape[0] - start)):
            word |= np.uint64(values[start + d] > least) << np.uint64(d)
        words[w] = word
        found += count(word)  # pyright: ignore[reportCallIssue]
    return found


@numba.njit(cache=True, **UNCOUNTED)
def spread(words: Array, values: Array) -> None:
    """Into values [D]: 1 where the bit is set in words [W], few of them, and 0 elsewhere."""
    for d in range(values.shape[0]):
        values[d] = 0
    for w in range(words.shape[0]):
        left = words[w]
        while left != np.uint64(0):
            values[WORD * w + first_of(left)] = 1
            left &= left - ONE


@numba.njit(cache=True, **UNCOUNTED)
def overlaps(words: Array, on: Array, given: Array, out: Array) -> None:
    """out[s] = how many bits words[s] [W] and given [W] have in common, for s in use; 0 for others."""
    for s in range(on.shape[0]):
        total = 0
        for w in range(given.shape[0]):
            total += count(words[s, w] & given[w])  # pyright: ignore[reportCallIssue]
        out[s] = float(total) if on[s] else 0.0


@numba.njit(cache=True, **UNCOUNTED)
def total(values: Array, words: Array) -> float:
    """The sum of those of the values [64 W] whose bit is set in words [W]."""
    return _total(values, words)  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **UNCOUNTED)
def combine(weights: Array, words: Array, out: Array) -> None:
    """out [64 W] = sum_s weights[s] words[s], for words [S, W], which may be a part of longer ones; in the order of s."""
    for w in range(words.shape[1]):
        _combine(weights, words, w, out)  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **UNCOUNTED)
def totals(values: Array, words: Array, out: Array) -> None:
    """out[s] = the sum of those of the values [64 W] whose bit is set in words[s] [W], likewise."""
    _totals(values, words, out)  # pyright: ignore[reportCallIssue]


@intrinsic
def count(context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """How many bits of a word are set."""
    return types.int64(types.uint64), lambda c, builder, s, arguments: builder.ctpop(arguments[0])


@intrinsic
def _combine(context: Any, weights: Any, words: Any, column: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """One column of words in `combine`: 64 sums in vectors of 8. A byte is a mask of 8, of which no compiler thinks."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, column = Lanes(c, builder), arguments[2]
        given, bits, result = (lanes.array(signature.args[i], arguments[i]) for i in (0, 1, 3))
        sums = lanes.variables(OCTETS)
        with cgutils.for_range(builder, lanes.shape(given, 0)) as rows:
            weight = lanes.load_repeated(given.data, rows.index)
            word = builder.add(builder.mul(rows.index, lanes.stride(bits)), column)
            for octet, sum_ in enumerate(sums):
                before = builder.load(sum_)
                after = builder.fadd(before, weight)
                builder.store(builder.select(lanes.mask(bits.data, lanes.place(word, octet)), after, before), sum_)
        for octet, sum_ in enumerate(sums):
            lanes.store(builder.load(sum_), result.data, lanes.place(lanes.place(column, octet)))
        return c.get_dummy_value()

    return types.void(weights, words, types.int64, out), generate


@intrinsic
def _total(context: Any, values: Any, words: Any) -> tuple[Any, Callable[..., Any]]:
    """`total`, likewise."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        given, bits = (lanes.array(kind, value) for kind, value in zip(signature.args, arguments, strict=True))
        return _masked_sum(lanes, given, bits, INDEX(0), lanes.shape(bits, 0))

    return types.float64(values, words), generate


@intrinsic
def _totals(context: Any, values: Any, words: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """`totals`, likewise."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        given, bits, result = (lanes.array(kind, value) for kind, value in zip(signature.args, arguments, strict=True))
        with cgutils.for_range(builder, lanes.shape(bits, 0)) as rows:
            first = builder.mul(rows.index, lanes.stride(bits))
            found = _masked_sum(lanes, given, bits, first, lanes.shape(bits, 1))
            builder.store(found, builder.gep(result.data, [rows.index]))
        return c.get_dummy_value()

    return types.void(values, words, out), generate


def _masked_sum(lanes: Lanes, values: Any, bits: Any, first: Any, count: Any) -> Any:
    """The sum of those values whose bit is set in so many words from `first` on."""
    builder, sums = lanes.builder, lanes.variables(SUMS)
    with cgutils.for_range(builder, count) as columns:
        word = builder.add(first, columns.index)
        for octet in range(OCTETS):
            sum_ = sums[octet % SUMS]
            before = builder.load(sum_)
            here = lanes.load(values.data, lanes.place(lanes.place(columns.index, octet)))
            after = builder.fadd(before, here)
            builder.store(builder.select(lanes.mask(bits.data, lanes.place(word, octet)), after, before), sum_)
    return lanes.total(lanes.added(sums))
