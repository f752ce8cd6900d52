"""The best structures of cube, budget and simplex, compiled for the CPU. Importing this module needs Numba."""

from typing import NamedTuple

import numpy as np

from ...kernels.bits import clear, switch_on, where_above
from ...kernels.selection import nth_largest
from ...kernels.vectors import Array
from ..kinds import AT_MOST, CUBE, SIMPLEX


class BitVectors(NamedTuple):
    """The oracle of one of `kinds`: see `row_oracles`."""

    kind: int
    budget: int


def best_of_row(row: int, oracle: BitVectors, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`: `maximize` of the polytopes in `kinds`, ties and all."""
    kind, budget, values, room = oracle.kind, oracle.budget, scores[0], work[0]
    if kind == SIMPLEX:
        clear(structure)
        switch_on(structure, np.argmax(values))
        return
    positive = where_above(values, 0.0, structure)
    if kind == CUBE or (kind == AT_MOST and positive <= budget):
        return
    if budget == 0:
        clear(structure)
        return
    for d in range(values.shape[0]):
        room[d] = values[d]
    last = nth_largest(room, budget)
    left = budget - where_above(values, last, structure)
    for d in range(values.shape[0]):  # of those that tie at the last place, the first
        if left > 0 and values[d] == last:
            switch_on(structure, d)
            left -= 1
