"""Dense marginalisation against enumeration, and what all estimators have in common."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from estimator_cases import ENUMERABLE, Bare, cost_of, enumerated, scores_of, structures_of, theta_of
from sparsemarg.layers import LPSparseMAP, SparseMAP
from sparsemarg.layers.functional import sparsemap
from sparsemarg.models.estimators import (
    IMLE,
    AnnealedTemperature,
    ConstantTemperature,
    DenseMarginalize,
    DisARM,
    DrawnCost,
    Estimator,
    GumbelSoftmax,
    Learned,
    LeaveOneOut,
    Marginalize,
    ReinMax,
    RunningMean,
    ScoreFunction,
    SelfCritic,
    SumAndSample,
)
from sparsemarg.oracles import BernoulliCube, Factor, FactorGraph, Polytope, Simplex
from torch import Tensor


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


@pytest.mark.parametrize("name", [*EVERY, "sparse"])
def test_costs_that_work_in_place_change_nothing_else(name: str) -> None:
    """As a decoder does that begins with `nn.Dropout(inplace=True)`, or puts bits in -1 and 1."""
    weights = torch.arange(1.0, 4)

    def apart(atoms: Tensor, row: Tensor) -> Tensor:
        return ((2 * atoms - 1) * weights).sum(-1)

    def in_place(atoms: Tensor, row: Tensor) -> Tensor:
        return atoms.mul_(2).sub_(1).mul_(weights).sum(-1)

    found = []
    for cost in (apart, in_place):
        torch.manual_seed(0)
        estimator = Marginalize(SparseMAP(BernoulliCube(3))) if name == "sparse" else EVERY[name]()
        scores = torch.linspace(-0.5, 1.2, 12).reshape(4, 3).requires_grad_()
        estimate = estimator(scores, cost, context=torch.zeros(4, 2))
        (slopes,) = torch.autograd.grad((estimate.surrogate - estimate.entropy).sum(), scores)
        found.append((estimate.value, estimate.surrogate.detach(), estimate.mode, slopes))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("max_atoms", [None, 2])
def test_functions_that_work_in_place_leave_the_distribution_alone(max_atoms: int | None) -> None:
    distribution = sparsemap(torch.full((2, 4), 0.5, requires_grad=True), BernoulliCube(4))
    atoms, mean = distribution.atoms.clone(), distribution.mean()
    value = distribution.expectation(lambda atoms, row: atoms.mul_(2).sub_(1).sum(-1), max_atoms=max_atoms)
    torch.testing.assert_close(value, (2 * mean - 1).sum(-1))
    assert torch.equal(distribution.atoms, atoms)

    def too_large(atoms: Tensor, row: Tensor) -> Tensor:
        atoms.mul_(2)
        if len(atoms) > 1:
            raise torch.OutOfMemoryError("no room")
        return atoms.sum(-1)

    with pytest.raises(torch.OutOfMemoryError, match="max_atoms=1 went through"):
        distribution.expectation(too_large, max_atoms=max_atoms)
    assert torch.equal(distribution.atoms, atoms)


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
    with pytest.raises(ValueError, match="DenseMarginalize: max_atoms must be at least 1, not 0"):
        DenseMarginalize(Simplex(3), max_atoms=0)
    with pytest.raises(ValueError, match=r"draws from the others, but Simplex\(dim=1\) has one alone"):
        SumAndSample(Simplex(1))
    with pytest.raises(ValueError, match="ConstantTemperature: value must be above 0 and finite, not 'a'"):
        ConstantTemperature("a")  # pyright: ignore[reportArgumentType]
    assert ConstantTemperature(torch.tensor(0.5))() == 0.5  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_estimators_take_one_row_an_example(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"estimators take scores \[B, 3\], one row an example, not \["):
        EVERY[name]()(torch.zeros(shape), lambda atoms, row: atoms.sum(-1), context=torch.zeros(2, 2))


@pytest.mark.parametrize("name", [*EVERY, "sparse"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda costs: costs[:, None], r"a float tensor \[\d+\], not \[\d+, 1\] torch.float32"),
        (lambda costs: costs.sum(), r"not \[\] torch.float32"),
        (lambda costs: costs.detach().long(), r"not \[\d+\] torch.int64"),
        (lambda costs: None, "not NoneType"),
    ],
)
def test_a_cost_is_one_number_a_pair(name: str, spoil: Callable[[Tensor], Tensor], message: str) -> None:
    estimator = Marginalize(SparseMAP(BernoulliCube(3))) if name == "sparse" else EVERY[name]()
    scores = torch.randn(5, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        estimator(scores, lambda atoms, row: spoil(atoms.sum(-1)), context=torch.zeros(5, 2))


def test_random_costs_are_for_those_who_take_them() -> None:
    def drawn(atoms: Tensor, row: Tensor) -> Any:
        costs = atoms.sum(-1)
        return DrawnCost(costs, costs, costs)

    for name, make in EVERY.items():
        estimator, scores = make(), torch.zeros(5, 3, requires_grad=True)
        if estimator.takes_drawn_costs:
            estimator(scores, drawn, context=torch.zeros(5, 2))
        else:
            with pytest.raises(ValueError, match="not DrawnCost; a random cost is for estimators with"):
                EVERY[name]()(scores, drawn)


def test_what_estimators_are_built_of() -> None:
    with pytest.raises(ValueError, match=r"GumbelSoftmax needs a Temperature, e\.g\. ConstantTemperature\(0\.5\), not 0\.5"):
        GumbelSoftmax(Simplex(3), 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"ReinMax needs a Temperature, .* not 1\.2"):
        ReinMax(Simplex(3), 1.2)  # pyright: ignore[reportArgumentType]
    for baseline in (None, RunningMean, "mean"):
        with pytest.raises(ValueError, match="ScoreFunction needs a Baseline"):
            ScoreFunction(Simplex(3), baseline)  # pyright: ignore[reportArgumentType]
    for build in (DenseMarginalize, SumAndSample, SparseMAP):
        with pytest.raises(ValueError, match=r"with `dim` and `maximize`, .* not the class BernoulliCube"):
            build(BernoulliCube)  # pyright: ignore[reportArgumentType]
    for layer in (BernoulliCube(3), SparseMAP):
        with pytest.raises(ValueError, match="Marginalize needs a layer"):
            Marginalize(layer)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="LPSparseMAP, a relaxation, has a mean only"):
        Marginalize(LPSparseMAP(FactorGraph(3, [Factor(BernoulliCube(3), range(3))])))
    with pytest.raises(ValueError, match="step must be above 0 and finite, not 'a'"):
        IMLE(Simplex(3), "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="IMLE takes the cost's derivative in the structure, and this cost has none"):
        IMLE(Simplex(3), 1)(torch.zeros(2, 3, requires_grad=True), lambda atoms, row: (atoms > 0).sum(-1).float())


def test_a_polytope_need_not_be_of_our_class() -> None:
    class Alike:
        dim, maximize, vertices, gibbs = 3, Simplex(3).maximize, Simplex(3).vertices, Simplex(3).gibbs

    for estimator in (ScoreFunction(Alike(), RunningMean()), SumAndSample(Alike()), DenseMarginalize(Alike())):  # pyright: ignore
        assert estimator(torch.eye(3), lambda atoms, row: atoms.sum(-1)).mode.equal(torch.eye(3))


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
