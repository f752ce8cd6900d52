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
from .vectors import UNCOUNTED, Array

# Entries of a vector, at most: so many are read and written at a time, as far beyond the last as that takes.
WHOLE = 2 * LANES


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def largest_sums(
    base: Array | None, one: Array, start: int, step: int, other: Array, at: int, stride: int, terms: int, out: Array, count: int
) -> None:
    """out[i] = max over k < terms of base[i] + one[start + k step + i] + other[at + k stride + i], for i < count.

    Added in this order, and without `base` where that is None. Arrays are contiguous, [*], of one dtype, and are read and written
    for i up to the next multiple of `WHOLE`, too. `-inf` may be among them, but no NaN where it counts.
    """
    _largest_sums(base, one, start, step, other, at, stride, terms, out, count)  # pyright: ignore[reportCallIssue]


@intrinsic
def _largest_sums(
    context: Any, base: Any, one: Any, start: Any, step: Any, other: Any, at: Any, stride: Any, terms: Any, out: Any, count: Any
) -> tuple[Any, Callable[..., Any]]:
    """`largest_sums`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, SINGLE if out.dtype == types.float32 else DOUBLE)
        kinds = signature.args
        own = None if isinstance(base, types.NoneType) else lanes.array(kinds[0], arguments[0])
        left, right, result = (lanes.array(kinds[number], arguments[number]) for number in (1, 4, 8))
        blocks = builder.udiv(builder.add(arguments[9], INDEX(lanes.count - 1)), INDEX(lanes.count))
        with cgutils.for_range(builder, blocks) as block:
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
