"""Sparsemax of the rows of a matrix compiled for the CPU: two passes over a row forward, one backward, and no sort."""

import numba
import numpy as np

from .vectors import Array, maximum


@numba.njit(nogil=True, error_model="numpy", cache=True)
def project_rows(scores: Array, probs: Array) -> None:
    """probs = max(scores - tau, 0) row by row, [B, K]; a row with NaN, +inf or nothing but -inf becomes NaN.

    With scores relative to their largest, tau is in [-1, 0). So only scores above -1 can get mass. Those few are set aside, and
    tau is found on them as Michelot (1986) does: the mean excess over 1 of what is left, without what lies below it, until
    nothing does.
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
        top = np.float64(peak)
        candidates, total = 0, 0.0
        for place in range(count):
            value = values[place] - top
            if value > -1.0:
                kept[candidates] = value
                candidates += 1
                total += value
        tau, left = -np.inf, 0
        while left != candidates:
            left = candidates
            tau = (total - 1.0) / candidates
            candidates, total = 0, 0.0
            for place in range(left):
                value = kept[place]
                if value > tau:
                    kept[candidates] = value
                    candidates += 1
                    total += value
        for place in range(count):
            probs[row, place] = max(values[place] - top - tau, 0.0)


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
