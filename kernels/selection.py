"""Selection compiled for the CPU: NumPy's compiles for seconds."""

import math
from typing import NamedTuple

import numba
import numpy as np

from .ordering import order, room
from .vectors import UNCOUNTED, Array, maximum


@numba.njit(cache=True, **UNCOUNTED)
def nth_largest(values: Array, n: int) -> float:
    """The n-th largest, 1 <= n <= D, of values [D], which are lost: selection by pivots (Hoare 1961), without guesses.

    To count what is above and below a pivot, and to keep one of both, takes no branch that depends on the values.
    O(D) steps for values in no order, O(D^2) at worst.
    """
    size = values.shape[0]
    while True:
        first, middle, last = values[0], values[size // 2], values[size - 1]
        pivot = max(min(first, middle), min(max(first, middle), last))
        above, below = 0, 0
        for place in range(size):
            above += values[place] > pivot
            below += values[place] < pivot
        if above < n <= size - below:
            return float(pivot)
        kept = 0
        if n <= above:
            for place in range(size):
                value = values[place]
                values[kept] = value
                kept += value > pivot
        else:
            n -= size - below
            for place in range(size):
                value = values[place]
                values[kept] = value
                kept += value < pivot
        size = kept


class Sieve(NamedTuple):
    """Room to find the n smallest of D numbers in: G = 2 n groups, in whole vectors."""

    least: Array  # [G] the smallest of a group, times -1
    values: Array  # [room(D)] of those that may be among the n
    places: Array  # [D] where they are
    ranks: Array  # [room(D)]
    ordered: Array  # [D]


def sieve_of(dim: int, n: int) -> Sieve:
    """For the n smallest of D numbers."""
    length = room(max(dim, 2 * n))
    places, ordered, ranks = np.empty(dim, np.int64), np.empty(length, np.int64), np.empty(length, np.int64)
    return Sieve(np.empty(room(2 * n)), np.empty(length), places, ranks, ordered)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def smallest(values: Array, sieve: Sieve, found: Array) -> None:
    """Where the n smallest of the values [D] are, in order, of equal ones the first, into found [n]; none may be NaN.

    Of twice as many groups, the n-th of their smallest is a bound: n numbers are no larger, and few others. To see which these
    are takes no guess, and neither does it to put them in order.
    """
    least, kept, n, groups = sieve.least, sieve.values, found.shape[0], sieve.least.shape[0]
    if n == 0:
        return
    for group in range(groups):
        least[group] = -math.inf
    for start in range(0, values.shape[0], groups):
        for group in range(min(groups, values.shape[0] - start)):
            least[group] = maximum(least[group], -values[start + group])  # pyright: ignore[reportCallIssue]
    for group in range(groups):
        kept[group] = -least[group]
    order(kept, groups, sieve.ranks, sieve.ordered)
    bound, count = kept[sieve.ordered[n - 1]], 0
    for place in range(values.shape[0]):
        kept[count], sieve.places[count] = values[place], place
        count += values[place] <= bound
    order(kept, count, sieve.ranks, sieve.ordered)
    for place in range(n):
        found[place] = sieve.places[sieve.ordered[place]]
