"""The best sets of a `Knapsack`, compiled for the CPU: Bellman (1957), all weights of a set in vector instructions.

`derivation_rows` solves the same dynamic program edge by edge, as it does any; sums are taken in the same order, so that both
find the same sets. Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.largest import WHOLE, larger_sums
from ...kernels.vectors import COUNTED, Array


class Fitting(NamedTuple):
    """The oracle of a `Knapsack`: see `row_oracles`."""

    weights: Array  # [D] int64
    size: int  # sets weigh less than this


def best_of_row(row: int, oracle: Fitting, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    best(scores, oracle.weights, oracle.size, structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, weights: Array, size: int, structures: Array) -> None:
    """Into structures [B, D], for scores [B, D]. Scores are finite or `-inf`; with others a row answers with anything."""
    items = weights.shape[0]
    value = np.empty((items + 1, size + WHOLE), scores.dtype)  # beyond `size`: of no set, and never read for one
    value[0] = -np.inf
    for row in range(scores.shape[0]):
        value[0, 0] = 0
        for item in range(items):
            before, after, weight = value[item], value[item + 1], min(weights[item], size)
            for other in range(weight):
                after[other] = before[other]
            larger_sums(before[weight:], scores[row, item], before, after[weight:], size - weight)
        used = 0
        for other in range(1, size):
            used = other if value[items, other] > value[items, used] else used
        for item in range(items - 1, -1, -1):
            taken = used >= weights[item] and value[item + 1, used] != value[item, used]
            structures[row, item] = taken
            used -= weights[item] if taken else 0
