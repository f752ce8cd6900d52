"""Means and entropies of packed atoms: by kernels that read each atom, or its probability, once; or in tensor operations."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import compiled, in_threads, in_triton, readable

# To take a logarithm takes as long as to pass over so many numbers.
LOG_PASSES = 16


def packed_mean(probs: Tensor, atoms: Tensor, first: Tensor, row: Tensor) -> Tensor | None:
    """mu_b = sum_n probs[n] atoms[n] over first[b] <= n < first[b + 1], [B, D]; None where there is no kernel for it.

    Differentiable in probs, to any order.

    Args:
        probs: [N] float32 or float64.
        atoms: [N, D] in that dtype, without gradient.
        first: [B + 1] int64, from 0 to N.
        row: [N] int64, b of each n.

    Cost: one pass over the atoms, and one in the backward pass; nothing of their size is kept or written.
    """
    if not _has_kernels(probs) or atoms.dtype != probs.dtype or atoms.requires_grad:
        return None
    return _PackedMean.apply(probs, atoms, first, row)  # pyright: ignore[reportReturnType]  # untyped in torch


def packed_entropy(probs: Tensor, first: Tensor, row: Tensor) -> Tensor | None:
    """H_b = -sum_n probs[n] log probs[n] over first[b] <= n < first[b + 1], nats, [B], with 0 log 0 = 0; as `packed_mean`.

    The gradient at 0 is that at the smallest normal number of the dtype.
    """
    return _PackedEntropy.apply(probs, first, row) if _has_kernels(probs) else None  # pyright: ignore[reportReturnType]


class _PackedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, atoms: Tensor, first: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(atoms, first, row)
        means = atoms.new_empty(len(first) - 1, atoms.shape[1])
        weights, matrix = probs.detach().contiguous(), atoms.contiguous()
        kernel = _for_gpu("combine", means)
        if kernel is not None:
            kernel(weights, matrix, first, means)
            return means
        kernel = _for_cpu("combine", means)
        given, table, bounds, result = weights.numpy(), matrix.numpy(), first.numpy(), means.numpy()
        in_threads(lambda part: kernel(given, table, bounds[part.start : part.stop + 1], result[part]), len(means), table.size)
        return means

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        atoms, first, row = ctx.saved_tensors
        if torch.is_grad_enabled() or not _has_kernels(gradient):
            # A second derivative is wanted; this is linear in the gradient.
            return (atoms * gradient[row]).sum(-1), None, None, None
        products = atoms.new_empty(len(atoms))
        values, matrix = gradient.contiguous(), atoms.contiguous()
        kernel = _for_gpu("compare", products)
        if kernel is not None:
            kernel(values, matrix, row, products)
            return products, None, None, None
        kernel = _for_cpu("compare", products)
        given, table, bounds, result = values.numpy(), matrix.numpy(), first.numpy(), products.numpy()
        in_threads(
            lambda part: kernel(given[part], table, bounds[part.start : part.stop + 1], result), len(first) - 1, table.size
        )
        return products, None, None, None


class _PackedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, first: Tensor, row: Tensor) -> Tensor:
        found, slopes, weights = probs.new_empty(len(first) - 1), probs.new_empty(len(row)), probs.detach().contiguous()
        ctx.save_for_backward(probs, row, slopes)
        kernel = _for_gpu("entropies", found)
        if kernel is not None:
            kernel(weights, first, found, slopes)
            return found
        kernel = _for_cpu("entropies", found)
        given, bounds, result, by_probs = weights.numpy(), first.numpy(), found.numpy(), slopes.numpy()
        in_threads(
            lambda part: kernel(given, bounds[part.start : part.stop + 1], result[part], by_probs),
            len(found),
            LOG_PASSES * len(given),
        )
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probs, row, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            slopes = -(probs.clamp(min=torch.finfo(probs.dtype).tiny).log() + 1)
        return gradients[0].index_select(0, row) * slopes, None, None


def _has_kernels(values: Tensor) -> bool:
    if values.dtype not in (torch.float32, torch.float64) or not readable(values):
        return False
    return _for_gpu("combine", values) is not None or _for_cpu("combine", values) is not None


def _for_gpu(function: str, values: Tensor) -> Any:
    return in_triton(".kernels.triton_packed", __package__, function, values.device)


def _for_cpu(function: str, values: Tensor) -> Any:
    return compiled(".kernels.packed", __package__, function, values.device)
