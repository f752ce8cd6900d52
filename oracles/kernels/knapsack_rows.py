"""The best sets of a `Knapsack`, compiled for the CPU: Bellman (1957), all weights of a set in vector instructions.

`derivation_rows` solves the same dynamic program edge by edge, as it does any; sums are taken in the same order, so that both
find the same sets. Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, spread, switch_on, words_of
from ...kernels.largest import WHOLE, larger_sums
from ...kernels.vectors import COUNTED, UNCOUNTED, Array


class Fitting(NamedTuple):
    """The oracle of a `Knapsack`: see `row_oracles`."""

    weights: Array  # [D] int64
    size: int  # sets weigh less than this


def best_of_row(row: int, oracle: Fitting, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    solve(scores[0], oracle.weights, oracle.size, np.empty((len(oracle.weights) + 1, oracle.size + WHOLE)), structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, weights: Array, size: int, structures: Array) -> None:
    """Into structures [B, D], for scores [B, D]. Scores are finite or `-inf`; with others a row answers with anything."""
    value, words = np.empty((len(weights) + 1, size + WHOLE), scores.dtype), np.empty(words_of(len(weights)), np.uint64)
    for row in range(scores.shape[0]):
        solve(scores[row], weights, size, value, words)
        spread(words, structures[row])


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, weights: Array, size: int, value: Array, structure: Array) -> None:
    """`best` of one row, scores [D], in bits [W].

    Into value [D + 1, size + WHOLE]: the best totals of the first items, by weight; beyond `size` of no set, and never read for
    one.
    """
    items = weights.shape[0]
    for used in range(value.shape[1]):
        value[0, used] = -np.inf
    value[0, 0] = 0
    for item in range(items):
        before, after, weight = value[item], value[item + 1], min(weights[item], size)
        for used in range(weight):
            after[used] = before[used]
        larger_sums(before[weight:], scores[item], before, after[weight:], size - weight)
    used = 0
    for other in range(1, size):
        used = other if value[items, other] > value[items, used] else used
    clear(structure)
    for item in range(items - 1, -1, -1):
        if used >= weights[item] and value[item + 1, used] != value[item, used]:
            switch_on(structure, item)
            used -= weights[item]
