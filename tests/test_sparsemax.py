"""Sparsemax: dtypes, masks, shapes, bad input, and its kernel against the plain one."""

import re

import pytest
import torch
from cases import scores_for
from sparsemarg.kernels import compiled
from sparsemarg.layers.functional import sparsemax
from sparsemarg.oracles import Simplex
from sparsemarg.oracles.checks import all_finite
from torch import Tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sparsemax_dtype(dtype: torch.dtype) -> None:
    scores = scores_for(Simplex(50), "small").to(dtype)
    probs = sparsemax(scores)
    assert probs.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(probs.double(), sparsemax(scores.double()), atol=4 * eps, rtol=4 * eps)


def test_sparsemax_masks() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 0.5], [-torch.inf, -torch.inf, 3.0]], requires_grad=True)
    probs = sparsemax(scores)
    torch.testing.assert_close(probs, torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(probs.square().sum(), scores)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (4,)])
def test_sparsemax_batch_shapes(shape: tuple[int, ...]) -> None:
    assert sparsemax(torch.zeros(shape)).shape == shape


def test_sparsemax_dimensions() -> None:
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1, 2, -1, -2, -3):
        torch.testing.assert_close(sparsemax(scores, dim), sparsemax(scores.movedim(dim, -1)).movedim(-1, dim), atol=0, rtol=0)
        torch.testing.assert_close(sparsemax(scores, dim).sum(dim), torch.ones_like(scores.sum(dim)))


def test_sparsemax_bad_input() -> None:
    scores = torch.zeros(2, 3, 4)
    scores[1, 2] = -torch.inf
    with pytest.raises(ValueError, match=re.escape("scores row (1, 2) has -inf in every entry")):
        sparsemax(scores)
    with pytest.raises(ValueError, match=r"scores must be a float tensor, not torch\.int64"):
        sparsemax(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scores must be a float tensor, not list; convert them, e\.g\. torch\.tensor"):
        sparsemax([0.0, 1.0])  # pyright: ignore
    with pytest.raises(ValueError, match=r"along dim=2; scores has shape \[2, 3\]"):
        sparsemax(torch.zeros(2, 3), dim=2)
    with pytest.raises(ValueError, match=r"at least one category along dim=-1"):
        sparsemax(torch.zeros(3, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 40, 1000])
def test_the_compiled_sparsemax_is_the_plain_one(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supports of one to all categories, ties, masks, large and small scores, two threads; first derivatives and second."""
    torch.manual_seed(count)
    scales = torch.tensor([1e-8, 0.01, 0.1, 0.4, 1, 10, 1e8])[:, None, None]
    scores = torch.cat([(scales * torch.randn(7, 3, count)).flatten(0, 1), torch.ones(1, count), torch.randn(3, count).round()])
    scores[3, 1:] = -torch.inf
    weights = torch.randn(scores.shape, dtype=dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)

    def results() -> list[Tensor]:
        leaf = scores.to(dtype).requires_grad_()
        probs = sparsemax(leaf)
        (first,) = torch.autograd.grad((probs * weights).sum(), leaf, retain_graph=True)
        (again,) = torch.autograd.grad((probs.square() * weights).sum(), leaf, create_graph=True)
        return [probs, first, *torch.autograd.grad((again * weights).sum(), leaf)]

    fast = results()
    assert compiled(".kernels.simplex_rows", "sparsemarg.oracles", "project_rows", scores.device) is not None
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    tolerance = 16 * torch.finfo(dtype).eps
    for ours, plain in zip(fast, results(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=16 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparsemax_ends_where_rounding_decides(dtype: torch.dtype) -> None:
    """Of n categories at 0 and others at tau = -1 / n, or one rounding beside it, with many more candidates below."""
    for n in range(30, 90):
        last = -torch.tensor(1.0, dtype=dtype) / n
        for tied in (last, last.nextafter(-torch.ones_like(last)), last.nextafter(torch.zeros_like(last))):
            scores = torch.cat([torch.zeros(n, dtype=dtype), tied.repeat(3), -torch.rand(60, dtype=dtype)])[None]
            scores[:, n + 3 :] += last
            expected = torch.zeros_like(scores).index_fill(1, torch.arange(n), 1 / n)
            torch.testing.assert_close(sparsemax(scores), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_compiled_sparsemax_passes_on_what_it_was_told_not_to_look_for(bad: float) -> None:
    scores = torch.tensor([[0.0, bad, 1.0], [1.0, 0.5, 0.0], [-torch.inf] * 3], requires_grad=True)
    found = sparsemax(scores, check=False)
    (slope,) = torch.autograd.grad(found.square().sum(), scores)
    assert slope.isnan().all(-1).tolist() == [True, False, True]
    assert found.isnan().all(-1).tolist() == [True, False, True]
    assert found[1].tolist() == [0.75, 0.25, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_pass_finds_what_is_not_finite(dtype: torch.dtype) -> None:
    values = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    for odd in (torch.nan, torch.inf, -torch.inf):
        spoilt = values.clone()
        spoilt[31, 4] = odd
        assert not all_finite(spoilt)
        assert not all_finite(spoilt.requires_grad_())
