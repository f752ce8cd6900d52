"""The best trees of a `ProjectiveTree`, compiled for the CPU: Eisner (1996), all spans of a width in vector instructions.

`derivation_rows` solves the same dynamic program edge by edge, as it does any; sums are taken in the same order, so that both
find the same trees. Spans are kept by their width and their first node: what all spans of a width are made of then lies side by
side. Which choice was best is found again for those spans alone that the best tree is made of. Importing this module needs
Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, spread, switch_on, words_of
from ...kernels.largest import WHOLE, largest_sums
from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar
from .forbidden_rows import answer_forbidden, positions_before_end

# Spans of nodes i .. i + w, whose head is one end: all of its words have theirs, or only the arc between the ends was made.
LEFT, RIGHT, ARC_RIGHT, ARC_LEFT = range(4)


class Chart(NamedTuple):
    """By width w and first node i, for the N = n + 1 nodes: node 0 is the root, and no word's dependent.

    Each is [N, M] with room for whole vectors, M > N; what is computed there is of no span, and never read.
    """

    left: Array  # the best total of spans whose head is i
    right: Array  # whose head is i + w
    arc_right: Array  # with the arc i -> i + w
    arc_left: Array  # with the arc i + w -> i
    score_right: Array  # of the arc i -> i + w
    score_left: Array  # of the arc i + w -> i


class NestedTree(NamedTuple):
    """The oracle of a `ProjectiveTree`: see `row_oracles`."""

    words: int
    single_root: bool


def best_of_row(row: int, oracle: NestedTree, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    chart, waiting = _room(oracle.words, scores)
    solve(scores[0], oracle.words, oracle.single_root, chart, waiting, structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, words: int, single_root: bool, structures: Array) -> None:
    """Into structures [B, D], for scores [B, D]; a row that has none answers with what is forbidden.

    Scores are finite or `-inf`, and so are sums of them; with others a row answers with anything.
    """
    chart, waiting = _room(words, scores)
    bits = np.empty(words_of(scores.shape[1]), np.uint64)
    for row in range(scores.shape[0]):
        solve(scores[row], words, single_root, chart, waiting, bits)
        spread(bits, structures[row])


@numba.njit(error_model="numpy", cache=True, **COUNTED)
def _room(words: int, scores: Array) -> tuple[Chart, Array]:
    """For what is computed of one row of scores [*]: a chart, and spans that are to be opened."""
    size = words + 1
    table = np.zeros((6, size, size + WHOLE - size % WHOLE), scores.dtype)
    return Chart(table[0], table[1], table[2], table[3], table[4], table[5]), np.empty((2 * size + 4, 3), np.int64)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, words: int, single_root: bool, chart: Chart, waiting: Array, structure: Array) -> None:
    """`best` of one row, scores [D], in bits."""
    last = positions_before_end(scores, words, words)
    _place(scores, words, last, chart)
    _climb(last + 1, chart)
    child, total = _root(last, single_root, chart)
    if last == 0 or total == -np.inf:
        answer_forbidden(scores, structure)
        return
    clear(structure)
    if single_root:
        switch_on(structure, _number(0, child, words))
        _put(waiting, 0, RIGHT, 1, child - 1)
        count = _put(waiting, 1, LEFT, child, last - child)
    else:
        count = _put(waiting, 0, LEFT, 0, last)
    while count > 0:
        count = _open(waiting, count, words, chart, structure)


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def _number(head: int, word: int, words: int) -> int:
    """The coordinate of an arc: see `DependencyArcs`."""
    return (word - 1) * words + head - (head > word)


@numba.njit(cache=True, **UNCOUNTED)
def _place(scores: Array, words: int, last: int, chart: Chart) -> None:
    """The scores of arcs between the nodes 0 .. last, by width and first node."""
    for first in range(last):
        for width in range(1, last + 1 - first):
            other = first + width
            chart.score_right[width, first] = scores[_number(first, other, words)]
            chart.score_left[width, first] = scores[_number(other, first, words)] if first > 0 else -np.inf


@numba.njit(cache=True, **UNCOUNTED)
def _climb(size: int, chart: Chart) -> None:
    """The totals of all spans of the first `size` nodes."""
    room = chart.left.shape[1]
    left, right = chart.left.reshape(-1), chart.right.reshape(-1)
    arc_right, arc_left = chart.arc_right.reshape(-1), chart.arc_left.reshape(-1)
    for first in range(size):
        left[first], right[first] = 0, 0
    for width in range(1, size):
        count, here, below = size - width, width * room, (width - 1) * room
        # Two parts: spans from i on, wider and wider, and spans that end at i + width, narrower and narrower.
        wider, narrower = room, 1 - room
        for scores, arcs in ((chart.score_right, arc_right), (chart.score_left, arc_left)):
            largest_sums(scores[width], left, 0, wider, right, below + 1, narrower, width, arcs[here:], count)
        largest_sums(None, arc_right, room, wider, left, below + 1, narrower, width, left[here:], count)
        largest_sums(None, right, 0, wider, arc_left, here, narrower, width, right[here:], count)


@numba.njit(cache=True, **UNCOUNTED)
def _root(last: int, single_root: bool, chart: Chart) -> tuple[int, Scalar]:
    """The child of the root, if it is to be one, and the total."""
    if not single_root:
        return 0, chart.left[last, 0]
    chosen, most = 1, chart.left[0, 0] - np.inf
    for child in range(1, last + 1):
        total = chart.score_right[child, 0] + chart.right[child - 1, 1] + chart.left[last - child, child]
        if total > most:
            chosen, most = child, total
    return chosen, most


@numba.njit(inline="always", cache=True, **UNCOUNTED)
def _put(waiting: Array, place: int, kind: int, first: int, width: int) -> int:
    """Puts a span among those to be opened; the places that are taken."""
    waiting[place, 0], waiting[place, 1], waiting[place, 2] = kind, first, width
    return place + 1


@numba.njit(cache=True, **UNCOUNTED)
def _open(waiting: Array, count: int, words: int, chart: Chart, structure: Array) -> int:
    """Opens the last of the spans that wait, for the first choice that has its total; how many wait then."""
    count -= 1
    kind, i, width = waiting[count, 0], waiting[count, 1], waiting[count, 2]
    if width == 0:
        return count
    if kind == LEFT:
        k = 1
        while k < width and chart.arc_right[k, i] + chart.left[width - k, i + k] != chart.left[width, i]:
            k += 1
        count = _put(waiting, count, ARC_RIGHT, i, k)
        return _put(waiting, count, LEFT, i + k, width - k)
    if kind == RIGHT:
        k = 0
        while k < width - 1 and chart.right[k, i] + chart.arc_left[width - k, i + k] != chart.right[width, i]:
            k += 1
        count = _put(waiting, count, RIGHT, i, k)
        return _put(waiting, count, ARC_LEFT, i + k, width - k)
    rightwards = kind == ARC_RIGHT
    score = chart.score_right[width, i] if rightwards else chart.score_left[width, i]
    total = chart.arc_right[width, i] if rightwards else chart.arc_left[width, i]
    switch_on(structure, _number(i, i + width, words) if rightwards else _number(i + width, i, words))
    k = 0
    while k < width - 1 and score + chart.left[k, i] + chart.right[width - 1 - k, i + k + 1] != total:
        k += 1
    count = _put(waiting, count, LEFT, i, k)
    return _put(waiting, count, RIGHT, i + k + 1, width - 1 - k)
