"""The best structures of cube, budget and simplex, compiled for the CPU. Importing this module needs Numba."""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.selection import nth_largest
from ...kernels.vectors import UNCOUNTED, Array
from ..kinds import AT_MOST, CUBE, SIMPLEX


class BitVectors(NamedTuple):
    """The oracle of one of `kinds`: see `row_oracles`."""

    kind: int
    budget: int


def best_of_row(row: int, oracle: BitVectors, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    _best(oracle.kind, oracle.budget, scores[0], work[0], structure[0])


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _best(kind: int, budget: int, scores: Array, work: Array, structure: Array) -> None:
    """`maximize` of the polytopes in `kinds`, ties and all: into `structure` [D]."""
    dim = scores.shape[0]
    if kind == SIMPLEX:
        structure[:] = 0.0
        structure[np.argmax(scores)] = 1.0
        return
    positive = 0
    for d in range(dim):
        structure[d] = 1.0 if scores[d] > 0.0 else 0.0
        positive += scores[d] > 0.0
        work[d] = scores[d]
    if kind == CUBE or (kind == AT_MOST and positive <= budget):
        return
    structure[:] = 0.0
    if budget == 0:
        return
    last = nth_largest(work, budget)
    left = budget
    for d in range(dim):
        if scores[d] > last:
            structure[d] = 1.0
            left -= 1
    for d in range(dim):  # of those that tie at the last place, the first
        if left > 0 and scores[d] == last:
            structure[d] = 1.0
            left -= 1
