"""`scalar_filter.filtered` compiled for the CPU: the sigmoids of one entry at a time, which stay in the core's cache."""

import numba

from ...kernels.vectors import FAST, LARGEST, ONE, ZERO, Array, Scalar, exp

# Entries whose derivatives by the filters are added in float32; their sums are added by the caller.
BLOCK = 256


@numba.njit(fastmath=FAST, inline="always")
def _sigmoid(x: Scalar) -> Scalar:
    return ONE / (ONE + exp(min(-x, LARGEST)))


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def filter_values(entries: Array, inner: Array, outer: Array, values: Array) -> None:
    """values[n] = sum_f outer[f] sigmoid(inner[f] entries[n])."""
    for place in range(entries.shape[0]):
        entry, total = entries[place], ZERO
        for f in range(inner.shape[0]):
            total += outer[f] * _sigmoid(inner[f] * entry)
        values[place] = total


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def filter_derivatives(
    entries: Array,  # [n]
    inner: Array,  # [F]
    outer: Array,  # [F]
    gradient: Array,  # [n] by the values
    by_entries: Array,  # [n], and the following, are written
    by_inner: Array,  # [blocks, F]
    by_outer: Array,  # [blocks, F]
    first: int,  # block
    last: int,  # behind the last block
) -> None:
    """The derivatives of gradient' values, for some blocks of entries."""
    for block in range(first, last):
        inners, outers = by_inner[block], by_outer[block]
        inners[:] = ZERO
        outers[:] = ZERO
        for place in range(block * BLOCK, min((block + 1) * BLOCK, entries.shape[0])):
            entry, weight, total = entries[place], gradient[place], ZERO
            for f in range(inner.shape[0]):
                value = _sigmoid(inner[f] * entry)
                slope = outer[f] * value * (ONE - value)
                total += inner[f] * slope
                outers[f] += weight * value
                inners[f] += weight * entry * slope
            by_entries[place] = weight * total


def blocks(count: int) -> int:
    """Into how many blocks that many entries fall."""
    return -(-count // BLOCK)
