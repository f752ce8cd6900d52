"""Packed rows told by their lengths, compiled for the CPU: the calls of NumPy that say the same take longer than the rows."""

import numba
import numpy as np

from .vectors import UNCOUNTED, Array


def first_of(number: Array) -> Array:
    """Where each row begins in what is packed, and where all ends, for rows of these lengths: [B] int64 -> [B + 1]."""
    first = np.empty(len(number) + 1, np.int64)
    _add_up(number, first)
    return first


def row_of(first: Array) -> Array:
    """Whose each entry is that is packed, for rows that begin there: [B + 1] int64 -> [N]."""
    row = np.empty(first[-1], np.int64)
    _repeat(first, row)
    return row


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def none_empty(number: Array) -> bool:
    """Whether no length is 0."""
    empty = 0
    for row in range(number.shape[0]):
        empty += number[row] == 0
    return empty == 0


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def _add_up(number: Array, first: Array) -> None:
    first[0] = 0
    for row in range(number.shape[0]):
        first[row + 1] = first[row] + number[row]


@numba.njit(nogil=True, cache=True, **UNCOUNTED)
def _repeat(first: Array, row: Array) -> None:
    for b in range(first.shape[0] - 1):
        for n in range(first[b], first[b + 1]):
            row[n] = b
