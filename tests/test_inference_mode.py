"""Polytopes that were made in inference mode, as a validation may do before training begins, then train."""

from collections.abc import Callable

import pytest
import torch
from sparsemarg.layers.functional import lp_sparsemap, sparsemap, sparsemap_loss, sparsemap_marginals, topk_sparsemax
from sparsemarg.oracles import (
    Arborescence,
    AtMostOne,
    Budget,
    Explicit,
    Factor,
    FactorGraph,
    Knapsack,
    LinearChain,
    Matching,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
)

MAKERS: list[Callable[[], Polytope]] = [
    lambda: LinearChain(3, 2),
    lambda: LinearChain(3, 2, regularize_transitions=False),
    lambda: Segmentation(3, 2, 2),
    lambda: Knapsack([1, 2, 3], 4),
    lambda: ProjectiveTree(3),
    lambda: Arborescence(3),
    lambda: Arborescence(3, single_root=True),
    lambda: AtMostOne(4, negated=[True, False, True, False]),
    lambda: Product(LinearChain(2, 2), Simplex(3)),
    lambda: ShortestPath.grid(2, 3),
    lambda: Explicit([[0.0, 1], [1, 0], [1, 1]]),
    lambda: Explicit(torch.eye(3, dtype=torch.float64), regularized=slice(0, 1)),
    lambda: Permutahedron([3, 2, 1]),
    lambda: Matching(3),
    lambda: SpanningTree([(0, 1), (1, 2), (0, 2)]),
    lambda: Budget(4, 2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", range(len(MAKERS)))
def test_derivatives_of_both_orders(place: int, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        polytope = MAKERS[place]()
    expected = MAKERS[place]()
    scores = torch.randn(2, polytope.dim, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def numbers(which: Polytope) -> list[torch.Tensor]:
        best = which.maximize(scores.detach())
        values = [
            sparsemap(scores, which).mean().square().sum(),
            sparsemap_loss(scores, best, which).sum(),
            topk_sparsemax(scores, which, 3).mean().square().sum(),
            sparsemap_marginals(scores, which).square().sum(),
        ]
        if hasattr(which, "gibbs"):
            gibbs = which.gibbs(scores)  # pyright: ignore[reportAttributeAccessIssue]
            values += [gibbs.entropy().sum(), gibbs.log_prob(best).sum()]
        found = []
        for value in values:
            (first,) = torch.autograd.grad(value, scores, create_graph=True, retain_graph=True)
            second = (
                torch.autograd.grad(first.square().sum(), scores, retain_graph=True)[0]
                if first.requires_grad
                else torch.zeros(())
            )
            found += [value, first, second]
        return found

    for one, other in zip(numbers(polytope), numbers(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_factor_graph() -> None:
    with torch.inference_mode():
        chain = LinearChain(5, 2, regularize_transitions=False)
        graph = FactorGraph(10, [Factor(chain, range(10)), Factor(Budget(5, 2), [1, 3, 5, 7, 9])])
    scores = torch.randn(2, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean = lp_sparsemap(scores, graph, additional=[torch.zeros(2, 16), None]).mean
    (gradient,) = torch.autograd.grad(mean.square().sum(), scores, create_graph=True)
    assert gradient.isfinite().all()
