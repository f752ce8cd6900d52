"""Projections of rows on the simplex compiled for the CPU: a few passes over a row, and no sort. Importing it needs Numba."""

import numba
import numpy as np

from ...kernels.sums import add_up_above
from ...kernels.vectors import UNCOUNTED, Array, maximum

# So few candidates take less time one after the other than in vectors.
FEW = 32


@numba.njit(nogil=True, error_model="numpy", cache=True)
def project_rows(scores: Array, probs: Array) -> None:
    """probs = max(scores - tau, 0) row by row, [B, K]; a row with NaN, +inf or nothing but -inf becomes NaN.

    With scores relative to their largest, tau is in [-1, 0). So only scores above -1 can get mass: they are set aside, and tau
    is found on them.
    """
    rows, count = scores.shape
    kept = np.empty(count, np.float64)
    for row in range(rows):
        values = scores[row]
        peak, broken = values[0], 0
        for place in range(count):
            peak = maximum(peak, values[place])  # pyright: ignore[reportCallIssue]
            broken += values[place] != values[place]
        if broken > 0 or not abs(peak) < np.inf:
            probs[row] = np.nan
            continue
        top, candidates = np.float64(peak), 0
        for place in range(count):  # without a branch, which processors would guess wrong
            value = values[place] - top
            kept[candidates] = value
            candidates += value > -1.0
        tau = _threshold(kept, candidates)
        for place in range(count):
            probs[row, place] = max(values[place] - top - tau, 0.0)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _threshold(kept: Array, left: int) -> float:
    """tau with sum_k max(v_k - tau, 0) = 1 of the first `left` values, which are lost.

    As Michelot (1986) finds it: the mean excess over 1 of what is left, without what lies below it, until nothing does.
    """
    total, count = add_up_above(kept, left, -np.inf)
    tau = (total - 1.0) / count
    while left > FEW:
        before = count
        total, count = add_up_above(kept, left, tau)
        if count >= before:  # more, where rounding decides about the last
            return tau
        if 2 * count < left:
            left = _move_forward(kept, left, tau)
        tau = (total - 1.0) / count
    count = -1
    while count != left:
        count = left
        total, left = 0.0, 0
        for place in range(count):
            value = kept[place]
            if value > tau:
                kept[left] = value
                left += 1
                total += value
        tau = (total - 1.0) / left
    return tau


@numba.njit(cache=True, **UNCOUNTED)
def _move_forward(values: Array, left: int, tau: float) -> int:
    """Moves those of the first `left` values that are above tau to the front; how many."""
    count = 0
    for place in range(left):
        value = values[place]
        values[count] = value
        count += value > tau
    return count


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True, error_model="numpy", cache=True)
def pull_back_rows(probs: Array, gradient: Array, result: Array) -> None:
    """result = s * (gradient - <s, gradient> / |s|) for the support s = [probs > 0] of each row (paper eq. 10), [B, K]."""
    rows, count = probs.shape
    zero = probs.dtype.type(0)
    for row in range(rows):
        total, size = 0.0, 0
        for place in range(count):
            supported = probs[row, place] > zero
            total += gradient[row, place] if supported else zero
            size += supported
        if size == 0:  # a row of NaN
            result[row] = np.nan
            continue
        mean = probs.dtype.type(total / size)
        for place in range(count):
            result[row, place] = gradient[row, place] - mean if probs[row, place] > zero else zero
