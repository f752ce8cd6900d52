"""Maximum spanning arborescences compiled for the CPU, one graph after the other: the rounds of `edmonds`, ties and all.

Only arcs into components that are new in a round are looked at again: the best arc into any other is what it was. Chu and Liu
(1965), Edmonds (1967). Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ...kernels.vectors import COUNTED, UNCOUNTED, Array, Scalar, maximum
from .forbidden_rows import answer_forbidden

# The order of comparisons does not matter; there is `-inf`, but no NaN.
FAST_WITH_INFINITIES = {"reassoc", "nnan", "nsz"}


class Rounds(NamedTuple):
    """What each round of one graph chose, as in `edmonds`: [R, N] each."""

    component: Array  # int64
    word: Array  # int64
    head: Array  # int64
    on_cycle: Array  # bool
    merged: Array  # int64


class Scratch(NamedTuple):
    """What a round computes."""

    weights: Array  # [N, N] by (word, head), -inf where there is no arc any more
    first: Array  # [N, N] what is compared before; of no words where nothing is
    value: Array  # [N] of the best arc into a node, among those that come first
    head: Array  # [N] int64, that arc's
    level: Array  # [N] what comes first, of a node
    level_of: Array  # [N] of a component, at its representative
    value_of: Array  # [N] likewise
    parent: Array  # [N] int64, the component above a component
    seen: Array  # [N] int64, when a walk has come by
    changed: Array  # [N] bool, whether a node's component is new


class RootedTree(NamedTuple):
    """The oracle of an `Arborescence`: see `row_oracles`."""

    present: Array  # [B, n] bool, the words that are there
    single_root: bool


def best_of_row(row: int, oracle: RootedTree, scores: Array, work: Array, structure: Array) -> None:
    """See `row_oracles`."""
    best(scores, oracle.present[row : row + 1], oracle.single_root, structure)


@numba.njit(nogil=True, error_model="numpy", cache=True, **COUNTED)
def best(scores: Array, present: Array, single_root: bool, structures: Array) -> None:
    """The best trees over the words present [B, n], into structures [B, D], for scores [B, D] as `Arborescence` has them.

    A row that has none answers with what is forbidden. Scores are finite or `-inf`, and so are sums of them; with others a row
    answers with anything.
    """
    words = present.shape[1]
    size = words + 1
    number, truth = np.empty((4, size, size), np.int64), np.empty((size + 2, size), np.bool_)
    rounds = Rounds(number[0], number[1], number[2], truth[:size], number[3])
    matrix, vector, place = np.empty((2, size, size)), np.empty((4, size)), np.empty((4, size), np.int64)
    first, changed, nodes, heads = matrix[1, : size if single_root else 0], truth[size], truth[size + 1], place[3]
    scratch = Scratch(matrix[0], first, vector[0], place[0], vector[1], vector[2], vector[3], place[1], place[2], changed)
    for row in range(scores.shape[0]):
        nodes[0], nodes[1:] = True, present[row]
        _begin(scores[row], nodes, rounds, scratch)
        last, whole = 0, _choose(0, nodes, rounds, scratch)
        while _find_cycles(last, rounds, scratch):
            _contract(last, rounds, scratch)
            last += 1
            whole = _choose(last, nodes, rounds, scratch) and whole
        _open(last, rounds, heads)
        on_root = 0
        for word in range(1, size):
            on_root += nodes[word] and heads[word] == 0
        if whole and present[row, 0] and (on_root == 1 or not single_root):
            structures[row] = 0
            for word in range(1, size):
                if nodes[word]:
                    structures[row, (word - 1) * words + heads[word] - (heads[word] > word)] = 1
        else:
            answer_forbidden(scores[row], structures[row])


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _begin(scores: Array, present: Array, rounds: Rounds, scratch: Scratch) -> None:
    """The arcs that there are, of scores [D] and nodes present [N]; every node is a component."""
    size = present.shape[0]
    for word in range(size):
        rounds.component[0, word], scratch.changed[word] = word, True
        scratch.weights[word] = -np.inf
        start = (word - 1) * (size - 1)
        for place in range(size - 1 if word > 0 and present[word] else 0):
            head = place + (place >= word)
            if present[head] and scores[start + place] > -np.inf:
                scratch.weights[word, head] = scores[start + place]
    for word in range(scratch.first.shape[0]):
        for head in range(size):
            arc = scratch.weights[word, head] > -np.inf
            scratch.first[word, head] = (-1.0 if head == 0 else 0.0) if arc else -np.inf


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _choose(number: int, present: Array, rounds: Rounds, scratch: Scratch) -> bool:
    """The best arc into every component; whether all that are to be entered can be."""
    value, component, chosen = scratch.value, rounds.component[number], rounds.word[number]
    size = value.shape[0]
    _look(component, scratch)
    for node in range(size):
        scratch.value_of[node], chosen[node] = -np.inf, size
    for node in range(size):
        scratch.value_of[component[node]] = max(scratch.value_of[component[node]], value[node])
    for node in range(size):
        if value[node] > -np.inf and value[node] == scratch.value_of[component[node]]:
            chosen[component[node]] = min(chosen[component[node]], node)
    whole = True
    for node in range(size):
        reached = chosen[node] < size
        whole = whole and (reached or component[node] != node or node == 0 or not present[node])
        chosen[node] = chosen[node] if reached else 0
        rounds.head[number, node] = scratch.head[chosen[node]] if reached else 0
        scratch.parent[node] = component[rounds.head[number, node]] if reached else 0
    return whole


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _look(component: Array, scratch: Scratch) -> None:
    """The best arc into every node of a new component; into others it is what it was."""
    level, level_of, size = scratch.level, scratch.level_of, component.shape[0]
    if scratch.first.shape[0] > 0:
        for word in range(size):
            level_of[word] = -np.inf
        for word in range(size):
            level[word] = _largest(scratch.first[word]) if scratch.changed[word] else level[word]
            level_of[component[word]] = max(level_of[component[word]], level[word])
    for word in range(size):
        if scratch.changed[word]:
            arcs, least = scratch.weights[word], level_of[component[word]]
            firsts = scratch.first[word] if scratch.first.shape[0] > 0 else level[:0]
            most = _largest_among(firsts, least, arcs) if firsts.shape[0] > 0 else _largest(arcs)
            scratch.value[word], scratch.head[word] = most, 0
            for head in range(size if most > -np.inf else 0):
                if arcs[head] == most and (firsts.shape[0] == 0 or firsts[head] == least):
                    scratch.head[word] = head
                    break


@numba.njit(fastmath=FAST_WITH_INFINITIES, cache=True, **UNCOUNTED)
def _largest(values: Array) -> float:
    most = -np.inf
    for place in range(values.shape[0]):
        most = maximum(most, values[place])  # pyright: ignore[reportCallIssue]
    return most


@numba.njit(fastmath=FAST_WITH_INFINITIES, cache=True, **UNCOUNTED)
def _largest_among(firsts: Array, first: Scalar, values: Array) -> float:
    """Of those values that come first."""
    most = -np.inf
    for place in range(values.shape[0]):
        most = maximum(most, values[place] if firsts[place] == first else -np.inf)  # pyright: ignore[reportCallIssue]
    return most


@numba.njit(cache=True, **UNCOUNTED)
def _find_cycles(number: int, rounds: Rounds, scratch: Scratch) -> bool:
    """Which components are on a cycle, and the lowest of each; whether there is any but that of node 0."""
    parent, seen, some = scratch.parent, scratch.seen, False
    for node in range(parent.shape[0]):
        seen[node] = -1
        rounds.on_cycle[number, node], rounds.merged[number, node] = False, node
    for start in range(parent.shape[0]):
        node = start
        while seen[node] < 0:
            seen[node] = start
            node = parent[node]
        if seen[node] != start or node == 0 or rounds.on_cycle[number, node]:
            continue
        some, lowest, here = True, node, parent[node]
        while here != node:
            lowest, here = min(lowest, here), parent[here]
        while not rounds.on_cycle[number, node]:
            rounds.on_cycle[number, node], rounds.merged[number, node] = True, lowest
            node = parent[node]
    return some


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _contract(number: int, rounds: Rounds, scratch: Scratch) -> None:
    """Makes each cycle a component: arcs into it weigh less by what they replace, and those inside of it are none."""
    component, into = rounds.component[number], rounds.component[number + 1]
    for node in range(into.shape[0]):
        into[node] = rounds.merged[number, component[node]]
    for word in range(into.shape[0]):
        here = component[word]
        scratch.changed[word] = rounds.on_cycle[number, here]
        if scratch.changed[word]:
            _lower(scratch.weights[word], scratch.value_of[here], into, into[word])
            if scratch.first.shape[0] > 0:
                _lower(scratch.first[word], scratch.level_of[here], into, into[word])


@numba.njit(cache=True, **UNCOUNTED)
def _lower(arcs: Array, less: Scalar, component: Array, inside: int) -> None:
    """Arcs [N] by head, in place."""
    for head in range(arcs.shape[0]):
        arcs[head] = -np.inf if component[head] == inside else arcs[head] - less


@numba.njit(cache=True, **UNCOUNTED)
def _open(last: int, rounds: Rounds, heads: Array) -> None:
    """The head of every node: components are opened again, last first, but for the arc to the node that is entered."""
    for number in range(last - 1, -1, -1):
        inner, outer = number, number + 1
        for node in range(heads.shape[0]):
            around = rounds.merged[inner, node]
            entered = rounds.component[inner, rounds.word[outer, around]]
            if not rounds.on_cycle[inner, node] or entered == node:
                rounds.word[inner, node], rounds.head[inner, node] = rounds.word[outer, around], rounds.head[outer, around]
    for node in range(heads.shape[0]):
        heads[node] = rounds.head[0, node]
