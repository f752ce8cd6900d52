"""Sparsemax: the projection of scores on the probability simplex."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import compiled, in_threads, in_triton, readable
from ..oracles.checks import check_finite
from ..oracles.simplex import project_simplex


def sparsemax(scores: Tensor, dim: int = -1, *, check: bool = True) -> Tensor:
    """argmin_{xi in simplex} ||xi - scores||^2 along `dim` = max(scores - tau, 0) (Martins and Astudillo 2016; paper eq. 7-9).

    The support is found by sorting, without gradient; tau = (sum of supported scores - 1) / |support| then carries the
    gradient, whose Jacobian is diag(s) - s s' / |s| for the support's indicator s (paper eq. 10). Differentiable any number
    of times, in forward mode, under `torch.func.vmap` and `torch.compile`. float32 and float64 take a compiled kernel that
    sorts nothing, on the CPU with Numba installed and on a GPU with Triton; see `kernels`.

    Args:
        scores: [..., K, ...] float, of any scale; float16 and bfloat16 are computed in float32. `-inf` forbids a category.
        dim: the dimension of the categories.
        check: look for NaN, +inf and rows with nothing allowed (a host synchronisation; never under compile or vmap).

    Returns:
        Probabilities, in the shape, dtype and device of `scores`. Tied scores get equal probabilities.

    Raises:
        ValueError: a row holds NaN or +inf, or nothing but `-inf`; or scores are not floating point.

    Cost: O(K log K); with the kernel two passes over the scores, and O(K) memory.

    >>> import torch
    >>> sparsemax(torch.tensor([1.0, 0.8, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"sparsemax needs a float tensor of scores, not {got}; convert them, e.g. scores.float()")
    if not -scores.dim() <= dim < scores.dim() or scores.shape[dim] == 0:
        raise ValueError(f"sparsemax needs at least one category along dim={dim}; scores has shape {list(scores.shape)}")
    if _kernel(scores, "project_rows") is None:
        if check:
            check_finite(scores, dim, some_allowed=True)
        return project_simplex(scores.movedim(dim, -1)).movedim(-1, dim)
    # Views are cheap, but for small scores their derivatives are not.
    last = dim in (-1, scores.dim() - 1)
    rows = scores if last else scores.movedim(dim, -1)
    probs: Tensor = _ProjectRows.apply(rows if rows.dim() == 2 else rows.reshape(-1, rows.shape[-1]))  # pyright: ignore
    if check and math.isnan(probs.detach()[:, 0].sum()):  # of rows without a projection kernels make NaN
        check_finite(scores, dim, some_allowed=True)
    probs = probs if rows.dim() == 2 else probs.reshape(rows.shape)
    return probs if last else probs.movedim(-1, dim)


class Sparsemax(nn.Module):
    """The module of `functional.sparsemax`.

    Args:
        dim: the dimension of the categories.
        check: see `functional.sparsemax`.
    """

    def __init__(self, dim: int = -1, *, check: bool = True) -> None:
        super().__init__()
        self.dim, self.check = dim, check

    def forward(self, scores: Tensor) -> Tensor:
        """Probabilities of the shape of `scores`."""
        return sparsemax(scores, self.dim, check=self.check)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"dim={self.dim}"


def _kernel(scores: Tensor, function: str) -> Callable[..., None] | None:
    """The compiled kernel for such scores, which writes the last tensor that it is given; None: for tensor operations."""
    if scores.dtype not in (torch.float32, torch.float64) or not readable(scores):
        return None
    kernel = in_triton(".kernels.triton_simplex", __package__, function, scores.device)
    if kernel is not None:
        return kernel
    kernel = compiled(".kernels.simplex", __package__, function, scores.device)
    return None if kernel is None else partial(_on_rows, kernel)


class _ProjectRows(torch.autograd.Function):
    """`project_simplex` of the rows of a matrix, by a kernel."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        kernel = _kernel(scores, "project_rows")
        assert kernel is not None
        probs = torch.empty_like(scores, memory_format=torch.contiguous_format)
        kernel(scores.detach().contiguous(), probs)
        ctx.save_for_backward(probs)
        return probs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        (probs,) = ctx.saved_tensors
        kernel = _kernel(gradient, "pull_back_rows")
        if kernel is None or torch.is_grad_enabled():  # a second derivative is wanted: this is linear in the gradient
            support = (probs.detach() > 0).to(gradient)
            return support * (gradient - (support * gradient).sum(-1, keepdim=True) / support.sum(-1, keepdim=True))
        result = torch.empty_like(probs)
        kernel(probs, gradient.contiguous(), result)
        return result


def _on_rows(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Run a kernel of arrays on contiguous tensors of the same rows."""
    arrays = [tensor.numpy() for tensor in tensors]
    in_threads(lambda part: kernel(*(array[part] for array in arrays)), len(arrays[0]), arrays[0].size)
