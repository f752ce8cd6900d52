"""Sets of 0/1 structures as bits, compiled for the CPU: compared by counting, added up by masks.

A structure of D coordinates is W = ceil(D / 64) words; coordinate d is bit d % 64 of word d // 64, and bits beyond D are 0.
"""

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import UNCOUNTED, Array

if sys.byteorder != "little":
    raise ImportError("bits are read as bytes, in the order of little-endian machines: without these kernels on others")

WORD = 64
ONE = np.uint64(1)


def words_of(dim: int) -> int:
    """W."""
    return -(-dim // WORD)


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


@numba.njit(cache=True, **UNCOUNTED)
def overlaps(words: Array, on: Array, given: Array, out: Array) -> None:
    """out[s] = how many bits words[s] [W] and given [W] have in common, for s in use; 0 for others."""
    for s in range(on.shape[0]):
        total = 0
        for w in range(given.shape[0]):
            total += count(words[s, w] & given[w])  # pyright: ignore[reportCallIssue]
        out[s] = float(total) if on[s] else 0.0


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, cache=True, **UNCOUNTED)
def total(values: Array, words: Array) -> float:
    """The sum of those of the values [64 W] whose bit is set in words [W]."""
    result = 0.0
    for w in range(words.shape[0]):
        word, here = words[w], values[WORD * w : WORD * (w + 1)]
        for d in range(WORD):
            result += here[d] if word & (ONE << np.uint64(d)) else 0.0
    return result


@numba.njit(cache=True, **UNCOUNTED)
def combine(weights: Array, words: Array, out: Array) -> None:
    """out [64 W] = sum_s weights[s] words[s], for words [S, W]; in the order of s."""
    for w in range(words.shape[1]):
        _combine(weights, words, w, out)  # pyright: ignore[reportCallIssue]


@intrinsic
def count(context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """How many bits of a word are set."""
    return types.int64(types.uint64), lambda c, builder, s, arguments: builder.ctpop(arguments[0])


@intrinsic
def _combine(context: Any, weights: Any, words: Any, column: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """One column of words in `combine`: 64 sums in vectors of 8. A byte is a mask of 8, of which no compiler thinks."""
    lanes, short, index = 8, ir.IntType(32), ir.IntType(64)
    vector, mask = ir.VectorType(ir.DoubleType(), lanes), ir.VectorType(ir.IntType(1), lanes)

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (*_, place, _) = signature.args, arguments
        given, bits, result = (c.make_array(kinds[i])(c, builder, arguments[i]) for i in (0, 1, 3))
        octets, stride = builder.bitcast(bits.data, ir.IntType(8).as_pointer()), builder.extract_value(bits.shape, 1)
        first = builder.mul(place, index(8))
        empty, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * lanes)
        sums = [cgutils.alloca_once(builder, vector) for _ in range(8)]
        for sum_ in sums:
            builder.store(zero, sum_)
        with cgutils.for_range(builder, builder.extract_value(given.shape, 0)) as loop:
            one = builder.insert_element(empty, builder.load(builder.gep(given.data, [loop.index])), short(0))
            weight = builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(short, lanes), [0] * lanes))
            start = builder.add(builder.mul(builder.mul(loop.index, stride), index(8)), first)
            for octet, sum_ in enumerate(sums):
                byte = builder.load(builder.gep(octets, [builder.add(start, index(octet))]))
                before = builder.load(sum_)
                after = builder.select(builder.bitcast(byte, mask), builder.fadd(before, weight), before)
                builder.store(after, sum_)
        for octet, sum_ in enumerate(sums):
            where = builder.gep(result.data, [builder.mul(builder.add(first, index(octet)), index(lanes))])
            builder.store(builder.load(sum_), builder.bitcast(where, vector.as_pointer()), align=8)
        return c.get_dummy_value()

    return types.void(weights, words, types.int64, out), generate
