"""LP-SparseMAP. Truth is cvxpy's QP over the local polytope, by each factor's vertices, and exact oracles where it is tight."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cvxpy
import numpy as np
import pytest
import torch
from factor_graphs import (
    GRAPHS,
    chain_with_budget,
    check_derivative,
    joined,
    matching,
    permutations,
    problem,
    row_of,
    solved,
    tree_with_budget,
)
from sparsemarg.layers import LPSparseMAP
from sparsemarg.layers.functional import lp_sparsemap, sparsemap
from sparsemarg.layers.solvers import ADMM, ActiveSet
from sparsemarg.oracles import (
    BernoulliCube,
    Factor,
    FactorGraph,
    LinearChain,
    Parts,
    Polytope,
    Simplex,
    SupportsVertices,
    supports,
)
from torch import Tensor


def by_cvxpy(graph: FactorGraph, scores: Tensor, additional: Sequence[Tensor | None]) -> np.ndarray:
    """mu of one row."""
    mean = cvxpy.Variable(graph.variables)
    gain, constraints = scores.numpy() @ mean, []
    for factor, extra in zip(graph.factors, additional, strict=True):
        assert supports(factor.polytope, SupportsVertices)
        parts = Parts.of(factor.polytope)
        table = factor.polytope.vertices()
        shared = table if parts is None else table[:, parts.regularized]
        weights = cvxpy.Variable(len(table))
        constraints += [weights >= 0, cvxpy.sum(weights) == 1, shared.numpy().T @ weights == mean[list(factor.variables)]]
        if extra is not None and parts is not None:
            gain += (table[:, parts.rest] @ extra).numpy() @ weights
    programme = cvxpy.Problem(cvxpy.Maximize(gain - cvxpy.sum_squares(mean) / 2), constraints)
    programme.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return np.asarray(mean.value)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_mean_is_the_local_polytope_qp(name: str, scale: float) -> None:
    graph = GRAPHS[name]
    scores, additional = problem(graph, 6, scale)
    found = lp_sparsemap(scores, graph, additional)
    assert found.stats.converged.all()
    for row in range(6):
        mean = by_cvxpy(graph, scores[row], row_of(additional, row))
        np.testing.assert_allclose(found.mean[row], mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_matching_by_rows_and_columns_is_the_birkhoff_polytope(size: int) -> None:
    """Tight: the mean and its derivative are those of SparseMAP over all permutations."""
    graph, exact = matching(size), permutations(size)
    leaf = problem(graph, 6)[0].requires_grad_()
    one, other = lp_sparsemap(leaf, graph).mean, sparsemap(leaf, exact).mean()
    torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    wanted = by_cvxpy(graph, leaf[0].detach(), [None] * len(graph.factors))
    np.testing.assert_allclose(one[0].detach(), wanted, atol=1e-6, rtol=0)
    weights = torch.randn(size * size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((mean @ weights).sin().sum(), leaf, retain_graph=True)[0] for mean in (one, other)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_a_tree_of_factors_is_tight() -> None:
    """A chain as one polytope, and as a factor for each transition: simplices are shared by pairs of positions."""
    chain = LinearChain(4, 2, regularize_transitions=False)
    two = LinearChain(2, 2, regularize_transitions=False)
    graph = FactorGraph(8, [Factor(two, range(2 * t, 2 * t + 4)) for t in range(3)])
    assert len(graph.groups) == 1
    scores, additional = problem(graph, 8, 1.0)
    pairs = torch.stack([extra for extra in additional if extra is not None], 1)
    whole = sparsemap(torch.cat([scores, pairs.flatten(1)], -1), chain)
    found = lp_sparsemap(scores, graph, additional)
    torch.testing.assert_close(found.mean, whole.mean()[:, :8], atol=1e-7, rtol=0)


def test_frustration_is_a_relaxation() -> None:
    """Three bits that all want to differ: the local polytope allows 1/2 each and no pair equal, structures do not."""
    graph = GRAPHS["triangle"]
    scores = torch.full((3,), 2.0, dtype=torch.float64)
    found = lp_sparsemap(scores, graph, [torch.tensor([-4.0], dtype=torch.float64)] * 3)
    torch.testing.assert_close(found.mean, torch.full((3,), 0.5, dtype=torch.float64), atol=1e-7, rtol=0)
    for place in range(3):
        atoms = found.factor(place).atoms
        assert not (atoms[:, 2] == 1).any()


@pytest.mark.parametrize("graph", [chain_with_budget(), tree_with_budget()], ids=["chain", "tree"])
def test_constraints_hold(graph: FactorGraph) -> None:
    """With a budget as a factor; the local polytope by cvxpy."""
    scores, additional = problem(graph, 2, 1.0, seed=3)
    found = lp_sparsemap(scores + 1, graph, additional)
    assert found.stats.converged.all()
    for row in range(2):
        wanted = by_cvxpy(graph, scores[row] + 1, row_of(additional, row))
        np.testing.assert_allclose(found.mean[row], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients(name: str) -> None:
    """Of the mean, in all scores, at random scores (at a kink differences are of two pieces: no such row is here)."""
    graph = GRAPHS[name]
    check_derivative(lambda x: solved(graph, x).mean, joined(graph, *problem(graph, 3, 0.7, seed=5)))


def test_second_derivatives() -> None:
    """The mean is piecewise linear: those of a function of it come from the function alone."""
    graph = matching(3)
    leaf = problem(graph, 2)[0].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: solved(graph, x).mean.sin(), leaf)
    pairs = GRAPHS["triangle"]
    leaf = joined(pairs, *problem(pairs, 1, 0.7, seed=5)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: solved(pairs, x).mean.square(), leaf)


def test_gradient_by_cvxpylayers() -> None:
    layers = pytest.importorskip("cvxpylayers.torch")
    graph, size = GRAPHS["matching"], 4
    target, mean = cvxpy.Parameter(size * size), cvxpy.Variable(size * size)
    square = cvxpy.reshape(mean, (size, size), order="C")
    constraints = [mean >= 0, cvxpy.sum(square, axis=0) == 1, cvxpy.sum(square, axis=1) == 1]
    programme = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(mean - target)), constraints)
    layer = layers.CvxpyLayer(programme, parameters=[target], variables=[mean])
    leaf = problem(graph, 4)[0].requires_grad_()
    weights = torch.randn(size * size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (wanted,) = layer(leaf, solver_args={"eps": 1e-9, "max_iters": 20000, "mode": "dense"})
        (expected,) = torch.autograd.grad((wanted @ weights).sum(), leaf)
    found = lp_sparsemap(leaf, graph).mean
    (gradient,) = torch.autograd.grad((found @ weights).sum(), leaf)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)


@dataclass(frozen=True, slots=True)
class InSlots(Polytope):
    dim: int
    on: int

    def maximize(self, scores: Tensor) -> Tensor:
        found = torch.zeros_like(scores)
        found[:, self.on] = 1
        return found


def test_polytopes_that_differ_in_slots_are_different() -> None:
    graph = FactorGraph(6, [Factor(InSlots(3, 1), [0, 1, 2]), Factor(InSlots(3, 2), [3, 4, 5])])
    assert lp_sparsemap(torch.zeros(6), graph).mean.tolist() == [0, 1, 0, 0, 0, 1]


def test_solvers_of_something_else_are_refused() -> None:
    graph, scores = FactorGraph(4, [Factor(Simplex(2), [0, 1]), Factor(Simplex(2), [2, 3])]), torch.zeros(2, 4)
    for wrong in (ActiveSet(), ADMM):
        with pytest.raises(ValueError, match="solver must be an instance of ADMM"):
            lp_sparsemap(scores, graph, solver=wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="solver must be an instance of ADMM"):
            LPSparseMAP(graph, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="solver must be an instance of a solver"):
        ADMM(solver=ActiveSet)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="solver must be an instance of a solver"):
        sparsemap(scores, Simplex(4), solver=ADMM())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "variables", [range(144), range(3, 40, 4), [0, 3, 6], [*range(11), 12], range(20, 0, -1), [5]], ids=repr
)
def test_a_factor_is_written_as_code(variables: Sequence[int]) -> None:
    factor = Factor(BernoulliCube(len(variables)), variables)
    again = eval(repr(factor), {"Factor": Factor, "BernoulliCube": BernoulliCube})
    assert again.variables == factor.variables == tuple(variables)
    assert len(repr(factor)) < 100
