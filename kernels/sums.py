"""Sums in vector instructions, compiled for the CPU: in one order, whatever they become a part of.

With `fastmath` a compiler may reorder a sum, so that it can use vector instructions, and each copy of a function is optimised
with what contains it. But of several copies in a process any may be called: which one depends on what has been compiled, and
what was found on the disk. So what compiled functions share, be it sums or what has sums in it, is not to be reordered, or the
last bits of a result would change from one process to the next.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import INDEX, LANES, Lanes
from .vectors import UNCOUNTED, Array

# Sums that are independent of one another, so that none waits for the one before.
SUMS = 4


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def dot(left: Array, right: Array, size: int) -> float:
    """<left, right> of the first `size` entries, float64."""
    return _dot(left, right, size)  # pyright: ignore[reportCallIssue]


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def add_up(values: Array) -> float:
    """The sum of values [n] float64."""
    return _add_up(values, values.shape[0])  # pyright: ignore[reportCallIssue]


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def add_up_above(values: Array, size: int, least: float) -> tuple[float, int]:
    """The sum and the number of those of the first `size` values, float64, that are above `least`."""
    return _add_up_above(values, size, least)  # pyright: ignore[reportCallIssue]


@intrinsic
def _dot(context: Any, left: Any, right: Any, size: Any) -> tuple[Any, Callable[..., Any]]:
    """`dot`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        one, other = (lanes.array(kind, value) for kind, value in zip(signature.args[:2], arguments[:2], strict=True))

        def add(sum_: Any, place: Any) -> None:
            product = lanes.load(one.data, place), lanes.load(other.data, place)
            builder.store(lanes.add_product(*product, builder.load(sum_)), sum_)

        def add_entry(sum_: Any, place: Any) -> None:
            product = builder.fmul(*(builder.load(builder.gep(array.data, [place])) for array in (one, other)))
            builder.store(builder.fadd(builder.load(sum_), product), sum_)

        return _in_order(lanes, arguments[2], add, add_entry)

    return types.float64(left, right, types.int64), generate


@intrinsic
def _add_up(context: Any, values: Any, size: Any) -> tuple[Any, Callable[..., Any]]:
    """`add_up`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        given = lanes.array(signature.args[0], arguments[0])

        def add_entry(sum_: Any, place: Any) -> None:
            builder.store(builder.fadd(builder.load(sum_), builder.load(builder.gep(given.data, [place]))), sum_)

        return _in_order(lanes, arguments[1], lambda sum_, place: lanes.update(sum_, lanes.load(given.data, place)), add_entry)

    return types.float64(values, types.int64), generate


@intrinsic
def _add_up_above(context: Any, values: Any, size: Any, least: Any) -> tuple[Any, Callable[..., Any]]:
    """`add_up_above`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, bound = Lanes(c, builder), arguments[2]
        given, everywhere = lanes.array(signature.args[0], arguments[0]), lanes.repeat(bound)
        number = cgutils.alloca_once_value(builder, INDEX(0))

        def count(above: Any) -> None:
            builder.store(builder.add(builder.load(number), above), number)

        def add(sum_: Any, place: Any) -> None:
            here = lanes.load(given.data, place)
            above = builder.fcmp_ordered(">", here, everywhere)
            lanes.update(sum_, builder.select(above, here, lanes.zeros))
            count(builder.zext(builder.ctpop(builder.bitcast(above, ir.IntType(LANES))), INDEX))

        def add_entry(sum_: Any, place: Any) -> None:
            here = builder.load(builder.gep(given.data, [place]))
            above = builder.fcmp_ordered(">", here, bound)
            builder.store(builder.fadd(builder.load(sum_), builder.select(above, here, lanes.kind(0.0))), sum_)
            count(builder.zext(above, INDEX))

        total = _in_order(lanes, arguments[1], add, add_entry)
        return c.make_tuple(builder, signature.return_type, [total, builder.load(number)])

    return types.Tuple((types.float64, types.int64))(values, types.int64, types.float64), generate


def _in_order(lanes: Lanes, size: Any, add: Callable[[Any, Any], None], add_entry: Callable[[Any, Any], None]) -> Any:
    """A sum of `size` entries: of whole vectors, so many at a time, then of what is left one by one.

    Args:
        lanes: to build it with.
        size: INDEX.
        add: adds to a variable the vector that begins at a place.
        add_entry: the same for a single entry.
    """
    builder, sums = lanes.builder, lanes.variables(SUMS)
    together = builder.udiv(size, INDEX(SUMS * LANES))
    with cgutils.for_range(builder, together) as groups:
        for number, sum_ in enumerate(sums):
            add(sum_, builder.add(builder.mul(groups.index, INDEX(SUMS * LANES)), INDEX(number * LANES)))
    vectors = builder.udiv(size, INDEX(LANES))
    with cgutils.for_range_slice(builder, builder.mul(together, INDEX(SUMS)), vectors, INDEX(1)) as (block, _):
        add(sums[0], lanes.place(block))
    found = cgutils.alloca_once_value(builder, lanes.total(lanes.added(sums)))
    with cgutils.for_range_slice(builder, lanes.place(vectors), size, INDEX(1)) as (place, _):
        add_entry(found, place)
    return builder.load(found)
