"""Mixtures of independent bits: the proposals of `importance`."""

import torch
from torch import Tensor


class BernoulliMixture:
    """r(z) = sum_k w_k prod_i p_ki^z_i (1 - p_ki)^(1 - z_i), for every row of a batch, in float64.

    A code's own neighbourhood is such a component (p_ki = 1 - eps where its bit is on, eps where it is off), and so are
    independent bits and the uniform distribution.

    Args:
        probs: [B, K, D], strictly between 0 and 1.
        weights: [B, K], of each row summing to 1.
    """

    def __init__(self, probs: Tensor, weights: Tensor) -> None:
        self.probs = probs.double()
        self.weights = weights.double()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, B, D], stratified: component k is drawn w_k count times but for rounding, which is random.

        Each sample's marginal distribution over a random place is r, so that averages of f(z) / r(z) are unbiased.
        """
        batch, parts, dim = self.probs.shape
        device = self.probs.device
        start = torch.rand(batch, 1, generator=generator, dtype=torch.float64, device=device)
        points = (start + torch.arange(count, device=device)) / count  # [B, count]
        part = torch.searchsorted(self.weights.cumsum(-1), points).clamp(max=parts - 1)
        probs = self.probs.gather(1, part[..., None].expand(-1, -1, dim)).transpose(0, 1)
        uniform = torch.rand(count, batch, dim, generator=generator, dtype=torch.float64, device=device)
        return (uniform < probs).double()

    def log_prob(self, codes: Tensor) -> Tensor:
        """log r(z), nats: [S, B, D] -> [S, B]. O(S K D) a row."""
        logits = self.probs.logit().transpose(1, 2)  # [B, D, K]
        inside = torch.bmm(codes.double().transpose(0, 1), logits) + (-self.probs).log1p().sum(-1)[:, None]
        return (inside + self.weights.log()[:, None]).logsumexp(-1).T

    def beside(self, other: "BernoulliMixture", share: float) -> "BernoulliMixture":
        """The mixture of this one with weight `share` and another with the rest."""
        weights = torch.cat([share * self.weights, (1 - share) * other.weights], 1)
        return BernoulliMixture(torch.cat([self.probs, other.probs], 1), weights)
