"""Means and entropies of packed atoms: by kernels that read each atom, or its probability, once; or in tensor operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import in_threads, readable, triton_or_compiled

Kernel = Callable[..., None]
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
    kernel = _kernel(probs, "combine")
    if kernel is None or atoms.dtype != probs.dtype or atoms.requires_grad:
        return None
    return _PackedMean.apply(probs, atoms, first, row, kernel)  # pyright: ignore[reportReturnType]  # untyped in torch


def packed_entropy(probs: Tensor, first: Tensor, row: Tensor) -> Tensor | None:
    """H_b = -sum_n probs[n] log probs[n] over first[b] <= n < first[b + 1], nats, [B], with 0 log 0 = 0; as `packed_mean`.

    The gradient at 0 is that at the smallest normal number of the dtype.
    """
    kernel = _kernel(probs, "entropies")
    return None if kernel is None else _PackedEntropy.apply(probs, first, row, kernel)  # pyright: ignore[reportReturnType]


class _PackedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, atoms: Tensor, first: Tensor, row: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(atoms, first, row)
        means = atoms.new_empty(first.shape[0] - 1, atoms.shape[1])
        kernel(probs.detach().contiguous(), atoms.contiguous(), first, means)
        return means

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        atoms, first, row = ctx.saved_tensors
        kernel = _kernel(gradient, "compare")
        if kernel is None or torch.is_grad_enabled():  # a second derivative is wanted: this is linear in the gradient
            return (atoms * gradient[row]).sum(-1), None, None, None, None
        products = atoms.new_empty(atoms.shape[0])
        kernel(gradient.contiguous(), atoms.contiguous(), first, row, products)
        return products, None, None, None, None


class _PackedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, first: Tensor, row: Tensor, kernel: Kernel) -> Tensor:
        found, slopes = probs.new_empty(first.shape[0] - 1), probs.new_empty(row.shape[0])
        kernel(probs.detach().contiguous(), first, found, slopes)
        ctx.save_for_backward(probs, row, slopes)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        probs, row, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            slopes = -(probs.clamp(min=torch.finfo(probs.dtype).tiny).log() + 1)
        return gradients[0].index_select(0, row) * slopes, None, None, None


def _kernel(values: Tensor, function: str) -> Kernel | None:
    """What computes a function of `kernels.packed` on contiguous tensors; None: tensor operations."""
    if values.dtype not in (torch.float32, torch.float64) or not readable(values):
        return None
    run = _IN_THREADS[function]
    return triton_or_compiled(".kernels.triton_packed", ".kernels.packed", __package__, function, values.device, run)


def _combine(kernel: Kernel, probs: Tensor, atoms: Tensor, first: Tensor, means: Tensor) -> None:
    given, matrix, bounds, result = probs.numpy(), atoms.numpy(), first.numpy(), means.numpy()
    in_threads(lambda part: kernel(given, matrix, bounds[part.start : part.stop + 1], result[part]), len(result), matrix.size)


def _compare(kernel: Kernel, values: Tensor, atoms: Tensor, first: Tensor, row: Tensor, products: Tensor) -> None:
    given, matrix, bounds, result = values.numpy(), atoms.numpy(), first.numpy(), products.numpy()
    in_threads(lambda part: kernel(given[part], matrix, bounds[part.start : part.stop + 1], result), len(given), matrix.size)


def _entropies(kernel: Kernel, probs: Tensor, first: Tensor, found: Tensor, slopes: Tensor) -> None:
    given, bounds, result, by_probs = probs.numpy(), first.numpy(), found.numpy(), slopes.numpy()
    passes = LOG_PASSES * len(given)
    in_threads(lambda part: kernel(given, bounds[part.start : part.stop + 1], result[part], by_probs), len(result), passes)


_IN_THREADS = {"combine": _combine, "compare": _compare, "entropies": _entropies}
