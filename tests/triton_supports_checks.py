"""Supports that Triton kernels leave packed, with their derivatives, interpreted on the CPU: the same as in tensor operations.

Run by `test_triton`, as `triton_checks` is.
"""

import os

import pytest
import torch
from cases import scores_for
from sparsemarg.layers import ConvergenceWarning, SparseDistribution
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import ActiveSet, SortedDecomposition
from sparsemarg.layers.solvers.base import Solver
from sparsemarg.layers.solvers.kernels import triton_active_set, triton_chained, triton_nested
from sparsemarg.layers.solvers.supports import PackedSupport
from sparsemarg.layers.sparsemap import Coding
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Simplex
from sparsemarg.oracles.checks import NotFinite
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"

ACTIVE, SORTED = ActiveSet(), SortedDecomposition()
CASES: list[tuple[Polytope, Solver, Coding]] = [
    (BernoulliCube(1), SORTED, "bits"),
    (BernoulliCube(7), SORTED, "pairs"),
    (BernoulliCube(20), SORTED, "bits"),
    (BernoulliCube(24), SORTED, "pairs"),
    (Budget(1, 1), SORTED, "bits"),
    (Budget(8, 3), SORTED, "pairs"),
    (Budget(20, 10), SORTED, "bits"),
    (Budget(24, 5, exactly=True), SORTED, "pairs"),
    (Budget(6, 0), SORTED, "bits"),
    (BernoulliCube(1), ACTIVE, "bits"),
    (BernoulliCube(12), ACTIVE, "pairs"),
    (Budget(9, 4), ACTIVE, "bits"),
    (Budget(8, 3, exactly=True), ACTIVE, "pairs"),
    (Simplex(10), ACTIVE, "bits"),
]


def hard(polytope: Polytope, solver: Solver) -> Tensor:
    """Random rows, one whose bits are all fractional; and where kernels take them, ties and forbidden bits."""
    scores, dim = scores_for(polytope, "normal", batch=4), polytope.dim
    if solver is SORTED and dim > 1:
        scores[1, dim // 3 : dim // 2 + 1] = -torch.inf
    if solver is ACTIVE or isinstance(polytope, BernoulliCube):  # equal means make cuts on a budget coincide
        scores[2] = (4 * scores[2]).round() / 4
    scores[3] = torch.rand(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
    return scores


@pytest.mark.parametrize(
    ("polytope", "solver", "coding", "dtype"),
    [(*case, torch.float64) for case in CASES]
    + [(*case, dtype) for case in CASES[1::4] for dtype in (torch.float32, torch.bfloat16)],
)
def test_packed(
    polytope: Polytope, solver: Solver, coding: Coding, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = hard(polytope, solver).to(dtype)
    weights = torch.linspace(-1, 1, polytope.dim, dtype=dtype)
    found, gradients = [], []
    for switch in ("on", "off"):
        monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
        leaf = scores.clone().requires_grad_()
        found.append(sparsemap(leaf, polytope, solver=solver, coding=coding))
        loss = (found[-1].mean() * weights).tanh().sum() + found[-1].entropy().sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0].double())
    ours, theirs = found
    assert type(ours.probs.grad_fn).__name__ == "_WeightsBackward"
    assert type(theirs.probs.grad_fn).__name__ != "_WeightsBackward"
    assert ours.atoms.dtype == dtype
    assert torch.equal(ours.atoms, theirs.atoms)
    assert torch.equal(ours.row, theirs.row)
    assert torch.equal(ours.support_size(), theirs.support_size())
    spacing = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.probs, theirs.probs, atol=max(4 * spacing, 1e-12), rtol=0)
    torch.testing.assert_close(*gradients, atol=max(30 * spacing, 1e-9), rtol=30 * spacing)
    for name in ("iterations", "gap", "margin", "converged"):
        kept = [0, 1, 3] if name == "margin" else slice(None)  # with ties a weight may be 0, or rounding
        one, other = (getattr(each.stats, name)[kept] for each in found)
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def distribution(scores: Tensor, solver: Solver = SORTED, polytope: Polytope | None = None) -> SparseDistribution:
    return sparsemap(scores, polytope or BernoulliCube(scores.shape[-1]), solver=solver)


@pytest.mark.parametrize("polytope", [BernoulliCube(5), Budget(5, 2)], ids=repr)
def test_derivatives(polytope: Polytope) -> None:
    scores = torch.tensor([[0.5, 1.4, 0.2, 0.7, -0.3], [0.1, 0.9, 0.35, 0.6, 0.8]], dtype=torch.float64)

    def probs(scores: Tensor) -> Tensor:
        return distribution(scores, polytope=polytope).probs

    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(probs, leaf)
    assert torch.autograd.gradgradcheck(lambda scores: probs(scores).square().sum().exp(), leaf)


@pytest.mark.parametrize(
    ("solver", "polytope"), [(SORTED, BernoulliCube(5)), (SORTED, Budget(5, 3)), (SORTED, Budget(5, 2)), (ACTIVE, Budget(5, 2))]
)
def test_a_jacobian_is_one_matrix(solver: ActiveSet | SortedDecomposition, polytope: Polytope) -> None:
    """However it is asked for: to the left, to the right, and written down for several gradients at once."""
    scores = torch.tensor([[0.5, 1.6, 0.2, 0.7, -1.3], [0.1, 0.9, 0.35, 0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    probs = distribution(scores, solver, polytope).probs
    every = torch.eye(len(probs), dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.grad(probs, scores, each, retain_graph=True)[0] for each in every])
    torch.testing.assert_close(torch.autograd.grad(probs, scores, every, is_grads_batched=True)[0], jacobian)
    support = solver.solve_packed(scores.detach(), polytope, torch.float64, check=True)
    assert isinstance(support, PackedSupport)
    change = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(support.jacobian.push(change), (jacobian * change).sum((1, 2)))
    assert not jacobian[:, 0, [1, 4]].any()  # bits that are certain: exactly
    assert jacobian[:, 0, [0, 2, 3]].any()


def test_bits_that_are_tied_have_each_half() -> None:
    tied = torch.autograd.functional.jacobian(lambda t: distribution(t).probs, torch.tensor([[0.5, 0.25, 0.5]]))[:, 0]
    torch.testing.assert_close(tied, torch.tensor([[-0.5, 0, -0.5], [0.5, -1, 0.5], [0, 1, 0]]))


def test_where_there_is_no_nested_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, cube = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), BernoulliCube(20)
    assert triton_nested.solve_packed(scores, cube, torch.float64) is not None
    assert triton_nested.solve_packed(scores[:0], cube, torch.float64) is None
    for bad in (torch.nan, torch.inf):
        assert triton_nested.solve_packed(scores.index_fill(1, torch.tensor([3]), bad), cube, torch.float64) is None
    monkeypatch.setattr(triton_nested, "MOST_DIMENSIONS", 19)
    assert triton_nested.solve_packed(scores, cube, torch.float64) is None
    assert distribution(scores).batch_shape == (3,)
    assert distribution(scores[:0]).batch_shape == (0,)


def test_where_there_is_no_chained_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, budget = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), Budget(20, 4)
    assert triton_chained.solve_packed(scores, budget, torch.float64) is not None
    assert triton_chained.solve_packed(scores[:0], budget, torch.float64) is None
    for bad in (torch.nan, torch.inf):
        assert triton_chained.solve_packed(scores.index_fill(1, torch.tensor([3]), bad), budget, torch.float64) is None
    coinciding = scores.clone()
    coinciding[1, :6] = 0.8  # equal means, of which some sums differ by an integer
    coinciding[1, 6:] = -1
    assert triton_chained.solve_packed(coinciding, Budget(20, 3), torch.float64) is None
    assert distribution(coinciding, polytope=Budget(20, 3)).mean()[1, :6].tolist() == pytest.approx([0.5] * 6)
    scores[2, 1:] = -torch.inf
    with pytest.raises(ValueError, match="row 2 allows no structure"):
        distribution(scores, polytope=Budget(20, 4, exactly=True))
    monkeypatch.setattr(triton_chained, "MOST_DIMENSIONS", 19)
    assert triton_chained.solve_packed(scores, budget, torch.float64) is None


@pytest.mark.parametrize("polytope", [BernoulliCube(20), Budget(20, 4)], ids=repr)
def test_sorted_kernels_look_at_the_scores_by_the_way(polytope: Polytope, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host would wait for each of these: for scores, and for whether rows have converged."""

    def look(*_: object) -> None:
        raise AssertionError("the host waits")

    scores = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patched:
        for name in ("check_finite", "warn_unconverged"):
            patched.setattr(f"sparsemarg.layers.sparsemap.{name}", look)
        assert distribution(scores, polytope=polytope).stats is not None
    scores[1, 3] = torch.nan
    with pytest.raises(NotFinite, match="row 1 holds NaN"):
        distribution(scores, polytope=polytope)


def test_rows_that_have_not_converged_are_told_of_by_the_kernels() -> None:
    scores = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solver, converged in ((ACTIVE, True), (ActiveSet(max_iter=2), False)):
        support = solver.solve_packed(scores, BernoulliCube(20), torch.float64, check=True)
        assert isinstance(support, PackedSupport)
        assert support.all_converged == bool(support.stats.converged.all()) == converged
    with pytest.warns(ConvergenceWarning, match="3 of 3 rows"):
        distribution(scores, ActiveSet(max_iter=2))


def test_one_row_that_needs_more_atoms_sends_all_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_active_set, "MOST_SLOTS", 16)
    scores = torch.rand(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    ours = distribution(scores, ACTIVE)
    assert int(ours.support_size().max()) > 16
    assert type(ours.probs.grad_fn).__name__ != "_WeightsBackward"
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    theirs = distribution(scores, ACTIVE)
    assert torch.equal(ours.atoms, theirs.atoms)
    torch.testing.assert_close(ours.probs, theirs.probs, atol=1e-12, rtol=0)


def test_the_gap_is_that_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where atoms of up to a hundredth are taken out, the mean is not what it was."""
    monkeypatch.setattr(triton_active_set, "WEIGHT_PRUNE", 1e-2 / ActiveSet.tol)
    scores = torch.rand(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = distribution(scores, ACTIVE)
    residual, mean = scores - ours.mean(), ours.mean()
    gap = residual.clamp(min=0).sum(-1) - (residual * mean).sum(-1)
    assert ours.stats is not None
    assert gap.amax() > 1e-4
    torch.testing.assert_close(ours.stats.gap, gap, atol=1e-11, rtol=0)
