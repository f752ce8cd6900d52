"""Sums over the derivations of a hypergraph: normalisers, entropies and samples. `compiled_sums` has them by a kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .hypergraph import Hypergraph


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
