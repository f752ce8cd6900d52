"""What the sorted decompositions have in common that are compiled for the CPU: see `cuts`, whose fields these are.

Rows are independent. How structures are found, written and differentiated is in `nested_rows` for the cube and in
`chained_rows` for the budget polytope. Nothing of the size of the atoms is written but the atoms themselves.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from ....kernels.ordering import order, room
from ....kernels.vectors import UNCOUNTED, Array
from ..limits import CLOSED

NEVER = np.int32(2**31 - 1)


class Rows(NamedTuple):
    """Where the structures of each row change, and what the change depends on; see `cuts`.

    Attributes:
        coordinate: [B, D] int32, the fractional coordinates along the line, as many as `between` says.
        slot: [B, D] int32, of these: which cut lies at the end of each, from 1; 0 for none.
        between: [B] int64, the number of fractional coordinates.
        on, off: [B, D] int32, by coordinate: from which structure on they have it, and from which on not; NEVER is beyond all.
            If `off` is less, those before it have it too. On the cube nothing goes off, and only `on` is there.
        number: [B] int64, of structures; 0 where this form of the answer does not hold.
        binding: [B] bool, whether the sum is held fixed, so that only differences of scores count.
        weights: [B, D + 1] float64, of the structures.
        gap, margin: [B] float64, as in `SolverStats`.
        converged: [B] bool.
    """

    coordinate: Array
    slot: Array
    between: Array
    on: Array
    off: Array
    number: Array
    binding: Array
    weights: Array
    gap: Array
    margin: Array
    converged: Array


class Line(NamedTuple):
    """What is computed of one row at a time.

    Attributes:
        level: [D] the means that are strictly between 0 and 1, in the order of the line once they are sorted.
        values, ranks, places: what `ordering.order` is given.
        before: [D] int32, what is to be permuted.
        residual: [D] what the means leave of the scores.
        work: [D], of which the order is lost.
    """

    level: Array
    values: Array
    ranks: Array
    places: Array
    before: Array
    residual: Array
    work: Array


def line_of(dim: int) -> Line:
    """Room for rows of so many coordinates."""
    length = room(dim)
    level, residual, work = np.empty((3, dim))
    places, before = np.empty(dim, np.int64), np.empty(dim, np.int32)
    return Line(level, np.empty(length), np.empty(length, np.int64), places, before, residual, work)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def spoilt(values: Array) -> bool:
    """Whether there is NaN or +inf."""
    others = 0
    for place in range(values.shape[0]):
        others += not values[place] < math.inf
    return others > 0


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def sort(line: Line, coordinate: Array, count: int) -> None:
    """Levels and coordinates by falling level, of equal ones the first first."""
    for place in range(count):
        line.values[place], line.before[place] = -line.level[place], coordinate[place]
    order(line.values, count, line.ranks, line.places)
    for place in range(count):
        line.level[place], coordinate[place] = -line.values[line.places[place]], line.before[line.places[place]]


@numba.njit(error_model="numpy", inline="always", cache=True, **UNCOUNTED)
def certify(row: int, gap: float, size: float, rows: Rows) -> None:
    """As `sorted._certify`: the gap of an exact projection is rounding noise, of the size of what cancels in it."""
    rows.gap[row] = max(gap, 0.0)
    rows.converged[row] = gap <= CLOSED + 64 * np.finfo(np.float64).eps * size
