"""Polytopes that were made in inference mode, as a validation may do before training begins, then train."""

import pytest
import torch
from made_polytopes import MAKERS
from sparsemarg.layers.functional import (
    lp_sparsemap,
    sparsemap,
    sparsemap_loss,
    sparsemap_marginals,
    spo_plus_loss,
    topk_sparsemax,
)
from sparsemarg.oracles import (
    Budget,
    Factor,
    FactorGraph,
    LinearChain,
    Polytope,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_of_both_orders(name: str, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        polytope = MAKERS[name]()
    expected = MAKERS[name]()
    scores = torch.randn(2, polytope.dim, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def numbers(which: Polytope) -> list[torch.Tensor]:
        best = which.maximize(scores.detach())
        values = [
            sparsemap(scores, which).mean().square().sum(),
            sparsemap_loss(scores, best, which).sum(),
            spo_plus_loss(scores, best.square() - 0.5, which).sum(),
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
