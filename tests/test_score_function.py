"""The score function with each baseline, and DisARM, against enumeration."""

import pickle

import pytest
import torch
from estimator_cases import BASELINES, POLYTOPES, check_unbiased, cost_of, draws, scores_of, theta_of
from sparsemarg.models import BitVectorVAE, Decoder, Encoder
from sparsemarg.models.estimators import (
    DisARM,
    Learned,
    LeaveOneOut,
    RunningMean,
    ScoreFunction,
    SelfCritic,
)
from sparsemarg.oracles import BernoulliCube, Product, Simplex
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def test_running_mean_leaves_out_what_is_not_finite() -> None:
    """As where an overflow in mixed precision is skipped: one such batch would stay in the mean for good."""
    estimator, scores = ScoreFunction(Simplex(3), RunningMean()), torch.zeros(2, 3, requires_grad=True)
    for bad in (torch.inf, torch.nan, 4.0):
        estimator(scores, lambda atoms, row, bad=bad: torch.full((2,), bad))
    assert int(estimator.baseline.count) == 1
    assert float(estimator.baseline.mean) == 4
    (gradient,) = torch.autograd.grad(estimator(scores, lambda atoms, row: atoms[:, 0]).surrogate.sum(), scores)
    assert gradient.isfinite().all()


def test_running_mean_of_a_batch_that_is_not_finite_and_recomputed() -> None:
    """It was not counted, and so there is nothing to take out again."""
    baseline, used = RunningMean(), []
    baseline(torch.full((1, 2), 2.0), torch.zeros(0, 2), None)

    def piece(costs: Tensor) -> Tensor:
        used.append(float(baseline(costs, costs[:0], None).value))
        return costs.sin()

    costs = torch.tensor([[1.0, 2.0, 3.0, torch.inf]], requires_grad=True)
    checkpoint(piece, costs, use_reentrant=False)[0, :3].sum().backward()
    assert used == [2, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_mean_of_a_module_in_half_precision(dtype: torch.dtype) -> None:
    baseline = torch.nn.Sequential(RunningMean()).to(dtype)[0]
    for batch in range(2000):
        baseline(torch.full((1, 4), 100.0 if batch < 300 else 300.0, dtype=dtype), torch.zeros(0, 4), None)
    torch.testing.assert_close(baseline.mean, torch.tensor(270.0))


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


def test_learned_baseline_learns_what_a_running_mean_leaves() -> None:
    torch.manual_seed(0)
    baseline = Learned(3, hidden=4, centre=RunningMean()).double()
    costs, context = 10 + torch.rand(3, 1, 5, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    none = costs.new_zeros(0, 5)
    predicted = baseline.network(context)[:, 0]
    for number, batch in enumerate(costs):
        before = costs[:number].mean() if number else 0
        found = baseline(batch, none, context)
        torch.testing.assert_close(found.value, before + predicted.detach(), rtol=1e-6, atol=0)  # the mean is float32
        torch.testing.assert_close(found.loss, (batch[0] - before - predicted).square(), rtol=1e-6, atol=1e-12)
    with pytest.raises(ValueError, match=r"centre must be a RunningMean\(\) or None, not 3"):
        Learned(3, centre=3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("reentrant", [False, True])
def test_batches_that_a_checkpoint_repeats_are_counted_once(reentrant: bool) -> None:
    """Bit z costs 2 z, so that at score 0 the gradient is 1/2: with its own cost in the baseline it would be smaller."""
    estimator = ScoreFunction(BernoulliCube(1), RunningMean())
    plain = ScoreFunction(BernoulliCube(1), RunningMean())

    def surrogate(scores: Tensor, of: ScoreFunction = estimator) -> Tensor:
        return of(scores, lambda atoms, row: 2 * atoms[:, 0]).surrogate.sum()

    for step in range(5):
        repeated, once = (torch.zeros(3, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
        torch.manual_seed(step)
        checkpoint(surrogate, repeated, use_reentrant=reentrant).backward()  # pyright: ignore[reportOptionalMemberAccess]
        torch.manual_seed(step)
        surrogate(once, plain).backward()
        assert repeated.grad is not None
        assert once.grad is not None
        torch.testing.assert_close(repeated.grad, once.grad, rtol=1e-6, atol=1e-6)  # the mean is float32
        assert estimator.baseline.count == plain.baseline.count == step + 1
        torch.testing.assert_close(estimator.baseline.mean, plain.baseline.mean)


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


@pytest.mark.parametrize("dim", [1, 3, 5])
def test_disarm_is_unbiased(dim: int) -> None:
    polytope = BernoulliCube(dim)
    check_unbiased(DisARM(polytope), polytope)


def test_disarm_beats_two_samples_left_one_out() -> None:
    polytope = BernoulliCube(4)
    spread = [draws(e, polytope)[1].var(0).sum() for e in (DisARM(polytope), ScoreFunction(polytope, LeaveOneOut(2)))]
    assert spread[0] < spread[1]


def test_an_estimator_on_a_product_can_be_saved() -> None:
    estimator = ScoreFunction(Product(Simplex(3), BernoulliCube(4)), RunningMean())
    again = pickle.loads(pickle.dumps(estimator))
    scores = torch.randn(2, 7)
    assert torch.equal(again.distribution(scores).entropy(), estimator.distribution(scores).entropy())
