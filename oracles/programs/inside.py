"""Sums over the derivations of a hypergraph: normalisers, entropies and samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import compiled, in_threads, readable
from .hypergraph import Hypergraph

# The kernel takes as long for an edge as to pass over so many numbers.
PASSES = 30


def log_total(graph: Hypergraph, scores: Tensor, gates: Tensor | None) -> Tensor | None:
    """log sum_derivations exp(weight), nats, [B], for scores [B, D] and gates [B, G]: `Inside.log_total` by a kernel.

    It finds the gradient, the mean structure, on the way, where one may be wanted; its own derivative takes tensor operations.

    Returns:
        None where these have to do all of the work.
    """
    kernel = compiled("..kernels.inside_rows", __package__, "log_totals", scores.device)
    if kernel is None or scores.dtype not in (torch.float32, torch.float64) or not readable(scores):
        return None
    if torch.is_grad_enabled() and scores.requires_grad:
        found: Any = _LogTotal.apply(scores, gates, graph)
        return found
    return _sums(graph, scores, gates, False)[0]


class _LogTotal(torch.autograd.Function):
    """`log_total` with its gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, gates: Tensor | None, graph: Hypergraph) -> Tensor:
        total, mean = _sums(graph, scores, gates, True)
        ctx.save_for_backward(scores, mean)
        ctx.gates, ctx.graph = gates, graph
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            total = Inside.of(ctx.graph, ctx.graph.weights(scores, ctx.gates)).log_total
            (mean,) = torch.autograd.grad(total.sum(), scores, create_graph=True)
        return gradients[0][:, None] * mean, None, None


def _sums(graph: Hypergraph, scores: Tensor, gates: Tensor | None, with_mean: bool) -> tuple[Tensor, Tensor]:
    """By the kernel: the totals [B], and the mean structures [B, D], or [0, D] without."""
    from ..kernels.inside_rows import log_totals

    batch = len(scores)
    total, mean = scores.new_empty(batch), scores.new_empty(batch if with_mean else 0, graph.dim)
    opened = scores.new_zeros(batch, graph.gate_count) if gates is None else gates
    given, shut, sums, means = (tensor.detach().contiguous().numpy() for tensor in (scores, opened, total, mean))

    def run(part: slice) -> None:
        log_totals(given[part], shut[part], graph.edges, graph.goal, sums[part], means[part])

    in_threads(run, batch, batch * len(graph.edges.gates) * PASSES)
    return total, mean


@dataclass(frozen=True)
class Inside:
    """Sums over derivations, and what each edge has of its head's.

    Attributes:
        graph: the hypergraph.
        log_total: [B] log sum_derivations exp(weight), nats, differentiable.
        shares: [n, e, B] for each level: the probability of an edge given its head, differentiable.
    """

    graph: Hypergraph
    log_total: Tensor
    shares: list[Tensor]

    @staticmethod
    def of(graph: Hypergraph, weights: Tensor) -> "Inside":
        """Sums over all derivations, for weights [E + 1, B] as `Hypergraph.weights` has them. O(E)."""
        parts, shares = [weights.new_zeros(1, weights.shape[1])], []
        # Where each node's value is: that of the node of value one is first, the others follow level by level.
        for level in graph.levels:
            values = graph.values(weights, torch.cat(parts), level, first=1)
            peak = values.detach().amax(1, keepdim=True)
            peak = torch.where(peak.isneginf(), 0, peak)
            masses = (values - peak).exp()
            total = ordered_sum(masses)
            some = torch.where(total > 0, total, 1)  # no gradient where nothing can be derived
            parts.append(torch.where(total > 0, some.log() + peak[:, 0], -torch.inf))
            shares.append(masses / some[:, None])
        return Inside(graph, torch.cat(parts)[1 + graph.goal], shares)

    def entropy(self) -> Tensor:
        """Of the derivation, nats, [B]: H(node) = sum_e p_e (-log p_e + H(its tails)); no difference of large numbers."""
        parts = [torch.zeros_like(self.log_total)[None]]
        least = torch.finfo(self.log_total.dtype).tiny ** 0.5  # below, 1 / share^2, of the second derivative, overflows
        for level, share in zip(self.graph.levels, self.shares, strict=True):
            below = torch.cat(parts)[(level.tails + 1) % (self.graph.count + 1)].sum(2)
            surprise = -torch.where(share > least, share, 1).log()
            parts.append(ordered_sum(share * (surprise + below)))
        return torch.cat(parts)[1 + self.graph.goal]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent structures, [count, B, D]: from the goal down, each node's edge by its share."""
        choices = []
        for share in self.shares:
            cumulative = share.detach().permute(2, 0, 1).cumsum(-1)  # [B, n, e]
            shape = (*cumulative.shape[:1], count, cumulative.shape[1], 1)
            uniform = torch.rand(shape, dtype=cumulative.dtype, device=cumulative.device, generator=generator)
            below = cumulative[:, None] <= uniform * cumulative[:, None, :, -1:]
            choices.append(below.sum(-1).clamp(max=cumulative.shape[-1] - 1))
        return self.graph.structures(choices, self.shares[0]).transpose(0, 1)


def ordered_sum(values: Tensor) -> Tensor:
    """The sum over dimension 1, entry by entry: `sum` takes another order for a batch of one, and rounds otherwise."""
    return values.cumsum(1)[:, -1]
