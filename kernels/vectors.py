"""Operations on vectors that stay in a core's cache, written so that the compiler uses vector instructions.

float32 but for `maximum`. exp is accurate to about 1e-7, relative.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.options import DefaultOptions
from numba.extending import intrinsic

Array = np.ndarray
Scalar = Any  # float32 inside what is compiled; NumPy's own types for it are narrower than what it takes

# Numba counts references to arrays, at every call, slice and field of a tuple: a quarter of the time in small kernels, for
# nothing where a function owns no array. So the count is turned off for those (and they cannot allocate any), where that works.
UNCOUNTED: dict[str, Any] = {"_nrt": False} if hasattr(DefaultOptions, "_nrt") else {}
# What such functions call is compiled so too, unless it says otherwise: for those that they call and that allocate.
COUNTED: dict[str, Any] = dict.fromkeys(UNCOUNTED, True)

# Sums may be reordered, so that they can use vector instructions, and there are no NaN: callers look for them first. Only for
# what Python alone calls, and what is inlined there: `sums` says why.
FAST = {"reassoc", "contract", "nnan", "ninf", "nsz"}

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# exp(x) = 2^k exp(y), k = round(x / ln 2); ln 2 in two parts, the first exact in few bits, so that k times it is exact.
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp(y) - 1 - y over y^2 on |y| <= ln(2) / 2: the minimax polynomial of Cephes (Moshier 1989, expf).
TERMS = tuple(np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
C0, C1, C2, C3, C4, C5 = TERMS
LARGEST = np.float32(87.0)  # 2^k stays a normal number
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)


@intrinsic
def _as_float(context: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """The float32 of these 32 bits."""
    return types.float32(types.int32), lambda c, builder, s, arguments: builder.bitcast(arguments[0], ir.FloatType())


@intrinsic
def power_below(context: Any, x: Any) -> tuple[Any, Callable[..., Any]]:
    """The largest power of two that is at most x, a positive float64 and not denormal: its exponent's bits."""

    def generate(c: Any, builder: Any, s: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(64))
        return builder.bitcast(builder.and_(bits, ir.IntType(64)(0x7FF << 52)), ir.DoubleType())

    return types.float64(types.float64), generate


@intrinsic
def maximum(context: Any, left: Any, right: Any) -> tuple[Any, Callable[..., Any]]:
    """The larger of two floats; anything if one is NaN. Python's max compiles to a branch: no vector instructions."""

    def generate(c: Any, builder: Any, s: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.maxnum", [kind], ir.FunctionType(kind, [kind] * 2))
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))  # infinities are allowed

    return left(left, right), generate


@numba.njit(fastmath=FAST, inline="always")
def exp(x: Scalar) -> Scalar:
    """e^x for x of at most 87 in magnitude; e^-87 below."""
    x = max(x, -LARGEST)
    k = np.floor(x * LOG2_E + HALF)
    y = x - k * LN2_HIGH - k * LN2_LOW
    rest = ((((C0 * y + C1) * y + C2) * y + C3) * y + C4) * y + C5
    return (rest * y * y + y + ONE) * _as_float((np.int32(k) + EXPONENT_BIAS) << MANTISSA_BITS)  # pyright: ignore[reportCallIssue]
