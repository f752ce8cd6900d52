"""Relaxed (Concrete) samples of categories and bits, and their straight-through version."""

import torch
from torch import Tensor

from ...kernels import readable
from ...oracles import BernoulliCube, GibbsDistribution, Polytope, Simplex
from .base import Cost, Estimate, Estimator, cost_of_samples, estimate_of_one_sample, most_probable, warn_without_slope
from .checks import check_batch
from .noise import gumbel_noise
from .temperature import Temperature, check_temperature


class GumbelSoftmax(Estimator):
    """Differentiates the cost of a relaxed sample through the sample.

        categories (Simplex):    z = softmax((t + g) / tau),   g_i Gumbel(0, 1)
        bits (BernoulliCube):    z = sigmoid((t + l) / tau),   l_i Logistic(0, 1)

    (Jang et al. 2017; Maddison et al. 2017). Hard samples are the limits at tau -> 0: the best category of t + g, the bits
    with t + l > 0; they are exact samples of q(z) proportional to exp <a_z, t>. Straight-through evaluates the cost at the
    hard sample and takes the gradient of the relaxed one: what is discretised is the sample, for bits too (the published
    code of Correia et al. 2020 thresholds their scores).

    Biased: the relaxed version has the gradient, for scores and for the cost's parameters, of an expected cost of points
    inside the polytope, which the cost must accept; straight-through is unbiased for the cost's parameters and biased for
    the scores. One cost evaluation per example.

    In evaluation mode the cost is that of the hard sample in both versions, so that the value estimates E_q[cost], in the
    units of the cost, without bias; with training mode's relaxed samples it does not. The entropy is that of q, exact.
    Noise comes from torch's global generator.

    Args:
        polytope: Simplex or BernoulliCube.
        temperature: tau, constant or annealed.
        straight_through: discretise the sample.

    Raises:
        ValueError: another polytope.
    """

    _seen = False  # whether a cost has been looked at

    def __init__(self, polytope: Polytope, temperature: Temperature, straight_through: bool = False) -> None:
        super().__init__()
        if isinstance(polytope, Simplex):
            self._sample = _relaxed_category
        elif isinstance(polytope, BernoulliCube):
            self._sample = _relaxed_bits
        else:
            raise ValueError(
                f"GumbelSoftmax relaxes Simplex and BernoulliCube, not {polytope!r}; use ScoreFunction, or Marginalize with "
                "a sparse layer"
            )
        self.polytope = polytope
        self.temperature = check_temperature(temperature, "GumbelSoftmax")
        self.straight_through = straight_through
        self.dim = polytope.dim

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        distribution = self.polytope.gibbs(scores)  # also refuses NaN
        # float16 and bfloat16 noise has too few values.
        precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        relaxed, hard = self._sample(precise, self.temperature().to(precise))
        hard = hard + (relaxed - relaxed.detach())  # in this order the value is 0 and 1 exactly
        sample = (hard if self.straight_through or not self.training else relaxed).to(scores.dtype)
        costs = cost_of_samples(cost, sample[None])[0]
        if sample.requires_grad and not self._seen and readable(sample):
            self._seen = True  # one cost will do
            warn_without_slope(costs, sample, "GumbelSoftmax")
        mode = most_probable(self.polytope, scores)
        return estimate_of_one_sample(costs, costs, distribution.entropy(), mode)

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self.polytope.gibbs(scores)


def _relaxed_category(scores: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    perturbed = scores + gumbel_noise(scores)
    hard = torch.zeros_like(scores).scatter_(-1, perturbed.argmax(-1, keepdim=True), 1)
    return (perturbed / temperature).softmax(-1), hard


def _relaxed_bits(scores: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    perturbed = scores + gumbel_noise(scores) - gumbel_noise(scores)  # the difference of two Gumbel variables is logistic
    return (perturbed / temperature).sigmoid(), (perturbed > 0).to(scores)
