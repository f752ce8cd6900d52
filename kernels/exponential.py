"""exp in float64, written so that the compiler uses vector instructions; that of the C library takes one number at a time."""

import math
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vectors import UNCOUNTED, Scalar, maximum

# exp(x) = 2^k exp(y), k = round(x / ln 2); ln 2 in two parts, the first in so few bits that k times it is exact.
LOG2_E = 1.0 / math.log(2.0)
LN2_HIGH = float.fromhex("0x1.62e42fefap-1")
LN2_LOW = float.fromhex("0x1.cf79abc9e3b3ap-40")  # what is left of it
# Added to a number below 2^51 in magnitude it leaves no bits for a fraction: the sum is rounded, and ends in the integer.
SHIFT = 1.5 * 2.0**52
LEAST = -708.0  # e^x is a normal number from there on
# The series of exp up to y^13 / 13!: what follows is below 2^-57 for |y| <= ln(2) / 2.
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / math.factorial(n) for n in range(2, 14))


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def exp_of_negative(x: Scalar) -> Scalar:
    """e^x for x <= 0, float64, to an ulp; 0 below -708. x may be `-inf`."""
    within = maximum(x, LEAST)  # pyright: ignore[reportCallIssue]
    shifted = within * LOG2_E + SHIFT
    k = shifted - SHIFT
    y = (within - k * LN2_HIGH) - k * LN2_LOW
    high = ((((C13 * y + C12) * y + C11) * y + C10) * y + C9) * y + C8
    rest = ((((((high * y + C7) * y + C6) * y + C5) * y + C4) * y + C3) * y + C2) * y * y
    found = (1.0 + (y + rest)) * _power_of_two(shifted)  # pyright: ignore[reportCallIssue]
    return found if x >= LEAST else 0.0


@intrinsic
def _power_of_two(context: Any, shifted: Any) -> tuple[Any, Callable[..., Any]]:
    """2^k for what is k + SHIFT, an integer k from -1022 to 1023."""

    def generate(c: Any, builder: Any, s: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        exponent = builder.shl(builder.bitcast(arguments[0], word), word(52))
        return builder.bitcast(builder.add(exponent, word(1023 << 52)), ir.DoubleType())

    return types.float64(types.float64), generate
