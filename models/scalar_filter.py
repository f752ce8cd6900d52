"""The same small network applied to every entry of a tensor, without ever holding its hidden layer."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import compiled, in_threads, readable
from ..oracles.checks import all_finite


def filtered(entries: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Compute sum_f v_f sigmoid(u_f e) for every entry e.

    The hidden layer is F times larger than the entries: 33 MB in the published signal game, written and read ten times a
    step. On the CPU, with Numba installed, it exists for one entry at a time, and again in the backward pass. Derivatives of
    higher order, other dtypes than float32 and other devices take the plain formula, whose value is the same.

    Args:
        entries: e, [...] float.
        inner: u, [F].
        outer: v, [F].

    Returns:
        [...], in the dtype of `entries`.

    Raises:
        ValueError: u and v of unlike shapes.

    Cost: O(entries F) time; with the kernel O(entries) memory.
    """
    if inner.dim() != 1 or inner.shape != outer.shape:
        raise ValueError(f"filtered takes u and v of one shape [F], not {list(inner.shape)} and {list(outer.shape)}")
    single = all(tensor.dtype == torch.float32 for tensor in (entries, inner, outer))
    kernel = compiled(".kernels.filters", __package__, "filter_values", entries.device) if single else None
    given = (entries, inner, outer)
    if kernel is None or not all(map(readable, given)) or not all(map(all_finite, given)):
        return plain(entries, inner, outer)
    return _Filtered.apply(entries, inner, outer)  # pyright: ignore[reportReturnType]  # untyped in torch


def plain(entries: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The formula as it stands."""
    return (entries[..., None] @ inner[None]).sigmoid() @ outer


class _Filtered(torch.autograd.Function):
    """See `filtered`."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        from .kernels.filters import filter_values

        ctx.save_for_backward(entries, inner, outer)
        values = entries.new_empty(entries.numel())
        given, into = entries.detach().reshape(-1).numpy(), values.numpy()
        u, v = (tensor.detach().contiguous().numpy() for tensor in (inner, outer))
        in_threads(lambda part: filter_values(given[part], u, v, into[part]), len(given))
        return values.view(entries.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from .kernels.filters import blocks, filter_derivatives

        (gradient,) = gradients
        entries, inner, outer = ctx.saved_tensors
        again = torch.is_grad_enabled()  # a second derivative is wanted
        if again or not readable(gradient):
            inputs = [x for x, needed in zip((entries, inner, outer), ctx.needs_input_grad, strict=True) if needed]
            with torch.enable_grad():
                values = plain(entries, inner, outer)
            found = iter(torch.autograd.grad(values, inputs, gradient, create_graph=again))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        count = blocks(entries.numel())
        by_entries, by_inner, by_outer = entries.new_empty(entries.numel()), *inner.new_empty(2, count, len(inner))
        e, u, v, g = (tensor.reshape(-1).numpy() for tensor in (entries, inner, outer, gradient))
        de, du, dv = (tensor.numpy() for tensor in (by_entries, by_inner, by_outer))
        in_threads(lambda part: filter_derivatives(e, u, v, g, de, du, dv, part.start, part.stop), count)
        return by_entries.view(entries.shape), by_inner.sum(0), by_outer.sum(0)
