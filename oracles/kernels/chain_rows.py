"""The best sequences of a `LinearChain`, compiled for the CPU: Viterbi (1967), all states of a position in vector instructions.

`derivation_rows` solves the same dynamic program edge by edge, as it does any; sums are taken in the same order, so that both
find the same sequences. Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, spread, switch_on, words_of
from ...kernels.largest import VECTOR, largest_steps
from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar, maximum
from .forbidden_rows import answer_forbidden, positions_before_end


class Chain(NamedTuple):
    """The oracle of a `LinearChain`: see `row_oracles`."""

    length: int
    states: int


def best_of_row(row: int, oracle: Chain, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    solve(scores[0], np.empty((oracle.length, oracle.states)), structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, length: int, states: int, structures: Array) -> None:
    """Into structures [B, D], for scores [B, D]; a row that has none answers with what is forbidden.

    Scores are finite or `-inf`, and so are sums of them; with others a row answers with anything.
    """
    value, words = np.empty((length, states), scores.dtype), np.empty(words_of(scores.shape[1]), np.uint64)
    for row in range(scores.shape[0]):
        solve(scores[row], value, words)
        spread(words, structures[row])


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, value: Array, structure: Array) -> None:
    """`best` of one row, scores [D], in bits [W]; value [L, S] is room for anything."""
    length, states = value.shape
    unary, pairs = scores[: length * states], scores[length * states :]
    count = positions_before_end(unary, length, states)
    last, most = 0, unary[0]
    if count > 0:
        _climb(unary, pairs, count, value)
        last, most = _first_largest(value[count - 1])
    if most == -np.inf:
        answer_forbidden(scores, structure)
        return
    clear(structure)
    for t in range(count - 1, -1, -1):
        switch_on(structure, t * states + last)
        if t > 0:
            first = _before(t, last, unary, pairs, value)
            switch_on(structure, length * states + ((t - 1) * states + first) * states + last)
            last = first


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _climb(unary: Array, pairs: Array, count: int, value: Array) -> None:
    """Into value[t] [S] the best total up to t by its state, for t < count."""
    states = value.shape[1]
    for s in range(states):
        value[0, s] = unary[s]
    for t in range(1, count):
        here, there = value[t], value[t - 1]
        own, start = unary[t * states : (t + 1) * states], (t - 1) * states * states
        if states * value.itemsize >= VECTOR:
            largest_steps(own, pairs, start, there, here)
            continue
        for s in range(states):
            here[s] = -np.inf
        for first in range(states):
            base, pair = there[first], pairs[start + first * states : start + (first + 1) * states]
            for s in range(states):
                here[s] = maximum(here[s], own[s] + pair[s] + base)  # pyright: ignore[reportCallIssue]


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _before(t: int, last: int, unary: Array, pairs: Array, value: Array) -> int:
    """The first state at t - 1 from which the best way to `last` at t comes: it is found again on that way alone."""
    states, first = value.shape[1], 0
    own, place = unary[t * states + last], (t - 1) * states * states + last
    while first < states - 1 and own + pairs[place + first * states] + value[t - 1, first] != value[t, last]:
        first += 1
    return first


@numba.njit(cache=True, **UNCOUNTED)
def _first_largest(values: Array) -> tuple[int, Scalar]:
    """The first place of the largest of values [S], and that value."""
    place, most = 0, values[0]
    for s in range(1, values.shape[0]):
        if values[s] > most:
            place, most = s, values[s]
    return place, most
