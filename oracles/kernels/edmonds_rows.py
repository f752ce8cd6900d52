"""Maximum spanning arborescences compiled for the CPU, one graph after the other: the trees of `edmonds`, ties and all.

There all cycles of a round become components together; here each does when a walk upwards finds it, and the arcs into its
members are merged: of those from one node only the best can ever be chosen. All of them take O(N^2). The best arc into a
component depends on what is inside of it, and a cycle stays one until it is made a component; so their order does not matter.
Only where a difference of weights is rounded to a tie may another of two words be entered, which is as good.
Chu and Liu (1965), Edmonds (1967), Tarjan (1977). Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.bits import clear, spread, switch_on, words_of
from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar, maximum
from .forbidden_rows import answer_forbidden

# The order of comparisons does not matter; there is `-inf`, but no NaN.
FAST_WITH_INFINITIES = {"reassoc", "nnan", "nsz"}
NEW, ON_WALK, DONE = 0, 1, 2


class Arcs(NamedTuple):
    """The best arc from each node into each component, [N, N] by (row, node). A component has the row of one of its nodes."""

    weight: Array  # less what choosing it replaces; -inf where there is none
    word: Array  # int64, where it enters
    level: Array  # what is compared before the weight; of no rows where nothing is


class Components(NamedTuple):
    """The nodes and the cycles that became components, in that order, [2N]; and which of them holds a node."""

    row: Array  # int64, in `Arcs`
    word: Array  # int64, the ends of the best arc into it
    head: Array  # int64
    weight: Array  # of that arc
    level: Array
    above: Array  # int64, the component that it is a member of; -1 if of none
    state: Array  # int64: NEW, ON_WALK, or DONE, where the walk upwards from it ends in node 0
    holding: Array  # [N] int64, the largest component that holds a node


class RootedTree(NamedTuple):
    """The oracle of an `Arborescence`: see `row_oracles`."""

    present: Array  # [B, n] bool, the words that are there
    single_root: bool


def best_of_row(row: int, oracle: RootedTree, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    arcs, tree = _room(oracle.present.shape[1], oracle.single_root)
    solve(scores[0], oracle.present[row], oracle.single_root, arcs, tree, structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, present: Array, single_root: bool, structures: Array) -> None:
    """The best trees over the words present [B, n], into structures [B, D], for scores [B, D] as `Arborescence` has them.

    A row that has none answers with what is forbidden. Scores are finite or `-inf`, and so are sums of them; with others a row
    answers with anything.
    """
    arcs, tree = _room(present.shape[1], single_root)
    bits = np.empty(words_of(scores.shape[1]), np.uint64)
    for row in range(scores.shape[0]):
        solve(scores[row], present[row], single_root, arcs, tree, bits)
        spread(bits, structures[row])


@numba.njit(error_model="numpy", cache=True, **COUNTED)
def _room(words: int, single_root: bool) -> tuple[Arcs, Components]:
    """For what is computed of one row."""
    size = words + 1
    matrix, number, vector = np.empty((2, size, size)), np.empty((size + 12, size), np.int64), np.empty((2, 2 * size))
    member = number[size:].reshape(6, 2 * size)
    tree = Components(member[0], member[1], member[2], vector[0], vector[1], member[3], member[4], member[5, :size])
    return Arcs(matrix[0], number[:size], matrix[1, : size if single_root else 0]), tree


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def solve(scores: Array, present: Array, single_root: bool, arcs: Arcs, tree: Components, structure: Array) -> None:
    """`best` of one row, scores [D], in bits."""
    words = present.shape[0]
    _begin(scores, present, arcs, tree)
    count, on_root = words + 1, 0
    for start in range(1, words + 1):
        if count > 0 and present[start - 1]:
            count = _walk(start, count, arcs, tree)
    if count > 0:
        _open(count, words + 1, tree)
    for word in range(1, words + 1):
        on_root += present[word - 1] and tree.head[word] == 0
    if count == 0 or not present[0] or (single_root and on_root != 1):
        answer_forbidden(scores, structure)
        return
    clear(structure)
    for word in range(1, words + 1):
        if present[word - 1]:
            switch_on(structure, (word - 1) * words + tree.head[word] - (tree.head[word] > word))


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _begin(scores: Array, present: Array, arcs: Arcs, tree: Components) -> None:
    """The arcs that there are, of scores [D] and words present [n]; every node is a component."""
    words = present.shape[0]
    arcs.weight[0] = -np.inf
    for word in range(1, words + 1):
        own, weight = scores[(word - 1) * words : word * words], arcs.weight[word]
        weight[word] = -np.inf
        for head in range(word):
            weight[head] = own[head] if own[head] > -np.inf else -np.inf  # NaN, too
        for head in range(word + 1, words + 1):
            weight[head] = own[head - 1] if own[head - 1] > -np.inf else -np.inf
    for word in range(1, words + 1):
        if not present[word - 1]:
            arcs.weight[word], arcs.weight[:, word] = -np.inf, -np.inf
    for node in range(words + 1):
        arcs.word[node] = node
        tree.row[node], tree.holding[node], tree.above[node], tree.state[node] = node, node, -1, NEW
    tree.state[0] = DONE
    for word in range(arcs.level.shape[0]):
        for head in range(words + 1):
            arcs.level[word, head] = (-1.0 if head == 0 else 0.0) if arcs.weight[word, head] > -np.inf else -np.inf


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _walk(start: int, count: int, arcs: Arcs, tree: Components) -> int:
    """Upwards from a node along best arcs to what is DONE, with each cycle made a component; how many there are then.

    0 where no arc enters a component.
    """
    here = tree.holding[start]
    while tree.state[here] != DONE:
        if tree.state[here] == NEW:
            if not _enter(here, arcs, tree):
                return 0
            tree.state[here] = ON_WALK
            here = tree.holding[tree.head[here]]
        else:
            _contract(here, count, arcs, tree)
            here = count
            count += 1
    here = tree.holding[start]
    while tree.state[here] != DONE:
        tree.state[here] = DONE
        here = tree.holding[tree.head[here]]
    return count


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _enter(component: int, arcs: Arcs, tree: Components) -> bool:
    """Chooses the best arc into a component, at ties the lowest word, then the lowest head; whether there is one."""
    row, level = tree.row[component], 0.0
    weights, words = arcs.weight[row], arcs.word[row]
    levels = arcs.level[row] if arcs.level.shape[0] > 0 else weights[:0]
    if levels.shape[0] > 0:
        level = _largest(levels)
        most = _largest_among(levels, level, weights)
    else:
        most = _largest(weights)
    none = weights.shape[0]
    lowest, head = none, 0
    for node in range(none if most > -np.inf else 0):
        if weights[node] == most and words[node] < lowest and (levels.shape[0] == 0 or levels[node] == level):
            lowest, head = words[node], node
    tree.word[component], tree.head[component] = lowest, head
    tree.weight[component], tree.level[component] = most, level
    return lowest < none


@numba.njit(fastmath=FAST_WITH_INFINITIES, cache=True, **UNCOUNTED)
def _largest(values: Array) -> float:
    most = -np.inf
    for place in range(values.shape[0]):
        most = maximum(most, values[place])  # pyright: ignore[reportCallIssue]
    return most


@numba.njit(fastmath=FAST_WITH_INFINITIES, cache=True, **UNCOUNTED)
def _largest_among(levels: Array, level: Scalar, values: Array) -> float:
    """Of those values that have this level."""
    most = -np.inf
    for place in range(values.shape[0]):
        most = maximum(most, values[place] if levels[place] == level else -np.inf)  # pyright: ignore[reportCallIssue]
    return most


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _contract(member: Scalar, into: int, arcs: Arcs, tree: Components) -> None:
    """Makes the cycle that `member` is on the component `into`: arcs into it weigh less by what they replace."""
    row = tree.row[member]
    tree.row[into], tree.above[into], tree.state[into] = row, -1, NEW
    here = member
    while tree.above[here] < 0:
        tree.above[here] = into
        own = tree.row[here]
        _lower(arcs.weight[own], tree.weight[here])
        if arcs.level.shape[0] > 0:
            _lower(arcs.level[own], tree.level[here])
        if own != row:
            _merge(own, row, arcs)
        here = tree.holding[tree.head[here]]
    for node in range(tree.holding.shape[0]):
        if tree.above[tree.holding[node]] == into:
            tree.holding[node] = into
            arcs.weight[row, node] = -np.inf
            if arcs.level.shape[0] > 0:
                arcs.level[row, node] = -np.inf


@numba.njit(cache=True, **UNCOUNTED)
def _lower(values: Array, less: Scalar) -> None:
    for node in range(values.shape[0]):
        values[node] -= less


@numba.njit(cache=True, **UNCOUNTED)
def _merge(other: Scalar, row: Scalar, arcs: Arcs) -> None:
    """Of two arcs from a node keeps the better one in `row`: the heavier, at a tie that which enters at the lower word."""
    weights, words, into, into_words = arcs.weight[other], arcs.word[other], arcs.weight[row], arcs.word[row]
    if arcs.level.shape[0] == 0:
        for node in range(weights.shape[0]):
            weight, word = weights[node], words[node]
            better = (weight > into[node]) | ((weight == into[node]) & (word < into_words[node]))
            into[node] = weight if better else into[node]
            into_words[node] = word if better else into_words[node]
    else:
        levels, into_levels = arcs.level[other], arcs.level[row]
        for node in range(weights.shape[0]):
            level, weight, word = levels[node], weights[node], words[node]
            heavier = (weight > into[node]) | ((weight == into[node]) & (word < into_words[node]))
            better = (level > into_levels[node]) | ((level == into_levels[node]) & heavier)
            into_levels[node] = level if better else into_levels[node]
            into[node] = weight if better else into[node]
            into_words[node] = word if better else into_words[node]


@numba.njit(cache=True, **UNCOUNTED)
def _open(count: int, size: int, tree: Components) -> None:
    """The arc into every node: components are opened again, last first, but for the arc into the member that is entered."""
    for component in range(count - 1, size - 1, -1):
        word, head = tree.word[component], tree.head[component]
        member = word
        while tree.above[member] != component:
            member = tree.above[member]
        tree.word[member], tree.head[member] = word, head
