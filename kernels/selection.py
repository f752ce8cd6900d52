"""Selection compiled for the CPU: NumPy's compiles for seconds."""

import numba

from .vectors import Array


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
