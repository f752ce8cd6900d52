"""Selection compiled for the CPU: NumPy's compiles for seconds."""

import math
from typing import NamedTuple

import numba
import numpy as np

from .ordering import order, room
from .vectors import UNCOUNTED, Array, maximum


@numba.njit(cache=True)
def nth_largest(values: Array, n: int) -> float:
    """The n-th largest, n from 1, of values whose order is lost: Hoare's selection, the middle as the pivot."""
    place, left, right = values.shape[0] - n, 0, values.shape[0] - 1
    while left < right:
        pivot, low, high = values[(left + right) // 2], left, right
        while low <= high:
            while values[low] < pivot:
                low += 1
            while pivot < values[high]:
                high -= 1
            if low <= high:
                values[low], values[high] = values[high], values[low]
                low += 1
                high -= 1
        if place <= high:
            right = high
        elif place >= low:
            left = low
        else:
            break
    return float(values[place])


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
