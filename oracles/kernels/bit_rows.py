"""The best structures of cube, budget and simplex, compiled for the CPU. Importing this module needs Numba."""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, switch_on, switch_on_above
from ...kernels.selection import nth_largest
from ...kernels.vectors import UNCOUNTED, Array
from ..kinds import AT_MOST, CUBE, SIMPLEX


class BitVectors(NamedTuple):
    """The oracle of one of `kinds`: see `row_oracles`."""

    kind: int
    budget: int


def best_of_row(row: int, oracle: BitVectors, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    _best(oracle.kind, oracle.budget, scores[0], work[0], structure)


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def _best(kind: int, budget: int, scores: Array, work: Array, structure: Array) -> None:
    """`maximize` of the polytopes in `kinds`, ties and all, for scores [D]: into `structure`, in bits [W]."""
    dim = scores.shape[0]
    if kind == SIMPLEX:
        clear(structure)
        switch_on(structure, np.argmax(scores))
        return
    positive = switch_on_above(scores, 0.0, structure)
    if kind == CUBE or (kind == AT_MOST and positive <= budget):
        return
    if budget == 0:
        clear(structure)
        return
    for d in range(dim):
        work[d] = scores[d]
    last = nth_largest(work, budget)
    left = budget - switch_on_above(scores, last, structure)
    for d in range(dim):  # of those that tie at the last place, the first
        if left > 0 and scores[d] == last:
            switch_on(structure, d)
            left -= 1
