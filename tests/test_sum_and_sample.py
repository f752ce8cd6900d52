"""Sum and sample against enumeration."""

import math

import pytest
import torch
from estimator_cases import (
    BASELINES,
    DRAWS,
    ENUMERABLE,
    Bare,
    check_unbiased,
    draws,
    enumerated,
    errors,
    scores_of,
    structures_of,
    theta_of,
)
from sparsemarg.models.estimators import (
    LeaveOneOut,
    SumAndSample,
)
from sparsemarg.models.estimators.splits import split_bits, split_listed
from sparsemarg.oracles import BernoulliCube, Explicit, Polytope, Simplex


@pytest.mark.parametrize("baseline", ["running", "critic", "learned"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("polytope", ENUMERABLE, ids=repr)
def test_sum_and_sample_is_unbiased(polytope: Polytope, k: int, baseline: str) -> None:
    torch.manual_seed(1)
    estimator = SumAndSample(polytope, k, BASELINES[baseline]()).double()
    draws(estimator, polytope, seed=2)  # a running mean that is not 0: the published code's bias is in proportion to it
    check_unbiased(estimator, polytope)


@pytest.mark.parametrize("polytope", [BernoulliCube(4), Simplex(16)], ids=repr)
def test_sum_and_sample_is_exact_when_one_structure_is_left(polytope: Polytope) -> None:
    expected, by_scores, by_theta, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    estimate, score_grads, theta_grads = draws(SumAndSample(polytope, 15), polytope)
    torch.testing.assert_close(estimate.value, expected.expand(DRAWS), rtol=1e-12, atol=0)
    torch.testing.assert_close(score_grads, by_scores.expand_as(score_grads), rtol=0, atol=1e-9)
    torch.testing.assert_close(theta_grads, by_theta.expand_as(theta_grads), rtol=0, atol=1e-9)
    assert estimate.evaluations == 16 * DRAWS


def test_summed_structures_reduce_the_variance() -> None:
    polytope = BernoulliCube(4)
    spread = [draws(SumAndSample(polytope, k), polytope)[1].var(0).sum() for k in (1, 4, 10)]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("k", [1, 2, 7, 15])
def test_samples_of_the_rest_have_the_right_probabilities(k: int) -> None:
    cube = BernoulliCube(4)
    scores = scores_of(cube).repeat(DRAWS, 1)
    structures = structures_of(cube)
    probs = (structures @ scores[0]).softmax(-1)
    others = probs.clone()
    others[probs.topk(k).indices] = 0
    torch.manual_seed(5)
    for split in (split_bits(scores, cube, k), split_listed(scores, structures, k)):
        torch.testing.assert_close(split.rest, others.sum().expand(DRAWS), rtol=1e-12, atol=0)
        torch.testing.assert_close(split.best[:, 0], structures[probs.topk(k).indices])
        counts = (split.sample[:, None] == structures).all(-1).double()
        expected = others / others.sum()
        assert (counts.sum(0)[expected == 0] == 0).all()
        # Of a frequency whose probability is 1 there is no spread.
        assert errors(counts[:, expected > 0], expected[expected > 0]).nan_to_num().max() < 4


def test_the_rest_of_many_bits_keeps_its_digits() -> None:
    """One code has all but 4e-8 of the mass: 1 - q(best) would have no digits in float32, and few in float64."""
    cube = BernoulliCube(32)
    torch.manual_seed(6)
    scores = (torch.rand(50, 32) + 20) * torch.randn(50, 32).sign()
    split = split_bits(scores, cube, 3)
    size = scores.double().abs().sort(-1).values
    log_best = -torch.nn.functional.softplus(-size).sum(-1)
    summed = log_best.exp() * (1 + (-size[:, :2]).exp().sum(-1))
    direct = -torch.expm1(log_best) - log_best.exp() * (-size[:, :2]).exp().sum(-1)
    assert (1 - summed).abs().max() < 1e-7
    torch.testing.assert_close(split.rest.double(), direct, rtol=1e-5, atol=0)
    assert not (split.best == split.sample).all(-1).any()


def test_sum_and_sample_with_forbidden_structures() -> None:
    """Two structures are left of four: with k = 3 the sample and one of the best have no mass."""
    for polytope in (BernoulliCube(2), Explicit(BernoulliCube(2).vertices())):
        scores = torch.tensor([[-torch.inf, 1.0]], dtype=torch.float64, requires_grad=True)
        estimate = SumAndSample(polytope, 3)(scores, lambda atoms, row: 5 * atoms[:, 1])
        assert estimate.value.item() == pytest.approx(5 / (1 + math.exp(-1)))
        (gradient,) = torch.autograd.grad(estimate.surrogate.sum(), scores)
        assert gradient[0, 0] == 0
        chance = 1 / (1 + math.exp(-1))
        assert gradient[0, 1].item() == pytest.approx(5 * chance * (1 - chance))


def test_bad_sums_are_refused() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"SumAndSample: k must be between 1 and 4, not {k}"):
            SumAndSample(Simplex(5), k)
    with pytest.raises(ValueError, match="k must be between 1 and 15, not 16"):
        SumAndSample(BernoulliCube(4), 16)
    with pytest.raises(ValueError, match="draws one sample, but its baseline LeaveOneOut needs 2"):
        SumAndSample(Simplex(5), 1, LeaveOneOut(2))
    with pytest.raises(ValueError, match=r"SumAndSample needs Bare\.vertices"):
        SumAndSample(Bare(), 1)
