"""What compiled oracles make of scores that are `-inf`. Importing this module needs Numba."""

import numba
import numpy as np

from ...kernels.bits import WORD
from ...kernels.vectors import UNCOUNTED, Array


@numba.njit(cache=True, **UNCOUNTED)
def answer_forbidden(scores: Array, structure: Array) -> None:
    """Into a structure, in bits [W], what scores [D] forbid: the answer of a row that has none, by which solvers know it."""
    for w in range(structure.shape[0]):
        start, word = WORD * w, np.uint64(0)
        for d in range(min(WORD, scores.shape[0] - start)):
            word |= np.uint64(scores[start + d] == -np.inf) << np.uint64(d)
        structure[w] = word


@numba.njit(cache=True, **UNCOUNTED)
def positions_before_end(scores: Array, positions: int, width: int) -> int:
    """How many positions, of `width` scores each, come before the first in which all are forbidden."""
    for position in range(positions):
        allowed = False
        for place in range(position * width, (position + 1) * width):
            allowed = allowed or scores[place] != -np.inf
        if not allowed:
            return position
    return positions
