"""The projection on the simplex, for whoever needs it: by kernels that sort nothing, or in tensor operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import in_threads, readable, triton_or_compiled
from ..kernels.sorting import sorted_values


def project_simplex(scores: Tensor) -> Tensor:
    """argmin_{p in simplex} ||p - scores||^2 = max(scores - tau, 0) along the last dimension, [..., K], differentiable.

    float16 and bfloat16 are computed in float32. `-inf` gets 0; a row with NaN, +inf or nothing but `-inf` becomes NaN.

    Cost: O(K log K); a few passes over the scores by a kernel, which there is for float32 and float64 on the CPU with Numba
    installed and on a GPU with Triton.
    """
    if _kernel(scores, "project_rows") is None:
        return project_by_sorting(scores)
    # Views are cheap, but for small scores their derivatives are not.
    rows = scores if scores.dim() == 2 else scores.reshape(-1, scores.shape[-1])
    probs: Any = _ProjectRows.apply(rows)
    return probs if scores.dim() == 2 else probs.reshape(scores.shape)


def project_by_sorting(scores: Tensor) -> Tensor:
    """`project_simplex` in tensor operations, O(D log D).

    The support is found without gradient; one differentiable step tau = (sum of supported scores - 1) / |support|
    (paper eq. 9) then gives the Jacobian of eq. 10. Scores are first shifted by their maximum, to which the answer is
    invariant, so that scores of 1e8 keep the precision of their differences.
    """
    precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    support, peak = _simplex_support(precise.detach())
    kept = torch.where(support, precise - peak, 0)
    tau = (kept.sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    # Off the support 0, or NaN in a row with NaN or with nothing allowed: never a silent zero.
    return torch.where(support, (kept - tau).clamp(min=0), 0 * peak).to(scores.dtype)


def _simplex_support(scores: Tensor) -> tuple[Tensor, Tensor]:
    peak = scores.amax(-1, keepdim=True)
    shifted = scores - peak
    ordered = sorted_values(shifted, descending=True)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    # The largest rank r with 1 + r s_(r) > s_(1) + ... + s_(r). Below peak - 1 nothing is supported, and cutting there
    # keeps -inf out of the sums.
    ordered = ordered.clamp(min=-2)
    count = (1 + rank * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    tau = (torch.where(rank <= count, ordered, 0).sum(-1, keepdim=True) - 1) / count
    return shifted > tau, peak


def _kernel(scores: Tensor, function: str) -> Callable[..., None] | None:
    """The compiled kernel for such scores, which writes the last tensor that it is given; None: for tensor operations."""
    if scores.dtype not in (torch.float32, torch.float64) or not readable(scores):
        return None
    return triton_or_compiled(
        ".kernels.triton_simplex", ".kernels.simplex_rows", __package__, function, scores.device, _on_rows
    )


class _ProjectRows(torch.autograd.Function):
    """`project_by_sorting` of the rows of a matrix, by a kernel."""

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
