"""Numbers put in order, compiled for the CPU: up to a hundred or so, each is compared with each, eight at a time.

A sort by halves takes n log n steps, and guesses half of them wrongly. The n^2 / 8 steps that there is nothing to guess in take
less, up to a hundred or so. Longer lists are merged from such: each step waits for the one before, but guesses nothing either.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import INDEX, LANES, Lanes
from .vectors import UNCOUNTED, Array

MOST = 128  # numbers that are compared each with each
RANKS, MASK = ir.VectorType(INDEX, LANES), ir.VectorType(ir.IntType(1), LANES)


@numba.njit(inline="always")
def room(count: int) -> int:
    """How long an array of so many numbers has to be: whole vectors."""
    return -(-count // LANES) * LANES


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def order(values: Array, count: int, ranks: Array, found: Array) -> None:
    """Into found [n] the `argsort` of the first n = `count` values, of equal ones the first first; none may be NaN.

    values and ranks (int64, anything) have `room` for n.
    """
    for place in range(count, room(count)):
        values[place] = math.inf
    for start in range(0, count, MOST):
        size = min(MOST, count - start)
        _rank(values[start:], size, ranks)  # pyright: ignore[reportCallIssue]
        for place in range(size):
            found[start + ranks[place]] = start + place
    width = MOST
    while width < count:
        for start in range(0, count, 2 * width):
            _merge(values, found[start : min(start + 2 * width, count)], min(width, count - start), ranks)
        width *= 2


@numba.njit(cache=True, **UNCOUNTED)
def _merge(values: Array, places: Array, half: int, work: Array) -> None:
    """Places [n] of which the first half and the rest are in order, in order."""
    for place in range(half):
        work[place] = places[place]
    left, right, place = 0, half, 0
    while left < half and right < places.shape[0]:  # which of both comes first is no branch
        one, other = work[left], places[right]
        is_first = values[one] <= values[other]
        places[place] = one if is_first else other
        left += is_first
        right += not is_first
        place += 1
    for rest in range(left, half):
        places[place + rest - left] = work[rest]


@intrinsic
def _rank(context: Any, values: Any, count: Any, ranks: Any) -> tuple[Any, Callable[..., Any]]:
    """ranks[i] = how many come before values[i]: those that are smaller, and of those that are equal the ones before it."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, count = Lanes(c, builder), arguments[1]
        given, result = (lanes.array(signature.args[place], arguments[place]) for place in (0, 2))
        one, before = ir.Constant(RANKS, [1] * LANES), cgutils.alloca_once(builder, RANKS)
        blocks = builder.udiv(builder.add(count, INDEX(LANES - 1)), INDEX(LANES))
        with cgutils.for_range(builder, blocks) as block:
            first = lanes.place(block.index)
            here = lanes.load(given.data, first)
            builder.store(ir.Constant(RANKS, [0] * LANES), before)

            def add(precedes: Any) -> None:
                known = builder.load(before)
                builder.store(builder.select(precedes, builder.add(known, one), known), before)

            def compared(sign: str, place: Any, here: Any = here) -> Any:
                return builder.fcmp_ordered(sign, lanes.load_repeated(given.data, place), here)

            with cgutils.for_range(builder, first) as earlier:
                add(compared("<=", earlier.index))
            for lane in range(LANES):
                place, later = builder.add(first, INDEX(lane)), ir.Constant(MASK, [own > lane for own in range(LANES)])
                add(builder.select(later, compared("<=", place), compared("<", place)))
            rest = builder.add(first, INDEX(LANES))
            with cgutils.for_range_slice(builder, rest, count, INDEX(1), inc=True) as (other, _):
                add(compared("<", other))
            into = builder.bitcast(builder.gep(result.data, [first]), RANKS.as_pointer())
            builder.store(builder.load(before), into, align=8)
        return c.get_dummy_value()

    return types.void(values, types.int64, ranks), generate
