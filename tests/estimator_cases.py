"""What tests of estimators compare with: enumeration of all structures.

Monte Carlo gradients are compared through the batch: one row of scores repeated DRAWS times gives DRAWS independent gradients,
whose mean must be within 4 standard errors of the exact one.
"""

import math
from collections.abc import Callable

import torch
from sparsemarg.models.estimators import (
    Baseline,
    Cost,
    Estimate,
    Estimator,
    Learned,
    LeaveOneOut,
    RunningMean,
    SelfCritic,
)
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, Polytope, Product, Simplex
from torch import Tensor

DRAWS = 20_000

RELAXABLE = [Simplex(5), BernoulliCube(4)]

POLYTOPES = {
    "simplex": Simplex(5),
    "cube": BernoulliCube(4),
    "budget": Budget(4, 2),
    "explicit": Explicit(torch.tensor([[0.0, 1, 1], [1, 0, 0.5], [-1, 0, 2], [0, 0, 0]])),
    "product": Product(Simplex(3), BernoulliCube(2)),
}

ENUMERABLE = [polytope for name, polytope in POLYTOPES.items() if name != "product"]


def scores_of(polytope: Polytope) -> Tensor:
    return torch.randn(polytope.dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def theta_of(polytope: Polytope) -> Tensor:
    return 1 + torch.rand(polytope.dim, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def cost_of(theta: Tensor) -> Cost:
    """A cost that is not linear in the structure, far from 0, with parameters theta [B, D], one copy an example."""

    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        weights = theta[row]
        return 3 + (atoms * weights).sum(-1).square() - 2 * (atoms[:, 0] * weights[:, -1]).sin() + (weights * 0.3).sum(-1)

    return cost


def structures_of(polytope: Polytope) -> Tensor:
    if isinstance(polytope, Product):
        first, second = Simplex(3).vertices(), BernoulliCube(2).vertices()
        return torch.cat([first.repeat_interleave(len(second), 0), second.repeat(len(first), 1)], -1)
    return polytope.vertices()  # pyright: ignore[reportAttributeAccessIssue]


def enumerated(
    polytope: Polytope, scores: Tensor, theta: Tensor, make: Callable[[Tensor], Cost] = cost_of
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The exact expected cost, its gradients in scores and theta, and the entropy, of one row."""
    scores, theta = scores.clone().requires_grad_(), theta.clone().requires_grad_()
    structures = structures_of(polytope)
    log_probs = (structures @ scores).log_softmax(-1)
    costs = make(theta.expand(len(structures), -1))(structures, torch.arange(len(structures)))
    expected = log_probs.exp() @ costs
    by_scores, by_theta = torch.autograd.grad(expected, [scores, theta])
    return expected.detach(), by_scores, by_theta, -(log_probs.exp() @ log_probs).detach()


def draws(
    estimator: Estimator, polytope: Polytope, make: Callable[[Tensor], Cost] = cost_of, seed: int = 0
) -> tuple[Estimate, Tensor, Tensor]:
    """An estimate of DRAWS equal rows, and each row's gradients in the scores and in theta."""
    torch.manual_seed(seed)
    scores = scores_of(polytope).repeat(DRAWS, 1).requires_grad_()
    theta = theta_of(polytope).repeat(DRAWS, 1).requires_grad_()
    context = torch.linspace(0, 1, DRAWS * 3, dtype=torch.float64).reshape(DRAWS, 3)
    estimate = estimator(scores, make(theta), context=context)
    by_scores, by_theta = torch.autograd.grad(estimate.surrogate.sum(), [scores, theta])
    return estimate, by_scores, by_theta


def errors(samples: Tensor, exact: Tensor) -> Tensor:
    """The distance of the mean of samples [DRAWS, ...] from the exact value, in standard errors."""
    return (samples.mean(0) - exact).abs() / (samples.std(0) / math.sqrt(len(samples)) + 1e-12)


def check_unbiased(estimator: Estimator, polytope: Polytope, make: Callable[[Tensor], Cost] = cost_of) -> tuple[Tensor, Tensor]:
    expected, by_scores, by_theta, entropy = enumerated(polytope, scores_of(polytope), theta_of(polytope), make)
    estimate, score_grads, theta_grads = draws(estimator, polytope, make)
    assert by_scores.abs().max() > 0.1
    assert errors(score_grads, by_scores).max() < 4
    assert errors(theta_grads, by_theta).max() < 4
    assert errors(estimate.value, expected) < 4
    torch.testing.assert_close(estimate.surrogate.detach(), estimate.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(estimate.entropy.detach(), entropy.expand(DRAWS), rtol=0, atol=1e-10)
    check_counts(estimate, polytope)
    return score_grads, theta_grads


def check_counts(estimate: Estimate, polytope: Polytope) -> None:
    structures = structures_of(polytope)
    best = structures[(structures @ scores_of(polytope)).argmax()]
    torch.testing.assert_close(estimate.mode, best.expand_as(estimate.mode))
    assert estimate.evaluations == int(estimate.support.sum())
    assert estimate.support.dtype == torch.int64
    assert not estimate.value.requires_grad
    assert not estimate.mode.requires_grad


class Bare(Polytope):
    """A polytope with nothing but `maximize`."""

    dim = 3

    def maximize(self, scores: Tensor) -> Tensor:
        return (scores > 0).to(scores)


BASELINES: dict[str, Callable[[], Baseline]] = {
    "running": RunningMean,
    "critic": SelfCritic,
    "learned": lambda: Learned(3, hidden=4).double(),
    "others": lambda: LeaveOneOut(3),
}
