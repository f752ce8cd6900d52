"""Polytopes that consist of tensors, each made when asked for: what holds wherever and however they are made."""

from collections.abc import Callable

from sparsemarg.oracles import (
    Arborescence,
    AtMostOne,
    Budget,
    Explicit,
    Implies,
    Knapsack,
    LinearChain,
    Matching,
    Matroid,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
)

MAKERS: dict[str, Callable[[], Polytope]] = {
    "chain": lambda: LinearChain(3, 2),
    "chain in part": lambda: LinearChain(3, 2, regularize_transitions=False),
    "segmentation": lambda: Segmentation(3, 2, 2),
    "knapsack": lambda: Knapsack([1, 2, 3], 4),
    "projective tree": lambda: ProjectiveTree(3),
    "arborescence": lambda: Arborescence(3),
    "arborescence with one root": lambda: Arborescence(3, single_root=True),
    "at most one": lambda: AtMostOne(4, negated=[True, False, True, False]),
    "implies": lambda: Implies(3),
    "product": lambda: Product(LinearChain(2, 2), Simplex(3)),
    "path": lambda: ShortestPath.grid(2, 3),
    "explicit": lambda: Explicit([[0.0, 1], [1, 0], [1, 1]]),
    "explicit in part": lambda: Explicit([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], regularized=slice(0, 1)),
    "permutahedron": lambda: Permutahedron([3, 2, 1]),
    "matching": lambda: Matching(3),
    "spanning tree": lambda: SpanningTree([(0, 1), (1, 2), (0, 2)]),
    "budget": lambda: Budget(4, 2),
    "matroid": lambda: Matroid(3, lambda subsets: subsets.sum(-1) <= 2),
}
