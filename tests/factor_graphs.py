"""Small factor graphs with random scores."""

import itertools
from collections.abc import Callable, Sequence

import torch
from sparsemarg.layers import LPSparseMAPResult
from sparsemarg.layers.functional import lp_sparsemap
from sparsemarg.layers.solvers import ADMM
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
    Explicit,
    Factor,
    FactorGraph,
    Knapsack,
    LinearChain,
    ProjectiveTree,
    Simplex,
)
from torch import Tensor

# Two bits and their product, which takes a score and is not penalised.
PAIR = Explicit([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1.0]], regularized=slice(0, 2))


def matching(size: int) -> FactorGraph:
    places = torch.arange(size * size).reshape(size, size)
    return FactorGraph(size * size, [Factor(Simplex(size), line.tolist()) for line in (*places, *places.T)])


def pairwise(variables: int, edges: Sequence[tuple[int, int]]) -> FactorGraph:
    return FactorGraph(variables, [Factor(PAIR, edge) for edge in edges])


def chain_with_budget() -> FactorGraph:
    """Four positions of two states, at most two of them in state 1."""
    chain = LinearChain(4, 2, regularize_transitions=False)
    return FactorGraph(8, [Factor(chain, range(8)), Factor(Budget(4, 2), [1, 3, 5, 7])])


def tree_with_budget() -> FactorGraph:
    """Projective trees of three words, with at most one arc from the root, and a knapsack over the arcs."""
    tree = ProjectiveTree(3)
    root = [place for place, (head, _) in enumerate(arcs(3)) if head == 0]
    weights = [1 + place % 3 for place in range(tree.dim)]
    return FactorGraph(
        tree.dim,
        [Factor(tree, range(tree.dim)), Factor(Budget(len(root), 1), root), Factor(Knapsack(weights, 6), range(tree.dim))],
    )


def arcs(words: int) -> list[tuple[int, int]]:
    tree = ProjectiveTree(words)
    matrix = tree.arcs.matrix(torch.arange(tree.dim, dtype=torch.float64))
    return [tuple(map(int, (matrix == place).nonzero()[0])) for place in range(1, tree.dim)]  # pyright: ignore


GRAPHS: dict[str, FactorGraph] = {
    "matching": matching(4),
    "triangle": pairwise(3, [(0, 1), (1, 2), (0, 2)]),
    "grid": pairwise(6, [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]),
    "chain with a budget": chain_with_budget(),
    "one factor": FactorGraph(5, [Factor(Budget(5, 2), range(5))]),
    "mixed": FactorGraph(6, [Factor(Simplex(3), [0, 1, 2]), Factor(BernoulliCube(4), [2, 3, 4, 5]), Factor(PAIR, [5, 0])]),
}


def problem(graph: FactorGraph, rows: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, list[Tensor | None]]:
    """Scores [rows, V] and additional scores of each factor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)

    return normal(graph.variables), [normal(factor.additional) if factor.additional else None for factor in graph.factors]


def row_of(additional: Sequence[Tensor | None], row: int) -> list[Tensor | None]:
    return [None if extra is None else extra[row] for extra in additional]


def permutations(size: int) -> Explicit:
    identity = torch.eye(size, dtype=torch.float64)
    return Explicit(torch.stack([identity[list(order)].flatten() for order in itertools.permutations(range(size))]))


def joined(graph: FactorGraph, scores: Tensor, additional: Sequence[Tensor | None]) -> Tensor:
    """All scores of each row side by side, [rows, K]."""
    return torch.cat([scores, *(extra for extra in additional if extra is not None)], -1)


def solved(graph: FactorGraph, everything: Tensor) -> LPSparseMAPResult:
    """lp_sparsemap of what `joined` gives, to high accuracy."""
    scores, *rest = everything.split([graph.variables, *(f.additional for f in graph.factors if f.additional)], -1)
    given = iter(rest)
    extra = [next(given) if factor.additional else None for factor in graph.factors]
    return lp_sparsemap(scores, graph, extra, solver=ADMM(tol=1e-11))


def check_derivative(function: Callable[[Tensor], Tensor], point: Tensor) -> None:
    """The Jacobian of [rows, K] -> [rows, E] at each row of [rows, K], by central differences; all steps in one batch."""
    leaf = point.clone().requires_grad_()
    value = function(leaf)
    found = torch.stack([torch.autograd.grad(each.sum(), leaf, retain_graph=True)[0] for each in value.T], 1)
    moves = 1e-4 * torch.eye(point.shape[1], dtype=point.dtype)
    for row in range(len(point)):
        with torch.no_grad():
            around = function(torch.cat([point[row] + moves, point[row] - moves]))
        numeric = (around[: len(moves)] - around[len(moves) :]).T / 2e-4
        torch.testing.assert_close(found[row], numeric, atol=1e-6, rtol=0)
