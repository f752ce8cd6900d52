"""Largest sums, compiled for the CPU: what dynamic programs spend their time with.

Many of them at once, side by side in vector instructions: the best so far of each stays in a register while its terms are gone
through, which a compiler does not find by itself, least of all where there are fewer than a few vectors of them.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import DOUBLE, INDEX, LANES, SINGLE, Lanes
from .vectors import UNCOUNTED, Array, Scalar

# Entries of a vector, at most: so many are read and written at a time, as far beyond the last as that takes.
WHOLE = 2 * LANES
VECTOR = 8 * LANES  # bytes


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def largest_sums(
    base: Array | None, one: Array, start: int, step: int, other: Array, at: int, pace: int, terms: int, out: Array, count: int
) -> None:
    """out[i] = max over k < terms of base[i] + one[start + k step + i] + other[at + k pace + i], for i < count.

    Added in this order, and without `base` where that is None. Arrays are contiguous, [*], of one dtype, and have room for i up
    to the next multiple of `WHOLE`: anything may be read and written there. `-inf` may be among them; NaN, only there.
    """
    _largest_sums(base, one, start, step, other, at, pace, terms, out, count)  # pyright: ignore[reportCallIssue]


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def larger_sums(least: Array, more: Scalar, other: Array, out: Array, count: int) -> None:
    """out[i] = max(least[i], more + other[i]) for i < count; likewise."""
    _larger_sums(least, more, other, out, count)  # pyright: ignore[reportCallIssue]


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def largest_steps(base: Array, one: Array, start: int, before: Array, out: Array) -> None:
    """out[i] = max over k of base[i] + one[start + k n + i] + before[k], for out [n] of `VECTOR` bytes at least.

    Added in this order; arrays as above, but that the last vector begins where it ends with the last entry: nothing beyond is
    read or written.
    """
    _largest_steps(base, one, start, before, out)  # pyright: ignore[reportCallIssue]


@intrinsic
def _largest_sums(
    context: Any, base: Any, one: Any, start: Any, step: Any, other: Any, at: Any, pace: Any, terms: Any, out: Any, count: Any
) -> tuple[Any, Callable[..., Any]]:
    """`largest_sums`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, kinds = Lanes(c, builder, _kind(out)), signature.args
        own = None if isinstance(base, types.NoneType) else lanes.array(kinds[0], arguments[0])
        left, right, result = (lanes.array(kinds[number], arguments[number]) for number in (1, 4, 8))
        with cgutils.for_range(builder, _vectors(lanes, arguments[9])) as block:
            here = lanes.place(block.index)
            most = lanes.variables(1, lanes.constant(float("-inf")))[0]
            places = [cgutils.alloca_once_value(builder, builder.add(arguments[number], here)) for number in (2, 5)]
            with cgutils.for_range(builder, arguments[7]):
                before, after = (builder.load(place) for place in places)
                first = lanes.load(left.data, before)
                if own is not None:
                    first = builder.fadd(lanes.load(own.data, here), first)
                total = builder.fadd(first, lanes.load(right.data, after))
                builder.store(lanes.maximum(builder.load(most), total), most)
                for place, now, number in zip(places, (before, after), (3, 6), strict=True):
                    builder.store(builder.add(now, arguments[number]), place)
            lanes.store(builder.load(most), result.data, here)
        return c.get_dummy_value()

    index = types.int64
    return types.void(base, one, index, index, other, index, index, index, out, index), generate


@intrinsic
def _larger_sums(context: Any, least: Any, more: Any, other: Any, out: Any, count: Any) -> tuple[Any, Callable[..., Any]]:
    """`larger_sums`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, _kind(out))
        before, given, result = (lanes.array(signature.args[number], arguments[number]) for number in (0, 2, 3))
        added = lanes.repeat(arguments[1])
        with cgutils.for_range(builder, _vectors(lanes, arguments[4])) as block:
            here = lanes.place(block.index)
            total = builder.fadd(added, lanes.load(given.data, here))
            lanes.store(lanes.maximum(lanes.load(before.data, here), total), result.data, here)
        return c.get_dummy_value()

    return types.void(least, out.dtype, other, out, types.int64), generate


@intrinsic
def _largest_steps(context: Any, base: Any, one: Any, start: Any, before: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """`largest_steps`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, kinds = Lanes(c, builder, _kind(out)), signature.args
        own, left, right, result = (lanes.array(kinds[number], arguments[number]) for number in (0, 1, 3, 4))
        count, terms = lanes.shape(result, 0), lanes.shape(right, 0)
        last = builder.sub(count, INDEX(lanes.count))
        with cgutils.for_range(builder, _vectors(lanes, count)) as block:
            place = lanes.place(block.index)
            here = builder.select(builder.icmp_signed("<", place, last), place, last)
            most, always = lanes.variables(1, lanes.constant(float("-inf")))[0], lanes.load(own.data, here)
            at = cgutils.alloca_once_value(builder, builder.add(arguments[2], here))
            with cgutils.for_range(builder, terms) as term:
                now = builder.load(at)
                total = builder.fadd(
                    builder.fadd(always, lanes.load(left.data, now)), lanes.load_repeated(right.data, term.index)
                )
                builder.store(lanes.maximum(builder.load(most), total), most)
                builder.store(builder.add(now, count), at)
            lanes.store(builder.load(most), result.data, here)
        return c.get_dummy_value()

    return types.void(base, one, types.int64, before, out), generate


def _kind(array: Any) -> Any:
    """LLVM's type for the entries of an array."""
    return SINGLE if array.dtype == types.float32 else DOUBLE


def _vectors(lanes: Lanes, count: Any) -> Any:
    """How many vectors have so many entries."""
    return lanes.builder.udiv(lanes.builder.add(count, INDEX(lanes.count - 1)), INDEX(lanes.count))
