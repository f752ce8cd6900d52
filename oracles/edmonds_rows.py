"""Maximum spanning arborescences compiled for the CPU, one graph after the other: the rounds of `edmonds`, ties and all.

Chu and Liu (1965), Edmonds (1967). Importing this module needs Numba.
"""

from typing import NamedTuple

import numba
import numpy as np

from ..kernels.vectors import UNCOUNTED, Array


class Rounds(NamedTuple):
    """What each round of one graph chose, as in `edmonds`: [R, N] each."""

    component: Array  # int64
    word: Array  # int64
    head: Array  # int64
    on_cycle: Array  # bool
    merged: Array  # int64


class Scratch(NamedTuple):
    """What a round computes."""

    weights: Array  # [N, N] by (head, word), -inf where there is no arc any more
    first: Array  # [N, N] what is compared before
    value: Array  # [N] of the best arc into a node, among those that come first
    head: Array  # [N] int64, that arc's
    level: Array  # [N] what comes first, of a node
    level_of: Array  # [N] of a component, at its representative
    value_of: Array  # [N] likewise
    parent: Array  # [N] int64, the component above a component
    seen: Array  # [N] int64, when a walk has come by


@numba.njit(nogil=True, error_model="numpy", cache=True)
def best(weights: Array, present: Array, single_root: bool, heads: Array, found: Array) -> None:
    """`edmonds.best_arborescence` for weights [B, N, N] and present [B, N]: into heads [B, N] and found [B]."""
    size = weights.shape[1]
    number = np.empty((4, size, size), np.int64)
    rounds = Rounds(number[0], number[1], number[2], np.empty((size, size), np.bool_), number[3])
    matrix, vector, place = np.empty((2, size, size)), np.empty((4, size)), np.empty((3, size), np.int64)
    scratch = Scratch(matrix[0], matrix[1], vector[0], place[0], vector[1], vector[2], vector[3], place[1], place[2])
    for row in range(weights.shape[0]):
        _begin(weights[row], present[row], single_root, rounds, scratch)
        last, whole = 0, _choose(0, present[row], rounds, scratch)
        while _find_cycles(last, rounds, scratch):
            _contract(last, rounds, scratch)
            last += 1
            whole = _choose(last, present[row], rounds, scratch) and whole
        _open(last, rounds, heads[row])
        on_root = 0
        for node in range(size):
            if node == 0 or not present[row, node]:
                heads[row, node] = -1
            on_root += heads[row, node] == 0
        found[row] = whole and (on_root == 1 or not single_root)


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _begin(weights: Array, present: Array, single_root: bool, rounds: Rounds, scratch: Scratch) -> None:
    """The arcs that there are, of weights [N, N] and nodes present [N]; every node is a component."""
    size = weights.shape[0]
    for head in range(size):
        for word in range(size):
            reachable = (present[head] or head == 0) and present[word] and word != 0 and head != word
            arc = reachable and weights[head, word] > -np.inf
            scratch.weights[head, word] = weights[head, word] if arc else -np.inf
            scratch.first[head, word] = (-1.0 if single_root and head == 0 else 0.0) if arc else -np.inf
        rounds.component[0, head] = head


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _choose(number: int, present: Array, rounds: Rounds, scratch: Scratch) -> bool:
    """The best arc into every component; whether all that are to be entered can be."""
    weights, first, level, value = scratch.weights, scratch.first, scratch.level, scratch.value
    component, chosen, size = rounds.component[number], rounds.word[number], weights.shape[0]
    for node in range(size):
        level[node], value[node], scratch.head[node] = -np.inf, -np.inf, 0
        scratch.level_of[node], scratch.value_of[node], chosen[node] = -np.inf, -np.inf, size
    for head in range(size):
        for word in range(size):
            level[word] = max(level[word], first[head, word])
    for node in range(size):
        scratch.level_of[component[node]] = max(scratch.level_of[component[node]], level[node])
    for node in range(size):
        level[node] = scratch.level_of[component[node]]
    for head in range(size):
        for word in range(size):
            if first[head, word] == level[word] and weights[head, word] > value[word]:
                value[word], scratch.head[word] = weights[head, word], head
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
    component, into, size = rounds.component[number], rounds.component[number + 1], scratch.parent.shape[0]
    for node in range(size):
        into[node] = rounds.merged[number, component[node]]
    for head in range(size):
        for word in range(size):
            if into[head] == into[word]:
                scratch.weights[head, word], scratch.first[head, word] = -np.inf, -np.inf
            elif rounds.on_cycle[number, component[word]]:
                scratch.weights[head, word] -= scratch.value_of[component[word]]
                scratch.first[head, word] -= scratch.level_of[component[word]]


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
