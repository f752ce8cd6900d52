"""Sum-and-sample: the most probable structures exactly, the others by one sample."""

import torch
from torch import Tensor

from ...oracles import BernoulliCube, GibbsDistribution, Polytope, SupportsVertices, placed, supports
from ...oracles.base import missing
from ...oracles.checks import check_count, check_polytope
from ...oracles.gibbs import EnumeratedGibbs
from ...oracles.placement import lasting
from .base import Cost, Estimate, Estimator, cost_of_samples, with_gradient_of
from .baselines import Baseline, RunningMean, check_baseline
from .checks import check_batch
from .splits import Split, split_bits, split_listed


class SumAndSample(Estimator):
    """Sums over the k most probable structures C and samples one z' of the others, for q(z) proportional to exp <a_z, t>:

        grad E_q[cost] = sum_{z in C} q(z) g(z) + q(not C) E_{z' ~ q(. | not C)}[ g(z') ],
        g(z) = (cost(z) - b) grad log q(z) + grad cost(z)

    (Liu et al. 2019; Correia et al. 2020, section 5.1). The baseline b is the same in all terms, without which the estimate is
    biased: sum_z q(z) b grad log q(z) is 0 only over all z. Unbiased for scores and the cost's parameters. k + 1 cost
    evaluations per example, and the baseline's critics. The value, in the units of the cost, is the same sum of costs and is
    unbiased too; it is what the baseline is trained on. The entropy is exact. Samples come from torch's global generator.

    Bits are split without listing them, in O(D k^2); other polytopes through their listed structures, in O(V D).

    Args:
        polytope: BernoulliCube, or one that lists its structures (`vertices`).
        k: how many are summed, at least 1 and fewer than there are structures.
        baseline: `RunningMean` unless given; one that draws its own number of samples (`LeaveOneOut`) does not fit.

    Raises:
        ValueError: a polytope without `vertices`, k out of range, an unfit baseline.
    """

    def __init__(self, polytope: Polytope, k: int = 1, baseline: Baseline | None = None) -> None:
        super().__init__()
        check_polytope(polytope)
        self.polytope = polytope
        self.baseline = check_baseline(RunningMean() if baseline is None else baseline, "SumAndSample")
        self.dim = polytope.dim
        self._vertices: Tensor | None = None  # no buffer: `module.half()` would round them
        if isinstance(polytope, BernoulliCube):
            count = 2**polytope.dim
        elif supports(polytope, SupportsVertices):
            self._vertices = lasting(polytope.vertices)()
            count = len(self._vertices)
        else:
            raise missing(polytope, SupportsVertices, "SumAndSample")
        if count == 1:
            raise ValueError(
                f"SumAndSample sums over some structures and draws from the others, but {polytope!r} has one alone"
            )
        self.k = check_count("SumAndSample: k", k, 1, count - 1)
        if self.baseline.samples != 1:
            raise ValueError(
                f"SumAndSample draws one sample, but its baseline {type(self.baseline).__name__} needs "
                f"{self.baseline.samples}; use RunningMean, SelfCritic or Learned"
            )

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        split = self._split(scores)
        structures = torch.cat([split.best, split.sample[None]])  # [k + 1, B, D]
        logs = split.gibbs.log_prob(structures)
        log_best = logs[: self.k].detach()
        weights = torch.cat([torch.where(split.valid, log_best.exp(), 0), split.rest[None].to(logs)])
        # A structure without mass has log-probability -inf or an unbounded gradient: it gets no term.
        held = weights > 0
        costs = torch.where(held, cost_of_samples(cost, structures), 0)
        logs = torch.where(held, logs, 0)
        value = (weights * costs.detach()).sum(0)
        critic_costs = costs.new_zeros(0, len(scores))
        if self.baseline.critics:
            with torch.no_grad():
                critic_costs = cost_of_samples(cost, split.gibbs.sample((self.baseline.critics,)))
        baseline = self.baseline(value[None], critic_costs, context)
        signal = costs.detach() - baseline.value
        surrogate = (weights * (signal * logs + costs)).sum(0) + baseline.loss
        evaluations = self.k + 1 + self.baseline.critics
        return Estimate(
            value=value,
            surrogate=with_gradient_of(value, surrogate),
            entropy=split.gibbs.entropy(),
            evaluations=evaluations * len(scores),
            support=torch.full((len(scores),), evaluations, dtype=torch.int64, device=scores.device),
            mode=split.best[0],
        )

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        if isinstance(self.polytope, BernoulliCube):
            return self.polytope.gibbs(scores)
        assert self._vertices is not None
        return EnumeratedGibbs(scores, placed(self._vertices, scores.device))

    def _split(self, scores: Tensor) -> Split:
        if isinstance(self.polytope, BernoulliCube):
            return split_bits(scores, self.polytope, self.k)
        assert self._vertices is not None
        return split_listed(scores, placed(self._vertices, scores.device), self.k)
