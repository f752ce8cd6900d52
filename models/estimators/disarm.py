"""DisARM: an antithetic, unbiased estimator for independent bits."""

import torch
from torch import Tensor

from ...oracles import BernoulliCube, GibbsDistribution
from .base import Cost, Estimate, Estimator, cost_of_samples, most_probable, with_gradient_of
from .checks import check_batch


class DisARM(Estimator):
    """Compares the costs of two codes drawn from the same uniforms u and 1 - u:

        z_i = 1[u_i < s_i],   z'_i = 1[1 - u_i < s_i],   s = sigmoid(t),
        dE/dt_i = E[ (cost(z) - cost(z')) / 2  (z_i - z'_i)  sigmoid(|t_i|) ],

    (Dong, Mnih and Tucker 2020, who write z_i - z'_i as a sign and an indicator; U2G of Yin et al. 2020 is the same). It is
    ARM with all but the two codes integrated out. Unbiased for the scores and for the cost's parameters, whose gradient is
    the mean of both codes'. Two cost evaluations per example; nothing to tune, no state. The value is the mean of the two
    costs, in their units; the entropy is exact. Uniforms come from torch's global generator.

    Args:
        polytope: the bits.
    """

    def __init__(self, polytope: BernoulliCube) -> None:
        super().__init__()
        if not isinstance(polytope, BernoulliCube):
            raise ValueError(f"DisARM is for independent bits, BernoulliCube, not {polytope!r}; use ScoreFunction")
        self.polytope = polytope
        self.dim = polytope.dim

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        gibbs = self.polytope.gibbs(scores)  # in float32 at least
        probs = gibbs.scores.detach().sigmoid()
        uniform = torch.rand_like(probs)
        # u < s and 1 - u < s, the latter as u > 1 - s with 1 - s = sigmoid(-t), which keeps its digits near s = 1.
        first = uniform < probs
        second = uniform > (-gibbs.scores.detach()).sigmoid()
        codes = torch.stack([first, second]).to(scores.dtype)
        costs = cost_of_samples(cost, codes)  # [2, B]
        half = (costs[0] - costs[1]).detach() / 2
        signs = codes[0] - codes[1]
        # -inf times the sign 0 would be NaN.
        allowed = torch.where(scores.isneginf(), 0, scores)
        surrogate = half * (signs * allowed.detach().abs().sigmoid() * allowed).sum(-1) + costs.mean(0)
        value = costs.detach().mean(0)
        return Estimate(
            value=value,
            surrogate=with_gradient_of(value, surrogate),
            entropy=gibbs.entropy(),
            evaluations=2 * len(scores),
            support=torch.full((len(scores),), 2, dtype=torch.int64, device=scores.device),
            mode=most_probable(self.polytope, scores),
        )

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self.polytope.gibbs(scores)
