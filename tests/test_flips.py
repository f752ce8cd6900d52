"""Top-k sparsemax on the cube by its kernel: against the plain path, and its derivatives against differences."""

import pytest
import torch
from cases import KINDS, scores_for
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet
from sparsemarg.layers.solvers.flips import _tree, in_one_pass
from sparsemarg.oracles import BernoulliCube, Budget
from sparsemarg.oracles.cube import _flip_table
from sparsemarg.oracles.flip_sets import flip_sets
from sparsemarg.verification import verify
from torch import Tensor


def with_derivatives(scores: Tensor, k: int) -> tuple[SparseDistribution, list[Tensor]]:
    """The distribution, its weights, and two derivatives of something that is not linear in these."""
    leaf = scores.clone().requires_grad_()
    found = topk_sparsemax(leaf, BernoulliCube(scores.shape[-1]), k)
    weights = scores_for(BernoulliCube(scores.shape[-1]), "normal", batch=len(scores), seed=1).to(scores)
    value = (found.mean() * weights).sum() + found.probs[::2].square().sum()
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * weights).sum(), leaf)
    return found, [found.probs.detach(), first.detach(), second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "k"), [(1, 1), (1, 3), (2, 10), (6, 5), (6, 64), (40, 1), (40, 10), (40, 64), (40, 200)])
def test_the_kernel_is_the_plain_path(dim: int, k: int, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms to the bit, in two threads; ties, masks and large scores among them."""
    polytope = BernoulliCube(dim)
    # Multiples of 2^-10: where they tie, at the edge of the support too, no rounding decides.
    scores = (scores_for(polytope, kind, batch=30).clamp(-1e3, 1e3) * 2**10).round().to(dtype) / 2**10
    scores[3, 0], scores[5], scores[6] = -torch.inf, -torch.inf, scores[6] * 2**20
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    assert in_one_pass(scores.double(), polytope, k, dtype) is not None
    fast, ours = with_derivatives(scores, k)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert in_one_pass(scores.double(), polytope, k, dtype) is None
    plain, theirs = with_derivatives(scores, k)
    assert torch.equal(fast.atoms, plain.atoms)
    assert torch.equal(fast.row, plain.row)
    assert torch.equal(fast.stats.exact, plain.stats.exact)  # pyright: ignore
    assert fast.atoms.dtype == fast.probs.dtype == dtype
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("switch", ["on", "off"])
@pytest.mark.parametrize("mask", [-torch.inf, -1e9, -3.4e38, 1e8])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
def test_bits_of_huge_scores_do_not_blur_the_others(
    scale: float, mask: float, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparsemax of the six best of all 2^4 structures of the other bits, by enumeration."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    free = scale * torch.tensor([-0.10, -0.20, -0.25, -0.26], dtype=torch.float64)
    scores = torch.cat([free, torch.full((2,), mask, dtype=torch.float64)])[None]
    found = topk_sparsemax(scores, BernoulliCube(6), 6)
    listed = BernoulliCube(4).vertices()
    totals, best = (listed @ free).topk(6)
    wanted = (sparsemax(totals)[:, None] * listed[best]).sum(0)
    torch.testing.assert_close(found.mean()[0, :4], wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.mean()[0, 4:], torch.full((2,), float(mask > 0), dtype=torch.float64))


def test_derivatives_of_the_kernel() -> None:
    """Against central differences of the weights themselves."""
    leaf = scores_for(BernoulliCube(9), "small", batch=6).requires_grad_()
    assert in_one_pass(leaf.detach(), BernoulliCube(9), 7, leaf.dtype) is not None

    def weights(leaf: Tensor) -> Tensor:
        return topk_sparsemax(leaf, BernoulliCube(9), 7).probs

    assert torch.autograd.gradcheck(weights, leaf, eps=1e-7)
    assert torch.autograd.gradgradcheck(lambda leaf: weights(leaf).square(), leaf, eps=1e-7)


def test_where_there_is_no_kernel() -> None:
    class Own(BernoulliCube):
        pass

    scores = scores_for(BernoulliCube(5), "normal", batch=4)
    assert in_one_pass(scores, Own(5), 3, scores.dtype) is None
    assert in_one_pass(scores, Budget(5, 2), 3, scores.dtype) is None
    for bad in (torch.nan, torch.inf):
        scores[2, 3] = bad
        assert in_one_pass(scores, BernoulliCube(5), 3, scores.dtype) is None
    assert topk_sparsemax(scores[:0], BernoulliCube(5), 3).atoms.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    scores = scores_for(BernoulliCube(8), "small", batch=5).to(dtype).requires_grad_()
    found = topk_sparsemax(scores, BernoulliCube(8), 6)
    wide = topk_sparsemax(scores.detach().double(), BernoulliCube(8), 6)
    assert torch.equal(found.atoms.double(), wide.atoms)
    assert torch.equal(found.probs.detach(), wide.probs.to(dtype))
    (gradient,) = torch.autograd.grad((found.probs * torch.arange(len(found.probs)).to(dtype)).sum(), scores)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_gradient_stays_what_it_was() -> None:
    """What is done to atoms and scores after the forward pass does not change the derivative."""
    leaf = scores_for(BernoulliCube(8), "small", batch=5).requires_grad_()
    given = leaf * 1
    found = topk_sparsemax(given, BernoulliCube(8), 6)
    weights = torch.arange(len(found.probs)).to(leaf)
    (wanted,) = torch.autograd.grad(found.probs @ weights, leaf, retain_graph=True)
    found.atoms.zero_()
    given.detach().zero_()
    (gradient,) = torch.autograd.grad(found.probs @ weights, leaf)
    assert torch.equal(gradient, wanted)


def test_verification_sees_a_table_that_lacks_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemarg.layers.solvers.flips.flip_sets", lambda k, width: flip_sets(k, width)[:3])
    _tree.cache_clear()
    try:
        report = verify(BernoulliCube(5), batch=2, solvers=[ActiveSet()], skip=["by cvxpy"])
    finally:
        _tree.cache_clear()
    assert "topk_sparsemax" in [result.check for result in report.failed], str(report)


def test_a_table_made_inside_of_a_transform_serves_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    _flip_table.cache_clear()
    scores = scores_for(BernoulliCube(6), "small", batch=4)

    def mean(scores: Tensor) -> Tensor:
        return topk_sparsemax(scores, BernoulliCube(6), 5).mean()

    inside = torch.func.jacfwd(mean)(scores[0])
    compiled = torch.compile(mean)(scores)
    torch.testing.assert_close(compiled, mean(scores))
    torch.testing.assert_close(inside, torch.autograd.functional.jacobian(mean, scores[0]))
