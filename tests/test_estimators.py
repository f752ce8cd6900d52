"""Estimators of an expected cost against enumeration of all structures.

Monte Carlo gradients are compared through the batch: one row of scores repeated DRAWS times gives DRAWS independent gradients,
whose mean must be within 4 standard errors of the exact one.
"""

import math
from collections.abc import Callable

import pytest
import torch
from sparsemarg.models import BitVectorVAE, Decoder, Encoder
from sparsemarg.models.estimators import (
    IMLE,
    AnnealedTemperature,
    Baseline,
    ConstantTemperature,
    Cost,
    DenseMarginalize,
    DisARM,
    Estimate,
    Estimator,
    GumbelSoftmax,
    Learned,
    LeaveOneOut,
    ReinMax,
    RunningMean,
    ScoreFunction,
    SelfCritic,
    SumAndSample,
)
from sparsemarg.models.estimators.splits import split_bits, split_listed
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, Polytope, Product, Simplex
from torch import Tensor

DRAWS = 20_000

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


def enumerated(polytope: Polytope, scores: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The exact expected cost, its gradients in scores and theta, and the entropy, of one row."""
    scores, theta = scores.clone().requires_grad_(), theta.clone().requires_grad_()
    structures = structures_of(polytope)
    log_probs = (structures @ scores).log_softmax(-1)
    costs = cost_of(theta.expand(len(structures), -1))(structures, torch.arange(len(structures)))
    expected = log_probs.exp() @ costs
    by_scores, by_theta = torch.autograd.grad(expected, [scores, theta])
    return expected.detach(), by_scores, by_theta, -(log_probs.exp() @ log_probs).detach()


def draws(estimator: Estimator, polytope: Polytope, seed: int = 0) -> tuple[Estimate, Tensor, Tensor]:
    """An estimate of DRAWS equal rows, and each row's gradients in the scores and in theta."""
    torch.manual_seed(seed)
    scores = scores_of(polytope).repeat(DRAWS, 1).requires_grad_()
    theta = theta_of(polytope).repeat(DRAWS, 1).requires_grad_()
    context = torch.linspace(0, 1, DRAWS * 3, dtype=torch.float64).reshape(DRAWS, 3)
    estimate = estimator(scores, cost_of(theta), context=context)
    by_scores, by_theta = torch.autograd.grad(estimate.surrogate.sum(), [scores, theta])
    return estimate, by_scores, by_theta


def errors(samples: Tensor, exact: Tensor) -> Tensor:
    """The distance of the mean of samples [DRAWS, ...] from the exact value, in standard errors."""
    return (samples.mean(0) - exact).abs() / (samples.std(0) / math.sqrt(len(samples)) + 1e-12)


def check_unbiased(estimator: Estimator, polytope: Polytope) -> tuple[Tensor, Tensor]:
    expected, by_scores, by_theta, entropy = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    estimate, score_grads, theta_grads = draws(estimator, polytope)
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


# Dense marginalisation


@pytest.mark.parametrize("polytope", ENUMERABLE, ids=repr)
@pytest.mark.parametrize("max_atoms", [None, 3])
def test_dense_marginalization_is_exact(polytope: Polytope, max_atoms: int | None) -> None:
    scores = torch.stack([scores_of(polytope), -scores_of(polytope)]).requires_grad_()
    theta = theta_of(polytope).repeat(2, 1).requires_grad_()
    estimate = DenseMarginalize(polytope, max_atoms)(scores, cost_of(theta))
    score_grads, theta_grads = torch.autograd.grad(estimate.surrogate.sum(), [scores, theta], retain_graph=True)
    entropy_grads = torch.autograd.grad(estimate.entropy.sum(), scores)[0]
    for i in range(2):
        row = scores[i].detach()
        expected, by_scores, by_theta, entropy = enumerated(polytope, row, theta[i].detach())
        torch.testing.assert_close(estimate.value[i], expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(score_grads[i], by_scores, rtol=0, atol=1e-10)
        torch.testing.assert_close(theta_grads[i], by_theta, rtol=0, atol=1e-10)
        torch.testing.assert_close(estimate.entropy[i].detach(), entropy, rtol=0, atol=1e-12)
        probs = (structures_of(polytope) @ row).softmax(-1)
        covariance = structures_of(polytope).T @ (torch.diag(probs) - torch.outer(probs, probs)) @ structures_of(polytope)
        torch.testing.assert_close(entropy_grads[i], -covariance @ row, rtol=0, atol=1e-10)  # H = log Z - <mu, t>
    structures = structures_of(polytope)
    assert estimate.evaluations == 2 * len(structures)
    assert estimate.support.tolist() == [len(structures)] * 2
    torch.testing.assert_close(estimate.mode, structures[(scores.detach() @ structures.T).argmax(-1)])


def test_dense_marginalization_leaves_out_forbidden_structures() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    estimate = DenseMarginalize(BernoulliCube(3))(scores, lambda atoms, row: atoms.sum(-1))
    assert estimate.support.tolist() == [4]
    torch.testing.assert_close(estimate.value, scores.detach().sigmoid().sum(-1))
    (gradient,) = torch.autograd.grad((estimate.surrogate + estimate.entropy).sum(), scores)
    assert gradient.isfinite().all()


# Score function


BASELINES: dict[str, Callable[[], Baseline]] = {
    "running": RunningMean,
    "critic": SelfCritic,
    "learned": lambda: Learned(3, hidden=4).double(),
    "others": lambda: LeaveOneOut(3),
}
EVALUATIONS = {"running": 1, "critic": 2, "learned": 1, "others": 3}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", POLYTOPES)
def test_score_function_is_unbiased(name: str, baseline: str) -> None:
    polytope = POLYTOPES[name]
    torch.manual_seed(1)
    estimator = ScoreFunction(polytope, BASELINES[baseline]()).double()
    draws(estimator, polytope, seed=2)  # a running mean that is not 0
    check_unbiased(estimator, polytope)


@pytest.mark.parametrize("baseline", BASELINES)
def test_score_function_counts_what_it_evaluates(baseline: str) -> None:
    polytope = BernoulliCube(4)
    estimator = ScoreFunction(polytope, BASELINES[baseline]()).double()
    calls: list[int] = []
    cost = cost_of(theta_of(polytope).repeat(6, 1))

    def counted(atoms: Tensor, row: Tensor) -> Tensor:
        calls.append(len(atoms))
        return cost(atoms, row)

    torch.manual_seed(0)
    estimate = estimator(scores_of(polytope).repeat(6, 1), counted, context=torch.zeros(6, 3))
    assert sum(calls) == estimate.evaluations == 6 * EVALUATIONS[baseline]
    assert estimate.support.tolist() == [EVALUATIONS[baseline]] * 6
    assert estimator.dim == 4


def test_baselines_reduce_the_variance() -> None:
    polytope = BernoulliCube(4)
    spread: dict[str, float] = {}
    first = ScoreFunction(polytope, RunningMean())
    spread["none"] = draws(first, polytope)[1].var(0).sum().item()  # at first use the running mean is 0
    for name in ("running", "critic", "others"):
        estimator = ScoreFunction(polytope, BASELINES[name]())
        draws(estimator, polytope, seed=2)
        spread[name] = draws(estimator, polytope)[1].var(0).sum().item()
    assert spread["others"] < spread["critic"] < spread["none"]
    assert spread["running"] < spread["none"]


def test_critic_has_no_gradient() -> None:
    """The published code lets the critic's cost into the gradient of the cost's parameters, weighted by -log q(z)."""
    polytope = Simplex(3)
    theta = theta_of(polytope).repeat(4, 1).requires_grad_()
    with_grad: list[bool] = []

    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        costs = cost_of(theta)(atoms, row)
        with_grad.append(costs.requires_grad)
        return costs

    ScoreFunction(polytope, SelfCritic())(torch.zeros(4, 3, dtype=torch.float64), cost)
    assert with_grad == [True, False]


def test_running_mean_is_cumulative_and_used_before_it_is_updated() -> None:
    baseline = RunningMean()
    batches = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 7.0]]), torch.tensor([[0.0, 2.0]])]
    used = [float(baseline(batch, batch[:0], None).value) for batch in batches]
    assert used == [0, 2, 4]  # the mean of nothing, of 2, of 2 and 6
    baseline.eval()
    assert float(baseline(torch.full((1, 2), 100.0), batches[0][:0], None).value) == 3  # of 2, 6 and 1
    assert int(baseline.count) == 3


def test_running_mean_survives_a_state_dict() -> None:
    polytope = BernoulliCube(4)
    trained = ScoreFunction(polytope, RunningMean())
    draws(trained, polytope)
    restored = ScoreFunction(polytope, RunningMean())
    restored.load_state_dict(trained.state_dict())
    assert set(trained.state_dict()) == {"baseline.mean", "baseline.count"}
    for first, second in zip(draws(trained, polytope)[1:], draws(restored, polytope)[1:], strict=True):
        assert torch.equal(first, second)


def test_learned_baseline_is_trained_by_squared_error_alone() -> None:
    torch.manual_seed(0)
    baseline = Learned(3, hidden=4).double()
    estimator = ScoreFunction(BernoulliCube(4), baseline)
    scores = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    context = torch.rand(5, 3, dtype=torch.float64)
    estimate = estimator(scores, cost_of(theta_of(BernoulliCube(4)).repeat(5, 1)), context=context)
    parameters = list(baseline.parameters())
    found = torch.autograd.grad(estimate.surrogate.mean(), parameters)
    loss = (estimate.value - baseline.network(context).squeeze(-1)).square().mean()
    for ours, theirs in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_learned_baseline_has_the_published_layers() -> None:
    sizes = [tuple(p.shape) for p in Learned(784).parameters() if p.ndim == 2]
    assert sizes == [(512, 784), (512, 512), (512, 512), (1, 512)]
    late = Learned(hidden=4)
    late.build(3)
    late.build(99)  # has its network
    assert late.in_features == 3


def test_model_builds_the_learned_baseline_for_its_images() -> None:
    torch.manual_seed(0)
    estimator = ScoreFunction(BernoulliCube(4), Learned(hidden=8))
    vae = BitVectorVAE(Encoder(6, 5, 4, hidden=8), Decoder(4, 6, 5, hidden=8, rank=2), estimator)
    seen: list[Tensor] = []
    estimator.baseline.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2]))
    images = torch.randint(5, (7, 6), dtype=torch.uint8)
    vae(images).loss.backward()
    assert torch.equal(seen[0], images / 4)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vae.parameters())


# Gumbel-softmax


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


RELAXABLE = [Simplex(5), BernoulliCube(4)]


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


# Sum and sample


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


# DisARM and ReinMax


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_disarm_is_unbiased(dim: int) -> None:
    polytope = BernoulliCube(dim)
    check_unbiased(DisARM(polytope), polytope)


def test_disarm_beats_two_samples_left_one_out() -> None:
    polytope = BernoulliCube(4)
    spread = [draws(e, polytope)[1].var(0).sum() for e in (DisARM(polytope), ScoreFunction(polytope, LeaveOneOut(2)))]
    assert spread[0] < spread[1]


def quadratic_cost(theta: Tensor) -> Cost:
    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        return 3 + (atoms * theta[row]).sum(-1).square() - atoms[:, 0] * theta[row, -1]

    return cost


def cubic_cost(theta: Tensor) -> Cost:
    return lambda atoms, row: (atoms * theta[row]).sum(-1) ** 3


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
def test_reinmax_is_exact_in_expectation_for_quadratic_costs(polytope: Polytope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "cost_of", cubic_cost)
    _, by_scores, by_theta, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    _, score_grads, theta_grads = draws(ReinMax(polytope), polytope)
    assert errors(theta_grads, by_theta).max() < 4
    assert errors(score_grads, by_scores).max() > 8  # biased, as it says
    monkeypatch.setitem(globals(), "cost_of", quadratic_cost)
    check_unbiased(ReinMax(polytope), polytope)
    _, by_scores, _, _ = enumerated(polytope, scores_of(polytope), theta_of(polytope))
    assert errors(draws(gumbel(polytope, 1.0, True), polytope)[1], by_scores).max() > 8


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


# I-MLE


@pytest.mark.parametrize("polytope", RELAXABLE, ids=repr)
@pytest.mark.parametrize("step", [0.25, 4.0])
def test_imle_is_a_finite_difference_for_linear_costs(polytope: Polytope, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "cost_of", lambda theta: lambda atoms, row: (atoms * theta[row]).sum(-1))
    scores, theta, structures = scores_of(polytope), theta_of(polytope), structures_of(polytope)

    def mean(scores: Tensor) -> Tensor:
        return (structures @ scores).softmax(-1) @ structures

    expected, by_scores, by_theta, _ = enumerated(polytope, scores, theta)
    estimate, score_grads, theta_grads = draws(IMLE(polytope, step), polytope)
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


# All estimators


EVERY: dict[str, Callable[[], Estimator]] = {
    "dense": lambda: DenseMarginalize(BernoulliCube(3)),
    "running": lambda: ScoreFunction(BernoulliCube(3), RunningMean()),
    "critic": lambda: ScoreFunction(BernoulliCube(3), SelfCritic()),
    "learned": lambda: ScoreFunction(BernoulliCube(3), Learned(2, hidden=4)),
    "others": lambda: ScoreFunction(BernoulliCube(3), LeaveOneOut(2)),
    "sum": lambda: SumAndSample(BernoulliCube(3), 2),
    "gumbel": lambda: GumbelSoftmax(BernoulliCube(3), AnnealedTemperature()),
    "straight": lambda: GumbelSoftmax(Simplex(3), AnnealedTemperature(), straight_through=True),
    "disarm": lambda: DisARM(BernoulliCube(3)),
    "reinmax": lambda: ReinMax(Simplex(3)),
    "imle": lambda: IMLE(BernoulliCube(3), 1.0),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 5])
def test_dtype_and_batch_are_kept(name: str, dtype: torch.dtype, batch: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(batch, 3, dtype=dtype, requires_grad=True)
    weights = torch.rand(batch, 3, dtype=dtype, requires_grad=True)
    estimate = EVERY[name]()(scores, lambda atoms, row: (atoms * weights[row]).sum(-1) ** 2, context=torch.zeros(batch, 2))
    for tensor in (estimate.value, estimate.surrogate, estimate.entropy, estimate.mode):
        assert tensor.dtype == dtype
    assert [len(t) for t in (estimate.value, estimate.surrogate, estimate.entropy, estimate.support)] == [batch] * 4
    assert estimate.mode.shape == (batch, 3)
    gradients = torch.autograd.grad((estimate.surrogate - estimate.entropy).sum(), [scores, weights])
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients)


@pytest.mark.parametrize("name", EVERY)
def test_large_and_forbidden_scores_stay_finite(name: str) -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[200.0, -torch.inf, -1.0], [-300.0, -torch.inf, 300.0], [0.0, -torch.inf, -0.0]], requires_grad=True)
    estimate = EVERY[name]()(scores, lambda atoms, row: (atoms * 2).sum(-1) ** 2, context=torch.zeros(3, 2))
    (gradient,) = torch.autograd.grad((estimate.surrogate - estimate.entropy).sum(), scores)
    assert gradient.isfinite().all()
    assert estimate.value.isfinite().all()
    assert (estimate.mode[:, 1] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_leaves_the_state_alone(name: str) -> None:
    torch.manual_seed(0)
    estimator = EVERY[name]()
    before = {key: value.clone() for key, value in estimator.state_dict().items()}
    estimator.eval()(torch.zeros(2, 3), lambda atoms, row: 7 + atoms.sum(-1), context=torch.zeros(2, 2))
    assert all(torch.equal(value, before[key]) for key, value in estimator.state_dict().items())


# Bad input


class Bare(Polytope):
    """A polytope with nothing but `maximize`."""

    dim = 3

    def maximize(self, scores: Tensor) -> Tensor:
        return (scores > 0).to(scores)


def test_missing_capabilities_are_named() -> None:
    with pytest.raises(ValueError, match=r"ScoreFunction needs Bare\.gibbs"):
        ScoreFunction(Bare(), RunningMean())
    with pytest.raises(ValueError, match=r"DenseMarginalize needs Bare\.vertices"):
        DenseMarginalize(Bare())
    with pytest.raises(ValueError, match=r"DisARM is for independent bits, BernoulliCube, not Simplex"):
        DisARM(Simplex(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"ReinMax is for Simplex and BernoulliCube, not Bare"):
        ReinMax(Bare())
    with pytest.raises(ValueError, match=r"IMLE is for Simplex and BernoulliCube, not Bare"):
        IMLE(Bare(), 1)
    with pytest.raises(ValueError, match=r"IMLE: step must be above 0 and finite, not 0"):
        IMLE(Simplex(3), 0)
    with pytest.raises(ValueError, match="too many to enumerate"):
        DenseMarginalize(BernoulliCube(32))


def test_bad_baselines_and_scores_are_refused() -> None:
    def cost(atoms: Tensor, row: Tensor) -> Tensor:
        return atoms.sum(-1)

    with pytest.raises(ValueError, match="LeaveOneOut: samples must be at least 2, not 1"):
        LeaveOneOut(1)
    estimator = ScoreFunction(BernoulliCube(3), Learned(2))
    with pytest.raises(ValueError, match="needs the context"):
        estimator(torch.zeros(2, 3), cost)
    with pytest.raises(ValueError, match="needs 2 context entries for each of 2 examples"):
        estimator(torch.zeros(2, 3), cost, context=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="no network yet"):
        ScoreFunction(BernoulliCube(3), Learned())(torch.zeros(2, 3), cost, context=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="scores has 4 columns"):
        estimator(torch.zeros(2, 4), cost)
    with pytest.raises(ValueError, match="scores has 4 columns"):
        DenseMarginalize(BernoulliCube(3))(torch.zeros(2, 4), cost)
