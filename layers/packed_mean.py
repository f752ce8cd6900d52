"""The means of packed atoms: by a kernel that reads each atom once, or in tensor operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import compiled, in_threads, readable


def packed_mean(probs: Tensor, atoms: Tensor, first: Tensor) -> Tensor | None:
    """mu_b = sum_n probs[n] atoms[n] over first[b] <= n < first[b + 1], differentiable in probs; None without a kernel for it.

    Args:
        probs: [N] float32 or float64.
        atoms: [N, D] in that dtype, without gradient.
        first: [B + 1] int64, from 0 to N.

    Cost: one pass over the atoms, and one in the backward pass; nothing of their size is kept or written.
    """
    if _kernel(probs, "combine") is None or atoms.dtype != probs.dtype or atoms.requires_grad:
        return None
    return _PackedMean.apply(probs, atoms, first)  # pyright: ignore[reportReturnType]  # untyped in torch


def _kernel(values: Tensor, function: str) -> Callable[..., None] | None:
    if values.dtype not in (torch.float32, torch.float64) or not readable(values):
        return None
    return compiled(".kernels.packed", __package__, function, values.device)


class _PackedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, atoms: Tensor, first: Tensor) -> Tensor:
        kernel = _kernel(probs, "combine")
        assert kernel is not None
        ctx.save_for_backward(atoms, first)
        means = atoms.new_empty(len(first) - 1, atoms.shape[1])
        given, bounds, result = probs.detach().contiguous().numpy(), first.numpy(), means.numpy()
        matrix = atoms.contiguous().numpy()
        in_threads(
            lambda part: kernel(given, matrix, bounds[part.start : part.stop + 1], result[part]), len(means), matrix.size
        )
        return means

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        atoms, first = ctx.saved_tensors
        kernel = _kernel(gradient, "compare")
        if kernel is None or torch.is_grad_enabled():  # a second derivative is wanted: this is linear in the gradient
            row = torch.arange(len(first) - 1).repeat_interleave(first.diff())
            return (atoms * gradient[row]).sum(-1), None, None
        products = atoms.new_empty(len(atoms))
        given, bounds, result = gradient.contiguous().numpy(), first.numpy(), products.numpy()
        matrix = atoms.contiguous().numpy()
        in_threads(
            lambda part: kernel(given[part], matrix, bounds[part.start : part.stop + 1], result), len(first) - 1, matrix.size
        )
        return products, None, None
