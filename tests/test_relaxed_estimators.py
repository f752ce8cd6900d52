"""Gumbel-softmax, ReinMax and I-MLE against their formulas, and their bias against enumeration."""

import math

import pytest
import torch
from estimator_cases import (
    DRAWS,
    RELAXABLE,
    check_counts,
    check_unbiased,
    cost_of,
    draws,
    enumerated,
    errors,
    scores_of,
    structures_of,
    theta_of,
)
from sparsemarg.models import BitVectorVAE, Decoder, Encoder
from sparsemarg.models.estimators import (
    IMLE,
    AnnealedTemperature,
    ConstantTemperature,
    Cost,
    GumbelSoftmax,
    ReinMax,
)
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Simplex
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def gumbel(polytope: Polytope, temperature: float = 0.5, straight_through: bool = False) -> GumbelSoftmax:
    return GumbelSoftmax(polytope, ConstantTemperature(temperature), straight_through).double()


def reference_samples(polytope: Polytope, scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Relaxed and hard samples of the literature's formulas, from the same noise as the estimator's."""
    first = -torch.empty_like(scores).exponential_().log()
    if isinstance(polytope, Simplex):
        weights = ((scores.detach() + first) / temperature).exp()
        hard = torch.eye(polytope.dim, dtype=scores.dtype)[(scores + first).argmax(-1)]
        return weights / weights.sum(-1, keepdim=True), hard
    logistic = first + torch.empty_like(scores).exponential_().log()
    relaxed = 1 / (1 + (-(scores.detach() + logistic) / temperature).exp())
    return relaxed, (scores + logistic > 0).to(scores)


def reference_gradient(polytope: Polytope, relaxed: Tensor, by_sample: Tensor, temperature: float) -> Tensor:
    """(dz/dt)' dcost/dz with the Jacobians written out: (diag z - z z') / tau, and z (1 - z) / tau."""
    if isinstance(polytope, Simplex):
        return relaxed * (by_sample - (relaxed * by_sample).sum(-1, keepdim=True)) / temperature
    return relaxed * (1 - relaxed) * by_sample / temperature


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
@pytest.mark.parametrize("straight_through", [False, True])
def test_gumbel_gradient_is_the_formula(polytope: Polytope, straight_through: bool) -> None:
    theta = theta_of(polytope).repeat(9, 1)
    scores = scores_of(polytope).repeat(9, 1).requires_grad_()
    torch.manual_seed(4)
    seen: list[Tensor] = []

    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        seen.append(atoms.detach())
        return cost_of(theta)(atoms, row)

    estimate = gumbel(polytope, 0.75, straight_through)(scores, cost)
    (found,) = torch.autograd.grad(estimate.surrogate.sum(), scores)
    torch.manual_seed(4)
    relaxed, hard = reference_samples(polytope, scores.detach(), 0.75)
    point = (hard if straight_through else relaxed).requires_grad_()
    costs = cost_of(theta)(point, torch.arange(9))
    (by_sample,) = torch.autograd.grad(costs.sum(), point)
    torch.testing.assert_close(seen[0], point.detach(), rtol=0, atol=0 if straight_through else 1e-12)
    torch.testing.assert_close(estimate.value, costs.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found, reference_gradient(polytope, relaxed, by_sample, 0.75), rtol=0, atol=1e-10)


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
def test_hard_samples_follow_the_gibbs_distribution(polytope: Polytope) -> None:
    """Straight-through, and both versions in evaluation mode: value and cost's gradient without bias, at any temperature."""
    expected, by_scores, by_theta, entropy = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    for estimator in (gumbel(polytope, 1.0, True), gumbel(polytope, 1.0).eval()):
        estimate, score_grads, theta_grads = draws(estimator, polytope)
        assert errors(estimate.value, expected) < 4
        assert errors(theta_grads, by_theta).max() < 4
        assert errors(score_grads, by_scores).max() > 8  # biased, as it says
        torch.testing.assert_close(estimate.entropy.detach(), entropy.expand(DRAWS), rtol=0, atol=1e-10)
        check_counts(estimate, polytope)


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
def test_relaxation_is_biased_and_its_limit_is_hard(polytope: Polytope) -> None:
    expected, by_scores, by_theta, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    estimate, score_grads, theta_grads = draws(gumbel(polytope, 1.0), polytope)
    assert errors(estimate.value, expected) > 8
    assert errors(score_grads, by_scores).max() > 8
    assert errors(theta_grads, by_theta).max() > 8
    assert torch.equal(estimate.surrogate.detach(), estimate.value)
    check_counts(estimate, polytope)
    near, hard = (draws(gumbel(polytope, 1e-5, hard), polytope)[0].value for hard in (False, True))
    torch.testing.assert_close(near.mean(), hard.mean(), rtol=0, atol=1e-3)
    assert (near - hard).abs().median() < 1e-9


def test_forbidden_scores_keep_gumbel_finite() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    for polytope in (Simplex(3), BernoulliCube(3)):
        for straight_through in (False, True):
            estimator = GumbelSoftmax(polytope, ConstantTemperature(0.5), straight_through)
            estimate = estimator(scores, lambda atoms, row: atoms[:, 1] * 10 + atoms[:, 0] ** 2)
            (gradient,) = torch.autograd.grad((estimate.surrogate + estimate.entropy).sum(), scores)
            assert gradient.isfinite().all()
            assert estimate.value <= 1


def test_annealing_follows_the_published_schedule() -> None:
    schedule = AnnealedTemperature(rate=0.1, every=3, minimum=0.5)
    found = [float(schedule()) for _ in range(10)]
    expected = [max(0.5, math.exp(-0.1 * (step - step % 3))) for step in range(10)]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[-1] == 0.5
    published = AnnealedTemperature()
    published.step += 69_000
    assert float(published()) == pytest.approx(math.exp(-0.69))
    published.step.fill_(70_000)
    assert float(published()) == 0.5


def test_steps_that_a_checkpoint_repeats_are_counted_once() -> None:
    schedule = AnnealedTemperature(rate=0.1, every=1)
    factor = torch.ones((), requires_grad=True)
    for step in range(3):
        value = checkpoint(lambda: factor * schedule(), use_reentrant=False)
        assert isinstance(value, Tensor)
        (gradient,) = torch.autograd.grad(value, factor)
        assert float(value.detach()) == pytest.approx(math.exp(-0.1 * step))
        assert float(gradient) == float(value.detach())
        assert schedule.step == step + 1


def test_temperature_survives_a_state_dict_and_evaluation() -> None:
    polytope = BernoulliCube(4)
    trained, restored = (GumbelSoftmax(polytope, AnnealedTemperature(0.05, 2, 0.1)) for _ in range(2))
    first = trained.temperature()
    for _ in range(6):
        trained.temperature()
    assert float(first) == 1  # what was handed out does not change
    assert set(trained.state_dict()) == {"temperature.step", "temperature.temperature"}
    restored.load_state_dict(trained.state_dict())
    assert float(restored.eval().temperature()) == pytest.approx(math.exp(-0.3))
    assert int(restored.temperature.step) == 7  # evaluation does not count
    restored.train()
    assert [float(restored.temperature()) for _ in range(4)] == [float(trained.temperature()) for _ in range(4)]


def test_bad_temperatures_and_polytopes_are_refused() -> None:
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="ConstantTemperature: value must be above 0 and finite"):
            ConstantTemperature(value)
    with pytest.raises(ValueError, match="minimum must be above 0"):
        AnnealedTemperature(minimum=0)
    with pytest.raises(ValueError, match="minimum must be at most 1"):
        AnnealedTemperature(minimum=2)
    with pytest.raises(ValueError, match="rate must be at least 0"):
        AnnealedTemperature(rate=-1)
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        AnnealedTemperature(every=0)
    with pytest.raises(ValueError, match=r"relaxes Simplex and BernoulliCube, not Budget"):
        GumbelSoftmax(Budget(4, 2), ConstantTemperature(1))


def quadratic_cost(theta: Tensor) -> Cost:
    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        return 3 + (atoms * theta[row]).sum(-1).square() - atoms[:, 0] * theta[row, -1]

    return cost


def cubic_cost(theta: Tensor) -> Cost:
    return lambda atoms, row: (atoms * theta[row]).sum(-1) ** 3


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
def test_reinmax_is_exact_in_expectation_for_quadratic_costs(polytope: Polytope) -> None:
    _, by_scores, by_theta, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope), cubic_cost)
    _, score_grads, theta_grads = draws(ReinMax(polytope), polytope, cubic_cost)
    assert errors(theta_grads, by_theta).max() < 4
    assert errors(score_grads, by_scores).max() > 8  # biased, as it says
    check_unbiased(ReinMax(polytope), polytope, quadratic_cost)
    _, by_scores, _, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope), quadratic_cost)
    assert errors(draws(gumbel(polytope, 1.0, True), polytope, quadratic_cost)[1], by_scores).max() > 8


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
def test_reinmax_gradient_is_the_published_algorithm(polytope: Polytope) -> None:
    """Algorithm 2 with its stopped gradients, on logits [9, D] or, for bits, on pairs of logits [9, D, 2]."""
    temperature = 1.25
    theta = theta_of(polytope).repeat(9, 1)
    scores = scores_of(polytope).repeat(9, 1).requires_grad_()
    seen: list[Tensor] = []

    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        seen.append(atoms.detach())
        return cost_of(theta)(atoms, row)

    torch.manual_seed(3)
    estimate = ReinMax(polytope, ConstantTemperature(temperature))(scores, cost)
    (found,) = torch.autograd.grad(estimate.surrogate.sum(), scores)
    bits = isinstance(polytope, BernoulliCube)
    logits = torch.stack([scores, torch.zeros_like(scores)], -1) if bits else scores
    drawn = torch.stack([seen[0], 1 - seen[0]], -1) if bits else seen[0]
    probs = logits.softmax(-1)
    middle = (drawn + (logits / temperature).softmax(-1)) / 2
    middle = ((middle.log() - logits).detach() + logits).softmax(-1)
    passed = 2 * middle - probs / 2
    output = passed - passed.detach() + drawn
    costs = cost_of(theta)(output[..., 0] if bits else output, torch.arange(9))
    (expected,) = torch.autograd.grad(costs.sum(), scores)
    torch.testing.assert_close(estimate.value, costs.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def linear_cost(theta: Tensor) -> Cost:
    return lambda atoms, row: (atoms * theta[row]).sum(-1)


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
@pytest.mark.parametrize("step", [0.25, 4.0])
def test_imle_is_a_finite_difference_for_linear_costs(polytope: Polytope, step: float) -> None:
    scores, theta, structures = scores_of(polytope), theta_of(polytope), structures_of(polytope)

    def mean(scores: Tensor) -> Tensor:
        return (structures @ scores).softmax(-1) @ structures

    expected, by_scores, by_theta, _ = enumerated(polytope, scores, theta, linear_cost)
    estimate, score_grads, theta_grads = draws(IMLE(polytope, step), polytope, linear_cost)
    assert errors(score_grads, (mean(scores) - mean(scores - step * theta)) / step).max() < 4
    assert errors(theta_grads, by_theta).max() < 4
    assert errors(estimate.value, expected) < 4
    if step > 1:
        assert errors(score_grads, by_scores).max() > 8  # biased, as it says
    check_counts(estimate, polytope)


def test_imle_step_means_the_same_for_every_batch_and_reduction() -> None:
    """Where the cost's gradient comes from the backward pass, a mean over the batch divides lambda by the batch's size."""
    polytope = BernoulliCube(4)
    scores = scores_of(polytope).repeat(50, 1).requires_grad_()
    found = []
    for reduce in (torch.sum, torch.mean):
        torch.manual_seed(0)
        estimate = IMLE(polytope, 0.5)(scores, cost_of(theta_of(polytope).repeat(50, 1)))
        found.append(torch.autograd.grad(reduce(estimate.surrogate), scores)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], 50 * found[1])


def test_imle_goes_through_a_decoder_in_pieces() -> None:
    images = torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = []
    for max_logits in (None, 1):  # in pieces the logits are computed again for each of the two derivatives
        torch.manual_seed(0)
        encoder, decoder = Encoder(6, 5, 4, hidden=8), Decoder(4, 6, 5, hidden=8, rank=2)
        vae = BitVectorVAE(encoder, decoder, IMLE(BernoulliCube(4), 1.0), max_logits=max_logits).double()
        loss = vae(images).loss
        found.append(torch.autograd.grad(loss, list(vae.parameters())))
        with torch.no_grad():
            assert vae(images).loss.isfinite()
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_costs_that_look_a_structure_up_are_noticed() -> None:
    """They have parameters, and no derivative in the structure: no gradient would reach the scores."""
    table, scores = torch.nn.Embedding(3, 1), torch.randn(2, 3, requires_grad=True)

    def looked_up(structures: Tensor, row: Tensor) -> Tensor:
        return table(structures.argmax(-1))[:, 0]

    def multiplied(structures: Tensor, row: Tensor) -> Tensor:
        return (structures @ table.weight)[:, 0]

    with pytest.raises(ValueError, match="IMLE takes the cost's derivative in the structure, and this cost has none"):
        IMLE(Simplex(3), 1.0)(scores, looked_up)
    for estimator in (ReinMax(Simplex(3)), GumbelSoftmax(Simplex(3), ConstantTemperature(1.0))):
        with pytest.warns(RuntimeWarning, match=rf"{type(estimator).__name__} takes the cost's derivative .* get no gradient"):
            estimator(scores, looked_up)
        estimator(scores, looked_up)  # once
    for estimator in (ReinMax(Simplex(3)), GumbelSoftmax(Simplex(3), ConstantTemperature(1.0))):
        with torch.no_grad():
            estimator(scores, looked_up)
        estimator(scores, lambda structures, row: checkpoint(multiplied, structures, row, use_reentrant=False))
