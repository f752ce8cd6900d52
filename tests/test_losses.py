"""Fenchel-Young losses against their definition."""

import warnings
from typing import Any

import pytest
import torch
from cases import enumerated, projection, scores_for
from factor_graphs import PAIR
from sparsemarg.layers import SparseMAPLoss, SparsemaxLoss
from sparsemarg.layers.functional import sparsemap_loss, sparsemap_marginals, sparsemax, sparsemax_loss
from sparsemarg.layers.solvers import ADMM
from sparsemarg.oracles import Arborescence, BernoulliCube, Budget, LinearChain, Matching, Polytope, ShortestPath, Simplex
from torch import Tensor


def test_sparsemax_loss_is_the_published_formula() -> None:
    """Martins and Astudillo 2016, eq. 19: -s_y + 1/2 sum_{j in support} (s_j^2 - tau^2) + 1/2."""
    scores, target = scores_for(Simplex(5), "normal"), torch.arange(8) % 5
    support = sparsemax(scores) > 0
    tau = (torch.where(support, scores, 0).sum(-1) - 1) / support.sum(-1)
    squares = torch.where(support, scores.square() - tau[:, None].square(), 0).sum(-1)
    wanted = -scores.gather(-1, target[:, None])[:, 0] + squares / 2 + 0.5
    torch.testing.assert_close(sparsemax_loss(scores, target), wanted)
    onehot = torch.nn.functional.one_hot(target, 5).double()
    torch.testing.assert_close(sparsemax_loss(scores, onehot), wanted)
    torch.testing.assert_close(SparsemaxLoss()(scores, target), wanted.mean())


@pytest.mark.parametrize("coding", ["bits", "pairs"])
@pytest.mark.parametrize("polytope", [BernoulliCube(5), Budget(5, 2), Budget(5, 2, exactly=True)], ids=repr)
def test_sparsemap_loss_gradient_is_prediction_minus_target(polytope, coding) -> None:
    leaf = scores_for(polytope, "normal").requires_grad_()
    target = enumerated(polytope)[torch.arange(8) % 5 + 2]
    loss = sparsemap_loss(leaf, target, polytope, coding=coding)
    assert (loss >= 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    wanted = sparsemap_marginals(leaf, polytope, coding=coding) - target
    torch.testing.assert_close(gradient, wanted / (1 if coding == "bits" else 2))
    assert torch.autograd.gradcheck(lambda s: sparsemap_loss(s, target, polytope, coding=coding), leaf)
    assert torch.autograd.gradgradcheck(lambda s: sparsemap_loss(s, target, polytope, coding=coding), leaf)
    torch.testing.assert_close(SparseMAPLoss(polytope, coding)(leaf, target), loss.mean())


@pytest.mark.parametrize("coding", ["bits", "pairs"])
@pytest.mark.parametrize(
    "polytope",
    [ShortestPath.grid(3, 3), LinearChain(3, 2, regularize_transitions=False), Matching(3, 3), Arborescence(3), Budget(5, 2)],
    ids=repr,
)
def test_the_gradient_is_prediction_minus_target_at_ties_too(polytope: Any, coding: Any) -> None:
    """Where the mean has no derivative the loss has one. By `torch.func`, too."""
    vertices = polytope.vertices().double()
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (60, polytope.dim), generator=generator).double() / 2
    target = vertices[torch.randint(len(vertices), (60,), generator=generator)]
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sparsemap_loss(leaf, target, polytope, coding=coding).sum(), leaf)
    wanted = (sparsemap_marginals(scores, polytope, coding=coding) - target) / (1 if coding == "bits" else 2)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
    transformed = torch.func.grad(lambda t: sparsemap_loss(t, target, polytope, coding=coding).sum())(scores)
    torch.testing.assert_close(transformed, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("polytope", [ShortestPath.grid(3, 3), PAIR, Arborescence(3)], ids=repr)
def test_derivatives_of_the_loss_where_the_mean_is_solved_for(polytope: Any) -> None:
    """Of scores and targets, of first and second order, directly and by `torch.func`."""
    generator = torch.Generator().manual_seed(1)
    leaf = torch.randn(3, polytope.dim, dtype=torch.float64, generator=generator).requires_grad_()
    vertices = polytope.vertices().double()
    inside = (torch.rand(3, len(vertices), generator=generator).double().softmax(-1) @ vertices).requires_grad_()

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        return sparsemap_loss(scores, target, polytope)

    assert torch.autograd.gradcheck(loss, (leaf, inside))
    assert torch.autograd.gradgradcheck(loss, (leaf, inside))
    one = (leaf[:1].detach(), inside[:1].detach())
    direct = torch.autograd.functional.hessian(lambda t: loss(t, one[1]).sum(), one[0])
    transformed = torch.func.jacrev(torch.func.grad(lambda t: loss(t, one[1]).sum()))(one[0])
    torch.testing.assert_close(direct, transformed, rtol=0, atol=1e-9)


def test_the_backward_pass_of_a_loss_asks_nothing() -> None:
    asked = []

    class Counted(ShortestPath):
        def maximize(self, scores: Tensor) -> Tensor:
            asked.append(len(scores))
            return super().maximize(scores)

    arcs = ShortestPath.grid(4, 4).arcs
    polytope = Counted(arcs)
    leaf = (0.1 * torch.randn(8, polytope.dim, generator=torch.Generator().manual_seed(0))).requires_grad_()
    target = ShortestPath(arcs).maximize(torch.ones_like(leaf))
    sparsemap_marginals(leaf.detach(), polytope)
    least = len(asked)
    loss = sparsemap_loss(leaf, target, polytope)
    loss.sum().backward()
    assert len(asked) == 2 * least


def test_zero_exactly_at_the_target() -> None:
    target = torch.tensor([[1.0, 0.0, 1.0]])
    assert sparsemap_loss(3 * target - 1, target, BernoulliCube(3)).item() == 0
    assert sparsemax_loss(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item() == 0


def test_targets_outside_are_told_of_where_the_loss_tells() -> None:
    """A chain's tags without its transitions; and what is no path. Structures, and means of them, are taken at any scale."""
    chain = LinearChain(6, 3, regularize_transitions=False)
    scores = 10 * torch.randn(4, chain.dim, generator=torch.Generator().manual_seed(0))
    scores[2, 18:] = -scores[2, 18:].abs()
    gold = chain.maximize(scores)
    tags = gold.clone()
    tags[2] = 0
    tags[2, :18] = torch.nn.functional.one_hot(scores[2, :18].unflatten(0, (6, 3)).argmax(-1), 3).flatten()
    with pytest.warns(UserWarning, match=r"a loss is -.* a target is not in the polytope"):
        assert sparsemap_loss(scores, tags, chain)[2] < -1
    with pytest.warns(UserWarning, match="a target is not in the polytope"):
        SparseMAPLoss(chain)(scores, tags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseMAPLoss(chain, check=False)(scores, tags)
        for scale in (0, 1e-6, 1, 1e8):
            for target in (gold, gold.flip(0), (gold + gold.flip(0)) / 2):
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    sparsemap_loss((scale * scores).to(dtype), target.to(dtype), chain)


def test_forbidden_target_is_infinite() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 0.3]])
    assert sparsemax_loss(scores, torch.tensor([1])).item() == torch.inf
    assert sparsemax_loss(scores, torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparsemax_loss(torch.zeros(2, 3), torch.tensor([0, 3])), r"categories must lie in 0\.\.2; got 0\.\.3"),
        (lambda: sparsemax_loss(torch.zeros(2, 3), torch.zeros(2)), r"needs targets \[2\] int64"),
        (lambda: sparsemax_loss(torch.zeros(1, 3), torch.full((1, 3), 7.0)), "row 0 has sum 21 and least entry 7"),
        (lambda: sparsemax_loss(torch.zeros(2, 2), torch.tensor([[0.5, 0.5], [-1, 2]])), "row 1 has sum 1 and least entry -1"),
        (lambda: sparsemax_loss(torch.zeros(2, 3), [0, 1]), "needs a tensor of targets, not list"),  # pyright: ignore
        (lambda: sparsemap_loss(torch.zeros(2, 3), torch.zeros(3), BernoulliCube(3)), r"\[\*B, D\] = \[2, 3\], not \[3\]"),
        (lambda: SparseMAPLoss(BernoulliCube), "not the class BernoulliCube"),  # pyright: ignore[reportArgumentType]
        (lambda: SparseMAPLoss(BernoulliCube(2), "both"), 'coding must be "bits"'),  # pyright: ignore[reportArgumentType]
        (lambda: SparseMAPLoss(BernoulliCube(2), solver=ADMM()), "instance of a solver"),  # pyright: ignore
        (lambda: sparsemap_loss(torch.zeros(1, 3), torch.full((1, 3), torch.nan), BernoulliCube(3)), "a target holds NaN"),
        (lambda: sparsemap_loss(torch.zeros(1, 1), [[0]], BernoulliCube(1)), r"\[1, 1\], not list"),  # pyright: ignore
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("polytope", [None, Simplex(7), Budget(7, 3, exactly=True)], ids=repr)
def test_a_number_added_to_all_scores_changes_nothing(polytope: Polytope | None, offset: float, dtype: torch.dtype) -> None:
    """Where all structures have as many bits; by exact arithmetic on the scores as they were rounded."""
    scores = (scores_for(Simplex(7), "normal", batch=40) + offset).to(dtype)
    given, chosen = scores.double(), polytope or Simplex(7)
    target = chosen.maximize(scores_for(Simplex(7), "normal", batch=40, seed=1)).to(dtype)
    # Of what is below the peak, which float64 holds exactly; a mean of this polytope moves by as much for all of them.
    low = given - given.amax(-1, keepdim=True)
    mean = projection(chosen.vertices(), low)
    wanted = ((low - mean / 2) * mean).sum(-1) - ((low - target.double() / 2) * target.double()).sum(-1)
    found = sparsemax_loss(scores, target) if polytope is None else sparsemap_loss(scores, target, polytope)
    assert found.dtype == dtype
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps, atol=2e-6)


def test_large_equal_scores_cost_what_small_ones_do() -> None:
    for found in (
        sparsemax_loss(torch.full((1, 7), 1e8), torch.tensor([3])),
        sparsemax_loss(torch.zeros(1, 7), torch.tensor([3])),
    ):
        torch.testing.assert_close(found, torch.tensor([3 / 7]))


def test_categories_under_vmap() -> None:
    scores = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 1, 2, 2])
    one_by_one = torch.func.vmap(torch.func.grad(sparsemax_loss))(scores, target)
    leaf = scores.clone().requires_grad_()
    (together,) = torch.autograd.grad(sparsemax_loss(leaf, target).sum(), leaf)
    torch.testing.assert_close(one_by_one, together)
