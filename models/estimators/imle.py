"""Implicit maximum likelihood estimation: the finite difference of two perturbed maximisations."""

import math

import torch
from torch import Tensor

from ...oracles import BernoulliCube, GibbsDistribution, Polytope, Simplex
from .base import Cost, Estimate, Estimator, cost_of_samples, estimate_of_one_sample, most_probable, with_gradient_of
from .checks import check_batch
from .noise import gumbel_noise


class IMLE(Estimator):
    """Evaluates the cost at a perturbed maximiser and moves the scores away from it, towards that of a better target:

        z = argmax_z <a_z, t + e>,   z' = argmax_z <a_z, t - lambda g + e>,   g = dcost/dz at z,   dE/dt ~ (z - z') / lambda

    (Niepert, Minervini and Franceschi 2021, with one sample). e is Gumbel noise for categories and logistic noise for bits,
    with which z is an exact sample of q(z) proportional to exp <a_z, t> and the entropy is q's, exact.

    Biased for the scores: for a cost linear in z it is in expectation the finite difference of step lambda, and exact only as
    lambda -> 0, where its variance grows without bound. Unbiased for the cost's parameters. One cost evaluation per example,
    at a structure, and one more derivative; the cost must be differentiable in the structure. g is that of each example's own
    cost, so that lambda means the same at every batch size. The value is the sample's cost, in its units.

    Args:
        polytope: Simplex or BernoulliCube.
        step: lambda, above 0, in units of scores per unit of cost.

    Raises:
        ValueError: another polytope, a step that is not above 0.
    """

    def __init__(self, polytope: Polytope, step: float) -> None:
        super().__init__()
        if not isinstance(polytope, (Simplex, BernoulliCube)):
            raise ValueError(f"IMLE is for Simplex and BernoulliCube, not {polytope!r}; use ScoreFunction")
        if not isinstance(step, (int, float)) or not 0 < step < math.inf:
            raise ValueError(f"IMLE: step must be above 0 and finite, not {step!r}")
        self.polytope = polytope
        self.step = step
        self.dim = polytope.dim

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        distribution = self.polytope.gibbs(scores)
        held = scores.detach()
        precise = held.float() if held.dtype in (torch.float16, torch.bfloat16) else held
        perturbed = precise + gumbel_noise(precise)
        if isinstance(self.polytope, BernoulliCube):
            perturbed = perturbed - gumbel_noise(precise)  # logistic
        sample = self.polytope.maximize(perturbed).to(scores.dtype)
        wanted = torch.is_grad_enabled() and scores.requires_grad
        sample.requires_grad_(wanted)
        costs = surrogate = cost_of_samples(cost, sample[None])[0]
        if wanted:
            slope = None
            if costs.requires_grad:
                (slope,) = torch.autograd.grad(costs.sum(), sample, retain_graph=True, allow_unused=True)
            if slope is None:
                raise ValueError("IMLE takes the cost's derivative in the structure, and this cost has none; use ScoreFunction")
            target = self.polytope.maximize(perturbed - self.step * slope.to(perturbed)).to(scores.dtype)
            # What is forbidden is in neither, and 0 * -inf would be NaN.
            allowed = torch.where(scores.isneginf(), 0, scores)
            surrogate = with_gradient_of(costs, costs + ((sample.detach() - target) / self.step * allowed).sum(-1))
        mode = most_probable(self.polytope, scores)
        return estimate_of_one_sample(costs, surrogate, distribution.entropy(), mode)

    def distribution(self, scores: Tensor) -> GibbsDistribution:
        return self.polytope.gibbs(scores)
