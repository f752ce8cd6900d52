"""The compiled sums over derivations, against enumeration and against the same in tensor operations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sparsemarg.kernels import compiled
from sparsemarg.kernels.exponential import LEAST, exponentiate
from sparsemarg.kernels.lanes import LANES
from sparsemarg.oracles import Knapsack, LinearChain, ProjectiveTree, Segmentation, ShortestPath
from sparsemarg.oracles.programs.compiled_sums import entropy, log_total
from sparsemarg.oracles.programs.derivations import Derivations
from sparsemarg.oracles.programs.inside import Inside
from torch import Tensor

POLYTOPES = [
    LinearChain(4, 3),
    LinearChain(1, 4),
    LinearChain(5, 2, regularize_transitions=False),
    ProjectiveTree(4),
    ProjectiveTree(4, single_root=True),
    Segmentation(5, 2, 3),
    Knapsack([1, 2, 3, 4, 0, 2], 6),
    ShortestPath.grid(4, 4, diagonal=True),
]


def scores_of(polytope: Derivations, scale: float) -> Tensor:
    """Some of them with coordinates that are forbidden, of which each leaves a structure."""
    generator = torch.Generator().manual_seed(0)
    normal = scale * torch.randn(30, polytope.dim, generator=generator, dtype=torch.float64)
    shut = torch.rand(normal.shape, generator=generator) < 0.3
    return torch.where(shut & (polytope.maximize(normal) == 0), -torch.inf, normal)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("polytope", POLYTOPES, ids=repr)
def test_sums_and_means_of_the_listed_structures(polytope: Derivations, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """And entropies, with their gradients. In two threads."""
    vertices, scores = polytope.vertices().double(), scores_of(polytope, scale).requires_grad_()
    held = scores.detach()
    forbidden = ((vertices != 0) & held.isneginf()[:, None]).any(-1)
    finite = torch.where(held.isneginf(), 0, held).requires_grad_()
    logs = (finite @ vertices.T).masked_fill(forbidden, -torch.inf)
    spread = -torch.where(forbidden, 0, logs.softmax(-1) * torch.where(forbidden, 0, logs.log_softmax(-1))).sum(-1)
    (bend,) = torch.autograd.grad(spread.sum(), finite)
    logs = logs.detach()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    found = log_total(polytope.graph, scores, polytope.gates(held))
    assert found is not None
    torch.testing.assert_close(found.detach(), logs.logsumexp(-1), rtol=1e-13, atol=1e-13)
    wanted = logs.softmax(-1) @ vertices
    rounding = 1e-13 * max(1.0, scale)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), scores)[0], wanted, rtol=0, atol=rounding)
    torch.testing.assert_close(polytope.gibbs(held).marginals(), wanted, rtol=0, atol=rounding)
    surprise = entropy(polytope.graph, scores, polytope.gates(held))
    assert surprise is not None
    torch.testing.assert_close(surprise.detach(), spread.detach(), rtol=0, atol=rounding)
    (slope,) = torch.autograd.grad(surprise.sum(), scores)
    torch.testing.assert_close(slope, torch.where(held.isneginf(), 0, bend), rtol=0, atol=10 * rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("polytope", [LinearChain(9, 5), ProjectiveTree(8), Segmentation(9, 3, 4)], ids=repr)
def test_the_compiled_sums_are_the_plain_ones(
    polytope: LinearChain | ProjectiveTree | Segmentation, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any length; of first and second order, and for what else a distribution knows."""
    length = polytope.words if isinstance(polytope, ProjectiveTree) else polytope.length
    normal = torch.randn(11, polytope.dim, generator=torch.Generator().manual_seed(0), dtype=dtype)
    leaf = polytope.mask(normal, torch.arange(11) % length + 1).requires_grad_()
    gold = torch.cat([polytope.maximize(leaf.detach())[:6], polytope.maximize(-normal[6:])])  # some of them not allowed

    def numbers() -> list[Tensor]:
        gibbs = polytope.gibbs(leaf)
        logs = gibbs.log_prob(gold)
        (first,) = torch.autograd.grad(
            logs.masked_fill(logs.isneginf(), 0).sum() + gibbs.entropy().sum(), leaf, create_graph=True
        )
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        (alone,) = torch.autograd.grad(polytope.gibbs(leaf).entropy().sum(), leaf)
        sample = gibbs.sample((3,), generator=torch.Generator().manual_seed(1))
        return [logs.detach(), first.detach(), second, alone, gibbs.entropy().detach(), gibbs.marginals().detach(), sample]

    assert compiled(".kernels.inside_rows", "sparsemarg.oracles", "sums", leaf.device) is not None
    fast = numbers()
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    for found, wanted in zip(fast, numbers(), strict=True):
        assert found.dtype == dtype
        # Of second derivatives, sums of hundreds of terms: either is up to 90 eps from the other precision's, in float32.
        largest = wanted.masked_fill(wanted.isneginf(), 0).abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=0, atol=200 * torch.finfo(dtype).eps * max(1.0, largest))
    assert fast[0].isneginf().any()
    assert fast[0].isfinite().any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_was_asked_for_without_gradient_first_has_one_later(mode: Callable[[], torch.no_grad]) -> None:
    chain = LinearChain(3, 2)
    leaf = torch.randn(2, chain.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gibbs = chain.gibbs(leaf)
    with mode():
        gibbs.sample()
        before = gibbs.entropy()
    assert not before.requires_grad
    (found,) = torch.autograd.grad(gibbs.entropy().sum(), leaf)
    (wanted,) = torch.autograd.grad(chain.gibbs(leaf).entropy().sum(), leaf)
    torch.testing.assert_close(found, wanted)
    with mode():
        held = chain.gibbs(leaf)
        held.entropy()
    assert not held.entropy().requires_grad
    assert not held.log_prob(chain.maximize(leaf.detach())).requires_grad


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_scores_that_change_in_place_change_no_distribution(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    chain = LinearChain(3, 2)
    scores = torch.randn(4, chain.dim, generator=torch.Generator().manual_seed(0))
    gold, gibbs, wanted = chain.maximize(scores), chain.gibbs(scores), chain.gibbs(scores.clone())
    scores.mul_(3)
    for found, expected in (
        (gibbs.log_prob(gold), wanted.log_prob(gold)),
        (gibbs.entropy(), wanted.entropy()),
        (gibbs.marginals(), wanted.marginals()),
    ):
        assert torch.equal(found, expected)


def test_the_total_of_a_single_row_is_the_plain_one() -> None:
    path = ShortestPath.grid(5, 5)
    scores = torch.randn(1, path.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_total(path.graph, scores, None)
    assert found is not None
    torch.testing.assert_close(found, Inside.of(path.graph, path.graph.weights(scores)).log_total)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 5000])
def test_exp_is_that_of_the_c_library(count: int) -> None:
    """From a place on, and no further than to the end of its last vector."""
    generator, first = np.random.default_rng(count), 3
    below = np.concatenate([[0.0, 1e-300, -LEAST, 708.5, 1e4, 1e308, np.inf], generator.exponential(60, 5000)])[:count]
    values, out = np.full(first + count + 2 * LANES, 5.0), np.full(first + count + 2 * LANES, 7.0)
    values[first : first + count] = 2.0 - below
    wanted = [math.exp(-gap) if gap <= -LEAST else 0.0 for gap in (2.0 - values[first : first + count])]
    exponentiate(values, first, count, 2.0, out)
    for found, exact in zip(out[first : first + count], wanted, strict=True):
        assert abs(found - exact) <= 2 * math.ulp(exact)
    end = first + -(-count // LANES) * LANES
    assert (out[:first] == 7).all()
    assert (out[end:] == 7).all()
    assert (values[:first] == 5).all()
    assert (values[end:] == 5).all()
