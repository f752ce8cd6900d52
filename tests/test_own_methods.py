"""Polytopes whose own methods do what their contracts allow and ours do not, or break them."""

from collections.abc import Callable

import pytest
import torch
from sparsemarg.layers.functional import lp_sparsemap, sparsemap, sparsemap_loss, sparsemap_marginals, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, SortedDecomposition
from sparsemarg.oracles import Factor, FactorGraph, Polytope, Simplex
from sparsemarg.oracles.simplex_projection import project_by_sorting
from sparsemarg.verification.results import RingRuns
from torch import Tensor


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class OneOfThree(Polytope):
    """One of three categories, with methods that take [B, D] and nothing else, as the contracts say."""

    dim = 3

    def __init__(self, spoil: Callable[[Tensor], object] = lambda mean: mean) -> None:
        self.spoil = spoil

    def maximize(self, scores: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(scores.argmax(1), 3).to(scores)

    def project(self, scores: Tensor) -> Tensor:
        if scores.dim() != 2:
            raise TypeError("rows, as the contract says")
        return self.spoil(project_by_sorting(scores))  # pyright: ignore[reportReturnType]  # some spoil that, too

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        return torch.eye(3).to(mean).expand(len(mean), 3, 3), mean


@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 3, 3), (2, 0, 3), (2, 1, 2, 3)])
def test_projections_are_asked_for_rows(shape: tuple[int, ...]) -> None:
    """Whatever the batch: a sum over dimension 1 is another thing in [2, 3, 3]."""
    given, polytope = scores(*shape), OneOfThree()
    wanted = sparsemap_marginals(given, Simplex(3))
    torch.testing.assert_close(sparsemap_marginals(given, polytope), wanted)
    torch.testing.assert_close(sparsemap(given, polytope, solver=SortedDecomposition()).mean(), wanted)
    target = torch.eye(3, dtype=torch.float64)[0].expand(shape)
    torch.testing.assert_close(sparsemap_loss(given, target, polytope), sparsemap_loss(given, target, Simplex(3)))


class InOnePlace(RingRuns):
    """Writes each answer where the last one was."""

    def __init__(self) -> None:
        self.kept: dict[tuple[object, ...], Tensor] = {}

    def maximize(self, scores: Tensor) -> Tensor:
        found = super().maximize(scores)
        place = self.kept.setdefault((scores.shape, scores.dtype), torch.empty_like(found))
        return place.copy_(found)


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("solver", [ActiveSet(), PairwiseFrankWolfe()], ids=["active set", "Frank-Wolfe"])
def test_an_oracle_may_answer_in_the_same_memory(
    solver: ActiveSet | PairwiseFrankWolfe, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    given = scores(5, 6)
    found, wanted = sparsemap(given, InOnePlace(), solver=solver), sparsemap(given, RingRuns(), solver=solver)
    assert int(wanted.support_size().max()) > 1
    torch.testing.assert_close(found.mean(), wanted.mean())
    assert torch.equal(topk_sparsemax(given, InOnePlace(), 4).atoms, topk_sparsemax(given, RingRuns(), 4).atoms)
    result = lp_sparsemap(given, FactorGraph(6, [Factor(InOnePlace(), range(6))]))
    torch.testing.assert_close(result.mean, wanted.mean(), atol=1e-6, rtol=0)


OPERATORS = {
    "marginals": sparsemap_marginals,
    "sorted": lambda given, polytope: sparsemap(given, polytope, solver=SortedDecomposition()),
    "factor graph": lambda given, polytope: lp_sparsemap(given, FactorGraph(3, [Factor(polytope, range(3))])),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mean: mean * torch.nan, "project returned NaN or infinity for scores row 0; it must"),
        (lambda mean: mean[:, :2], r"project must return a tensor of shape \[2, 3\]; it returned \[2, 2\]"),
        (lambda mean: None, "it returned NoneType"),
        (lambda mean: mean.float(), r"return `mean.to\(scores\)`"),
    ],
)
def test_a_projection_that_breaks_its_contract(operator: str, spoil: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPERATORS[operator](scores(2, 3), OneOfThree(spoil))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_projection_that_does_not_know_what_is_forbidden(operator: str) -> None:
    class Naive(OneOfThree):
        def project(self, scores: Tensor) -> Tensor:
            return (scores - (scores.sum(-1, keepdim=True) - 1) / 3).clamp(min=0)

    given = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.6, -torch.inf]])
    with pytest.raises(ValueError, match=r"row 1 .which has -inf: forbidden coordinates"):
        OPERATORS[operator](given, Naive())
    wanted = torch.tensor([0.4, 0.6, 0.0])
    torch.testing.assert_close(sparsemap(given, Naive()).mean()[1], wanted)
    torch.testing.assert_close(sparsemap_marginals(given, OneOfThree())[1], wanted)


@pytest.mark.parametrize(
    ("decomposed", "message"),
    [
        (lambda mean: (torch.eye(3).to(mean), mean), r"vertices \[2, S, 3\] and probs \[2, S\].*returned \[3, 3\]"),
        (lambda mean: (torch.eye(3).expand(2, 3, 3), mean), "in torch.float64; it returned .* in torch.float32"),
        (lambda mean: mean, "must return .vertices, probs., two tensors, not Tensor"),
    ],
)
def test_a_decomposition_that_breaks_its_contract(
    decomposed: Callable[[Tensor], tuple[Tensor, Tensor]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneOfThree, "decompose", lambda _, mean: decomposed(mean))
    with pytest.raises(ValueError, match=message):
        sparsemap(scores(2, 3), OneOfThree(), solver=SortedDecomposition())
