"""The score-function (REINFORCE) estimator, with any baseline."""

import torch
from torch import Tensor

from ...oracles import GibbsDistribution, Polytope, SupportsGibbs, supports
from ...oracles.base import missing
from ...oracles.checks import check_polytope
from .base import Estimate, Estimator, most_probable, with_gradient_of
from .baselines import Baseline, check_baseline
from .checks import check_batch
from .drawn_cost import RandomCost, draw_costs


class ScoreFunction(Estimator):
    """Samples z ~ q(z), proportional to exp <a_z, t>, and weighs the gradient of log q(z) by what z cost.

        grad E_q[cost] = E_q[ (cost(z) - b) grad log q(z) + grad cost(z) ],

    averaged over the baseline's S samples (Williams 1992; SFE, SFE+ and NVIL of Correia et al. 2020, section 5, by
    `RunningMean`, `SelfCritic` and `Learned`; RLOO by `LeaveOneOut`). Unbiased for the scores and for the cost's
    parameters. b and the costs of its critics have no gradient. S + critics cost evaluations per example: 1, 2, 1 and S.

    A random cost(z, choice) adds log p(choice | z) to log q(z), in the same samples (`DrawnCost`): the 0/1 loss of section 5.2.

    The value is the mean cost of all that was drawn, in the units of the cost; the entropy is exact, and no part of the
    learning signal. Samples come from torch's global generator.

    Args:
        polytope: must have a Gibbs distribution (`gibbs`).
        baseline: what is subtracted from the cost.

    Raises:
        ValueError: the polytope has no `gibbs`.
    """

    takes_drawn_costs = True

    def __init__(self, polytope: Polytope, baseline: Baseline) -> None:
        super().__init__()
        check_polytope(polytope)
        if not supports(polytope, SupportsGibbs):
            raise missing(polytope, SupportsGibbs, "ScoreFunction")
        self.polytope = polytope
        self.baseline = check_baseline(baseline, "ScoreFunction")
        self.dim = polytope.dim

    def forward(self, scores: Tensor, cost: RandomCost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        distribution = self.polytope.gibbs(scores)
        count, critics = self.baseline.samples, self.baseline.critics
        drawn = distribution.sample((count + critics,))  # [S + critics, B, D]
        samples = drawn[:count]
        costs = draw_costs(cost, samples)
        critic_costs = costs.value.new_zeros(0, len(scores))
        if critics:
            with torch.no_grad():
                critic_costs = draw_costs(cost, drawn[count:]).value
        baseline = self.baseline(costs.value, critic_costs, context)
        log_prob = distribution.log_prob(samples) + costs.log_prob
        surrogate = ((costs.value - baseline.value) * log_prob + costs.penalty).mean(0) + baseline.loss
        value = torch.cat([costs.value, critic_costs]).mean(0)
        return Estimate(
            value=value,
            surrogate=with_gradient_of(value, surrogate),
            entropy=distribution.entropy(),
            evaluations=drawn.shape[0] * drawn.shape[1],
            support=torch.full((len(scores),), len(drawn), dtype=torch.int64, device=scores.device),
            mode=most_probable(self.polytope, scores),
        )

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self.polytope.gibbs(scores)
