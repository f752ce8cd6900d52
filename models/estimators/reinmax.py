"""ReinMax: a straight-through estimator of second order."""

import torch
from torch import Tensor

from ...kernels import readable
from ...oracles import BernoulliCube, GibbsDistribution, Polytope, Simplex
from .base import (
    Cost,
    Estimate,
    Estimator,
    cost_of_samples,
    estimate_of_one_sample,
    most_probable,
    warn_without_slope,
    with_gradient_of,
)
from .checks import check_batch
from .temperature import ConstantTemperature, Temperature, check_temperature


class ReinMax(Estimator):
    """Evaluates the cost at a sample z ~ q and passes its gradient there back through

        2 J((z + p_tau) / 2) - J(p) / 2,   J(p) = diag(p) - p p',   p = softmax(t),   p_tau = softmax(t / tau)

    (Liu et al. 2023, algorithm 2: Heun's rule for the cost's differences, where straight-through has Euler's). Bits are
    pairs of categories with scores (t_i, 0): J is p (1 - p).

    Biased for the scores, but exact in expectation at tau = 1 for a cost that is quadratic in z (for bits: in each bit given
    the others); unbiased for the cost's parameters. One cost evaluation per example, at a structure; the cost must be
    differentiable in the structure. The value is the sample's cost, in its units; the entropy is exact.

    Args:
        polytope: Simplex or BernoulliCube.
        temperature: tau; 1 unless given. The paper uses 1 to 1.5; below 1 it is not meant.

    Raises:
        ValueError: another polytope.
    """

    _seen = False  # whether a cost has been looked at

    def __init__(self, polytope: Polytope, temperature: Temperature | None = None) -> None:
        super().__init__()
        if isinstance(polytope, Simplex):
            self._probs, self._linear = _category_probs, _category_linear
        elif isinstance(polytope, BernoulliCube):
            self._probs, self._linear = torch.sigmoid, _bits_linear
        else:
            raise ValueError(f"ReinMax is for Simplex and BernoulliCube, not {polytope!r}; use ScoreFunction")
        self.polytope = polytope
        self.temperature = check_temperature(ConstantTemperature(1.0) if temperature is None else temperature, "ReinMax")
        self.dim = polytope.dim

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        distribution = self.polytope.gibbs(scores)
        sample = distribution.sample()
        held = scores.detach()
        probs = self._probs(held)
        middle = (sample + self._probs(held / self.temperature().to(held))) / 2
        # What is forbidden has probability 0, and 0 * -inf would be NaN.
        allowed = torch.where(scores.isneginf(), 0, scores)
        passed = 2 * self._linear(middle, allowed) - self._linear(probs, allowed) / 2
        given = with_gradient_of(sample, passed)
        costs = cost_of_samples(cost, given[None])[0]
        if given.requires_grad and not self._seen and readable(given):
            self._seen = True  # one cost will do
            warn_without_slope(costs, given, "ReinMax")
        mode = most_probable(self.polytope, scores)
        return estimate_of_one_sample(costs, costs, distribution.entropy(), mode)

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self.polytope.gibbs(scores)


def _category_probs(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _category_linear(probs: Tensor, scores: Tensor) -> Tensor:
    """J(p) t, whose derivative in t is J(p)."""
    return probs * (scores - (probs * scores).sum(-1, keepdim=True))


def _bits_linear(probs: Tensor, scores: Tensor) -> Tensor:
    """J(p) t for pairs of categories, whose derivative in t is p (1 - p)."""
    return probs * (1 - probs) * scores
