"""The sorted decomposition on the cube in Triton, interpreted on the CPU: the same as in tensor operations.

Run by `test_triton`, as `triton_checks` is.
"""

import os

import pytest
import torch
from cases import scores_for
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import SortedDecomposition, triton_nested
from sparsemarg.layers.sparsemap import Coding
from sparsemarg.oracles import BernoulliCube
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"


def hard(dim: int, kind: str) -> Tensor:
    """Random rows, one with forbidden bits, one with many ties, one all of whose bits are fractional."""
    scores = scores_for(BernoulliCube(dim), kind, batch=5)
    if dim > 1:
        scores[1, dim // 3 : dim // 2 + 1] = -torch.inf
    scores[2] = (4 * scores[2]).round() / 4
    scores[3] = torch.rand(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(dim))
    return scores


def distribution(scores: Tensor, coding: Coding = "bits") -> SparseDistribution:
    return sparsemap(scores, BernoulliCube(scores.shape[-1]), solver=SortedDecomposition(), coding=coding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "large"])
@pytest.mark.parametrize(("dim", "coding"), [(1, "bits"), (7, "pairs"), (20, "bits"), (33, "pairs")])
def test_nested(dim: int, coding: Coding, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = hard(dim, kind).to(dtype)
    weights = torch.linspace(-1, 1, dim, dtype=dtype)
    found, gradients = [], []
    for switch in ("on", "off"):
        monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
        leaf = scores.clone().requires_grad_()
        found.append(distribution(leaf, coding))
        loss = (found[-1].mean() * weights).tanh().sum() + found[-1].entropy().sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0].double())
    ours, theirs = found
    assert type(ours.probs.grad_fn).__name__ == "_WeightsBackward"
    assert ours.atoms.dtype == dtype
    assert torch.equal(ours.atoms, theirs.atoms)
    assert torch.equal(ours.row, theirs.row)
    assert torch.equal(ours.support_size(), theirs.support_size())
    torch.testing.assert_close(ours.probs, theirs.probs, atol=4 * torch.finfo(dtype).eps, rtol=0)
    torch.testing.assert_close(*gradients, atol=30 * torch.finfo(dtype).eps, rtol=30 * torch.finfo(dtype).eps)
    for name in ("gap", "margin", "converged"):
        torch.testing.assert_close(getattr(ours.stats, name), getattr(theirs.stats, name), atol=1e-14, rtol=1e-12)


def test_nested_derivatives() -> None:
    scores = torch.tensor([[0.5, 1.4, 0.2, 0.7, -0.3], [0.1, 0.9, 0.3, 0.6, 0.8]], dtype=torch.float64)

    def probs(scores: Tensor) -> Tensor:
        return distribution(scores).probs

    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(probs, leaf)
    assert torch.autograd.gradgradcheck(lambda scores: probs(scores).square().sum().exp(), leaf)
    jacobian = torch.autograd.functional.jacobian(probs, scores)
    # Several gradients at once, for which the Jacobian is written down; and a tie, of which each bit has half.
    (batched,) = torch.autograd.grad(probs(leaf), leaf, torch.eye(len(jacobian), dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(batched, jacobian)
    tied = torch.autograd.functional.jacobian(probs, torch.tensor([[0.5, 0.25, 0.5]], dtype=torch.float64))[:, 0]
    wanted = torch.tensor([[-0.5, 0, -0.5], [0.5, -1, 0.5], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(tied, wanted)


def test_where_there_is_no_nested_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert triton_nested.solve_packed(scores, torch.float64) is not None
    assert triton_nested.solve_packed(scores[:0], torch.float64) is None
    for bad in (torch.nan, torch.inf):
        assert triton_nested.solve_packed(scores.index_fill(1, torch.tensor([3]), bad), torch.float64) is None
    monkeypatch.setattr(triton_nested, "MOST_DIMENSIONS", 19)
    assert triton_nested.solve_packed(scores, torch.float64) is None
    assert distribution(scores).batch_shape == (3,)
    assert distribution(scores[:0]).batch_shape == (0,)
