"""exp in float64, in vector instructions; that of the C library takes one number at a time."""

import math
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import INDEX, LANES, Lanes
from .vectors import UNCOUNTED, Array, Scalar

# exp(x) = 2^k exp(y), k = round(x / ln 2); ln 2 in two parts, the first in so few bits that k times it is exact.
LOG2_E = 1.0 / math.log(2.0)
LN2_HIGH = float.fromhex("0x1.62e42fefap-1")
LN2_LOW = float.fromhex("0x1.cf79abc9e3b3ap-40")  # what is left of it
# Added to a number below 2^51 in magnitude it leaves no bits for a fraction: the sum is rounded, and ends in the integer.
SHIFT = 1.5 * 2.0**52
LEAST = -708.0  # e^x is a normal number from there on
# The series of exp from y^13 / 13! down to y^2 / 2!: what follows is below 2^-57 for |y| <= ln(2) / 2.
SERIES = tuple(1.0 / math.factorial(n) for n in range(13, 1, -1))
WORD = ir.IntType(64)
EXPONENT, BIAS = 52, 1023  # where it begins in a float64, and what it is of 1


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def exponentiate(values: Array, first: int, count: int, peak: Scalar, out: Array) -> None:
    """values[i] = peak - values[i], and out[i] = e^-values[i], to an ulp; 0 below e^-708. For first <= i < first + count.

    Both arrays are float64 and have room for i up to the next multiple of `LANES` from `first` on: anything may be read and
    written there. Values are at most `peak`, and may be `-inf`.
    """
    _exponentiate(values, first, count, peak, out)  # pyright: ignore[reportCallIssue]


@intrinsic
def _exponentiate(context: Any, values: Any, first: Any, count: Any, peak: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """`exponentiate`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, kinds = Lanes(c, builder), signature.args
        given, result = lanes.array(kinds[0], arguments[0]), lanes.array(kinds[4], arguments[4])
        top, words = lanes.repeat(arguments[3]), ir.VectorType(WORD, lanes.count)
        constant = lanes.constant
        with cgutils.for_range(builder, builder.udiv(builder.add(arguments[2], INDEX(LANES - 1)), INDEX(LANES))) as block:
            here = builder.add(arguments[1], lanes.place(block.index))
            below = builder.fsub(top, lanes.load(given.data, here))
            lanes.store(below, given.data, here)
            x = lanes.maximum(builder.fsub(lanes.zeros, below), constant(LEAST))
            shifted = lanes.add_product(x, constant(LOG2_E), constant(SHIFT))
            k = builder.fsub(shifted, constant(SHIFT))
            y = lanes.add_product(k, constant(-LN2_LOW), lanes.add_product(k, constant(-LN2_HIGH), x))
            rest = constant(SERIES[0])
            for term in SERIES[1:]:
                rest = lanes.add_product(rest, y, constant(term))
            found = builder.fadd(constant(1.0), lanes.add_product(builder.fmul(rest, y), y, y))
            bits = builder.shl(builder.bitcast(shifted, words), ir.Constant(words, [EXPONENT] * lanes.count))
            power = builder.bitcast(builder.add(bits, ir.Constant(words, [BIAS << EXPONENT] * lanes.count)), lanes.vector)
            within = builder.fcmp_ordered("<=", below, constant(-LEAST))
            lanes.store(builder.select(within, builder.fmul(found, power), lanes.zeros), result.data, here)
        return c.get_dummy_value()

    return types.void(values, types.int64, types.int64, types.float64, out), generate
