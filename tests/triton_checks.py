"""The Triton kernels, interpreted on the CPU: the same as tensor operations and as the formulas.

`test_triton` runs this file in a process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

import os

import pytest
import torch
from sparsemarg.layers.functional import sparsemax
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.oracles.simplex import project_simplex
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"


def scores_of(count: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    """Random, tied, masked but for one, of large size, and masked in places."""
    scores = scale * torch.randn(5, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    scores[1] = scores[1].round()
    scores[2, 1:] = -torch.inf
    scores[3] += 1e4
    scores[4, : count // 2] = -torch.inf
    return scores.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, 255, 256, 257, 40_000])  # the last is beyond what stays on chip
def test_sparsemax(count: int, dtype: torch.dtype) -> None:
    ours, theirs = (scores_of(count, dtype).requires_grad_() for _ in range(2))
    probs, wanted = sparsemax(ours), project_simplex(theirs)
    assert type(probs.grad_fn).__name__ != type(wanted.grad_fn).__name__  # it is the kernel
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(probs, wanted, atol=tolerance, rtol=0)
    assert torch.equal(probs > 0, wanted > 0)
    weights = torch.randn(5, count, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found, expected = (torch.autograd.grad(x, leaf, weights)[0] for x, leaf in ((probs, ours), (wanted, theirs)))
    torch.testing.assert_close(found, expected, atol=10 * tolerance, rtol=0)


def test_sparsemax_derivatives() -> None:
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, scores)
    assert torch.autograd.gradgradcheck(sparsemax, scores)
    columns = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sparsemax(columns, dim=1), project_simplex(columns.mT).mT)


@pytest.mark.parametrize("count", [3, 40_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sparsemax_passes_on_what_it_was_told_not_to_look_for(bad: float, count: int) -> None:
    scores = torch.zeros(3, count)
    scores[1, count // 2] = bad
    scores[2] = -torch.inf
    probs = sparsemax(scores, check=False)
    assert probs[1:].isnan().all()
    torch.testing.assert_close(probs[0], torch.full((count,), 1 / count))


@pytest.mark.parametrize(
    ("pairs", "pixels", "rank", "levels"), [(3, 20, 5, 256), (2, 64, 5, 17), (1, 33, 20, 100), (0, 8, 5, 17)]
)
def test_pixel_likelihood(pairs: int, pixels: int, rank: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(pixels)
    features = torch.randn(pairs, pixels, rank, generator=generator)
    head = torch.nn.Linear(rank, levels)
    images = torch.randint(0, levels, (pairs, pixels), generator=generator)
    inputs = (features.requires_grad_(), head.weight, head.bias)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    costs, wanted = pixel_cross_entropy(features, head, images), plain(*exact, images)
    torch.testing.assert_close(costs.double(), wanted, rtol=1e-5, atol=0)
    weights = torch.linspace(-1, 1, pairs)
    found = torch.autograd.grad(costs, inputs, weights)
    expected = torch.autograd.grad(wanted, exact, weights.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(pixel_cross_entropy(features, head, images), costs)
