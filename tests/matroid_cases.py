"""Graphs and matroids, and every set of edges (items) for which the definition, written in Python, holds."""

import itertools
from collections.abc import Callable
from functools import cache

import torch
from sparsemarg.oracles import Matroid, Polytope, SpanningTree, placed
from torch import Tensor

GRAPHS: dict[str, list[tuple[int, int]]] = {
    "one edge": [(0, 1)],
    "triangle": [(0, 1), (1, 2), (0, 2)],
    "parallel": [(0, 1), (1, 0), (1, 2)],
    "path": [(0, 1), (1, 2), (2, 3)],
    "complete": list(itertools.combinations(range(4), 2)),
    "wheel": [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)],
    "several between all": [*itertools.combinations(range(4), 2), (0, 2), (3, 0), (1, 2), (1, 0), (1, 0)],
}


# Vectors in a plane and a space: independent sets are linearly independent ones. The fourth is zero, the sixth is the first.
VECTORS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)


def linear(sets: Tensor) -> Tensor:
    ranks = torch.linalg.matrix_rank(placed(VECTORS, sets.device) * sets[..., None])
    return ranks == sets.sum(-1)


def at_most_two(sets: Tensor) -> Tensor:
    return sets.sum(-1) <= 2


def one_of_each(sets: Tensor) -> Tensor:
    return (sets[:, :2].sum(-1) <= 1) & (sets[:, 2:].sum(-1) <= 1)


def nothing(sets: Tensor) -> Tensor:
    return ~sets.any(-1)


CASES: dict[str, Callable[[], Polytope]] = {
    **{name: (lambda edges=edges: SpanningTree(edges)) for name, edges in GRAPHS.items()},
    "linear": lambda: Matroid(6, linear),
    "linear, independent": lambda: Matroid(6, linear, bases=False),
    "uniform": lambda: Matroid(5, at_most_two),
    "uniform, independent": lambda: Matroid(5, at_most_two, bases=False),
    "partition": lambda: Matroid(5, one_of_each),
    "only the empty set": lambda: Matroid(3, nothing),
}


def connects(edges: list[tuple[int, int]], chosen: list[int], nodes: set[int]) -> bool:
    reached = {min(nodes)}
    for _ in nodes:
        for place in chosen:
            if reached & set(edges[place]):
                reached |= set(edges[place])
    return reached == nodes


@cache
def case(name: str) -> tuple[Polytope, Tensor]:
    polytope = CASES[name]()
    if isinstance(polytope, SpanningTree):
        edges, nodes = list(polytope.edges), set(range(polytope.nodes))
        kept = [
            chosen
            for chosen in itertools.combinations(range(len(edges)), len(nodes) - 1)
            if connects(edges, list(chosen), nodes)
        ]
    else:
        holds = {"linear": linear, "uniform": at_most_two, "partition": one_of_each, "only the empty set": nothing}
        rule = holds[name.split(",")[0]]
        kept = []
        for size in range(polytope.dim + 1):
            for chosen in itertools.combinations(range(polytope.dim), size):
                bits = torch.zeros(1, polytope.dim, dtype=torch.bool)
                bits[0, list(chosen)] = True
                if bool(rule(bits)):
                    kept.append(chosen)
        if "independent" not in name:
            kept = [chosen for chosen in kept if len(chosen) == max(map(len, kept))]
    structures = torch.zeros(len(kept), polytope.dim, dtype=torch.float64)
    for row, chosen in enumerate(kept):
        structures[row, list(chosen)] = 1
    return polytope, structures


def present(polytope: SpanningTree, blocked: Tensor) -> set[int]:
    return {node for edge, shut in zip(polytope.edges, blocked.tolist(), strict=True) if not shut for node in edge}
