"""The score-function (REINFORCE) estimator, with any baseline."""

import torch
from torch import Tensor

from ...oracles import GibbsDistribution, Polytope, SupportsGibbs, supports
from ...oracles.base import missing
from ...oracles.checks import check_dimension
from .base import Cost, Estimate, Estimator, cost_of_samples, most_probable, with_gradient_of
from .baselines import Baseline


class ScoreFunction(Estimator):
    """Samples z ~ q(z), proportional to exp <a_z, t>, and weighs the gradient of log q(z) by what z cost.

        grad E_q[cost] = E_q[ (cost(z) - b) grad log q(z) + grad cost(z) ],

    averaged over the baseline's S samples (Williams 1992; SFE, SFE+ and NVIL of Correia et al. 2020, section 5, by
    `RunningMean`, `SelfCritic` and `Learned`; RLOO by `LeaveOneOut`). Unbiased for the scores and for the cost's
    parameters. b and the costs of its critics have no gradient. S + critics cost evaluations per example: 1, 2, 1 and S.

    The value is the mean cost of all that was drawn, in the units of the cost; the entropy is exact, and no part of the
    learning signal. Samples come from torch's global generator.

    Args:
        polytope: must have a Gibbs distribution (`gibbs`).
        baseline: what is subtracted from the cost.

    Raises:
        ValueError: the polytope has no `gibbs`.
    """

    def __init__(self, polytope: Polytope, baseline: Baseline) -> None:
        super().__init__()
        if not supports(polytope, SupportsGibbs):
            raise missing(polytope, SupportsGibbs, "ScoreFunction")
        self.polytope = polytope
        self.baseline = baseline
        self.dim = polytope.dim
        self._gibbs = polytope.gibbs

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_dimension(scores, self.polytope)
        distribution = self._gibbs(scores)
        count, critics = self.baseline.samples, self.baseline.critics
        drawn = distribution.sample((count + critics,))  # [S + critics, B, D]
        samples = drawn[:count]
        costs = cost_of_samples(cost, samples)
        critic_costs = costs.new_zeros(0, len(scores))
        if critics:
            with torch.no_grad():
                critic_costs = cost_of_samples(cost, drawn[count:])
        baseline = self.baseline(costs.detach(), critic_costs, context)
        signal = costs.detach() - baseline.value
        surrogate = (signal * distribution.log_prob(samples) + costs).mean(0) + baseline.loss
        value = torch.cat([costs.detach(), critic_costs]).mean(0)
        return Estimate(
            value=value,
            surrogate=with_gradient_of(value, surrogate),
            entropy=distribution.entropy(),
            evaluations=drawn.shape[0] * drawn.shape[1],
            support=torch.full((len(scores),), len(drawn), dtype=torch.int64, device=scores.device),
            mode=most_probable(self.polytope, scores),
        )

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self._gibbs(scores)
