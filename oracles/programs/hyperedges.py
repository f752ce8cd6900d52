"""The edges of a dynamic program: which of them its goal needs, and in which order nodes are computed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Edge(NamedTuple):
    """One way to derive a node.

    Attributes:
        head: the node.
        tails: the nodes that it takes, at most two, each derived once.
        coordinates: that it switches on.
        gate: number of an additive weight that is no coordinate's, or None; see `Hypergraph.weights`.
    """

    head: int
    tails: tuple[int, ...] = ()
    coordinates: tuple[int, ...] = ()
    gate: int | None = None


def needed_for(edges: Sequence[Edge], goal: int) -> tuple[list[Edge], dict[int, int]]:
    """The edges that derivations of the goal can use, and the level of each of their nodes."""
    incoming: dict[int, list[Edge]] = {}
    for edge in edges:
        incoming.setdefault(edge.head, []).append(edge)
    level: dict[int, int | None] = {}  # None: no derivation

    def tails_of(node: int) -> Iterator[int]:
        return (tail for edge in incoming.get(node, []) for tail in edge.tails)

    path, stack = {goal}, [(goal, tails_of(goal))]
    while stack:
        node, tails = stack[-1]
        waiting = next((tail for tail in tails if tail not in level), None)
        if waiting in path:
            raise ValueError(f"the graph has a cycle through node {waiting}")
        if waiting is not None:
            path.add(waiting)
            stack.append((waiting, tails_of(waiting)))
            continue
        found = []
        for edge in incoming.get(node, []):
            below = [level[tail] for tail in edge.tails]
            if None not in below:
                found.append(1 + max((value for value in below if value is not None), default=-1))
        level[node] = max(found) if found else None
        path.discard(node)
        stack.pop()
    if level[goal] is None:
        raise ValueError("the graph has no derivation of its goal: there is no structure")
    # Only what the goal needs, over edges that can be derived.
    needed, stack = {goal}, [goal]
    kept: set[int] = set()
    for_node: dict[int, list[int]] = {}
    for place, edge in enumerate(edges):
        for_node.setdefault(edge.head, []).append(place)
    while stack:
        for place in for_node.get(stack.pop(), []):
            if all(level.get(tail) is not None for tail in edges[place].tails):
                kept.add(place)
                for tail in edges[place].tails:
                    if tail not in needed:
                        needed.add(tail)
                        stack.append(tail)
    levels = {node: value for node in needed if (value := level[node]) is not None}
    return [edge for place, edge in enumerate(edges) if place in kept], levels
