"""What `inside` has of the derivations of a hypergraph, by a kernel on the CPU: each of these is None where there is none.

The kernel computes in float64, and finds the gradient on the way where one may be wanted; of that the derivative is `inside`'s.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels import compiled, in_threads, readable
from .hypergraph import Hypergraph
from .inside import Inside

# The kernel takes as long for an edge as to pass over so many numbers.
PASSES = 20


def log_total(graph: Hypergraph, scores: Tensor, gates: Tensor | None) -> Tensor | None:
    """log sum_derivations exp(weight), nats, [B], for scores [B, D] and gates [B, G]: `Inside.log_total`."""
    return _summed(graph, scores, gates, False)


def entropy(graph: Hypergraph, scores: Tensor, gates: Tensor | None) -> Tensor | None:
    """Of the derivation, nats, [B], likewise: `Inside.entropy`."""
    return _summed(graph, scores, gates, True)


def sample(
    graph: Hypergraph, scores: Tensor, gates: Tensor | None, count: int, generator: torch.Generator | None
) -> Tensor | None:
    """Independent structures [count, B, D], likewise: `Inside.sample`, by the same random numbers."""
    kernel = _kernel("samples", scores)
    if kernel is None:
        return None
    shapes = [(len(scores), count, level.nodes.stop - level.nodes.start, 1) for level in graph.levels]
    drawn = [torch.rand(shape, dtype=scores.dtype, generator=generator, device=scores.device) for shape in shapes]
    uniform, structures = torch.cat(drawn, 2)[..., 0], scores.new_empty(len(scores), count, graph.dim)
    _in_rows(kernel, graph, scores, gates, (), uniform, structures)
    return structures.transpose(0, 1)


def _summed(graph: Hypergraph, scores: Tensor, gates: Tensor | None, of_entropy: bool) -> Tensor | None:
    """The entropy, or else the total."""
    kernel = _kernel("sums", scores)
    if kernel is None:
        return None

    def summed(scores: Tensor, with_slope: bool) -> tuple[Tensor, Tensor]:
        batch = len(scores)
        total, slope = scores.new_empty(batch), scores.new_empty(batch if with_slope else 0, graph.dim)
        _in_rows(kernel, graph, scores, gates, (of_entropy,), total, slope)
        return total, slope

    def plainly(scores: Tensor) -> Tensor:
        inside = Inside.of(graph, graph.weights(scores, gates))
        return inside.entropy() if of_entropy else inside.log_total

    if torch.is_grad_enabled() and scores.requires_grad:
        found: Any = _Sum.apply(scores, summed, plainly)
        return found
    return summed(scores, False)[0]


class _Sum(torch.autograd.Function):
    """What a kernel finds together with its gradient, of scores [B, D]; and the same in operations that have any derivative."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, summed: Callable[..., Any], plainly: Callable[[Tensor], Tensor]) -> Tensor:
        total, slope = summed(scores, True)
        ctx.save_for_backward(scores, slope)
        ctx.plainly = plainly
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            (slope,) = torch.autograd.grad(ctx.plainly(scores).sum(), scores, create_graph=True)
        return gradients[0][:, None] * slope, None, None


def _kernel(name: str, scores: Tensor) -> Callable[..., None] | None:
    kernel = compiled("..kernels.inside_rows", __package__, name, scores.device)
    return kernel if scores.dtype in (torch.float32, torch.float64) and readable(scores) else None


def _in_rows(
    kernel: Callable[..., None],
    graph: Hypergraph,
    scores: Tensor,
    gates: Tensor | None,
    options: tuple[bool, ...],
    *others: Tensor,
) -> None:
    """The kernel on scores [B, D] and gates [B, G], and on what else it reads or writes by row, if that has any."""
    batch = len(scores)
    opened = scores.new_zeros(batch, graph.gate_count) if gates is None else gates
    arrays = [tensor.detach().contiguous().numpy() for tensor in (scores, opened, *others)]

    def run(part: slice) -> None:
        given, shut, *rest = (array[part] for array in arrays)
        kernel(given, shut, graph.edges, graph.goal, *options, *rest)

    in_threads(run, batch, batch * len(graph.edges.gates) * PASSES)
