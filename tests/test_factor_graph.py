"""LP-SparseMAP. Truth is cvxpy's QP over the local polytope, by each factor's vertices, and exact oracles where it is tight."""

import itertools
import re
import warnings
from collections.abc import Callable, Sequence

import cvxpy
import numpy as np
import pytest
import torch
from sparsemarg.layers import ConvergenceWarning, LPSparseMAP, LPSparseMAPResult
from sparsemarg.layers.functional import lp_sparsemap, sparsemap
from sparsemarg.layers.solvers import ADMM, ActiveSet
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
    Explicit,
    Factor,
    FactorGraph,
    Knapsack,
    LinearChain,
    Parts,
    ProjectiveTree,
    Simplex,
    SupportsVertices,
    supports,
)
from torch import Tensor

# Two bits and their product, which takes a score and is not penalised.
PAIR = Explicit([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1.0]], regularized=slice(0, 2))


def matching(size: int) -> FactorGraph:
    places = torch.arange(size * size).reshape(size, size)
    return FactorGraph(size * size, [Factor(Simplex(size), line.tolist()) for line in (*places, *places.T)])


def pairwise(variables: int, edges: Sequence[tuple[int, int]]) -> FactorGraph:
    return FactorGraph(variables, [Factor(PAIR, edge) for edge in edges])


def chain_with_budget() -> FactorGraph:
    """Four positions of two states, at most two of them in state 1."""
    chain = LinearChain(4, 2, regularize_transitions=False)
    return FactorGraph(8, [Factor(chain, range(8)), Factor(Budget(4, 2), [1, 3, 5, 7])])


def tree_with_budget() -> FactorGraph:
    """Projective trees of three words, with at most one arc from the root, and a knapsack over the arcs."""
    tree = ProjectiveTree(3)
    root = [place for place, (head, _) in enumerate(arcs(3)) if head == 0]
    weights = [1 + place % 3 for place in range(tree.dim)]
    return FactorGraph(
        tree.dim,
        [Factor(tree, range(tree.dim)), Factor(Budget(len(root), 1), root), Factor(Knapsack(weights, 6), range(tree.dim))],
    )


def arcs(words: int) -> list[tuple[int, int]]:
    tree = ProjectiveTree(words)
    matrix = tree.arcs.matrix(torch.arange(tree.dim, dtype=torch.float64))
    return [tuple(map(int, (matrix == place).nonzero()[0])) for place in range(1, tree.dim)]  # pyright: ignore


GRAPHS: dict[str, FactorGraph] = {
    "matching": matching(4),
    "triangle": pairwise(3, [(0, 1), (1, 2), (0, 2)]),
    "grid": pairwise(6, [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]),
    "chain with a budget": chain_with_budget(),
    "one factor": FactorGraph(5, [Factor(Budget(5, 2), range(5))]),
    "mixed": FactorGraph(6, [Factor(Simplex(3), [0, 1, 2]), Factor(BernoulliCube(4), [2, 3, 4, 5]), Factor(PAIR, [5, 0])]),
}


def problem(graph: FactorGraph, rows: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, list[Tensor | None]]:
    """Scores [rows, V] and additional scores of each factor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)

    return normal(graph.variables), [normal(factor.additional) if factor.additional else None for factor in graph.factors]


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


def row_of(additional: Sequence[Tensor | None], row: int) -> list[Tensor | None]:
    return [None if extra is None else extra[row] for extra in additional]


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


def permutations(size: int) -> Explicit:
    identity = torch.eye(size, dtype=torch.float64)
    return Explicit(torch.stack([identity[list(order)].flatten() for order in itertools.permutations(range(size))]))


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


def joined(graph: FactorGraph, scores: Tensor, additional: Sequence[Tensor | None]) -> Tensor:
    """All scores of each row side by side, [rows, K]."""
    return torch.cat([scores, *(extra for extra in additional if extra is not None)], -1)


def solved(graph: FactorGraph, everything: Tensor) -> LPSparseMAPResult:
    """lp_sparsemap of what `joined` gives, to high accuracy."""
    scores, *rest = everything.split([graph.variables, *(f.additional for f in graph.factors if f.additional)], -1)
    given = iter(rest)
    extra = [next(given) if factor.additional else None for factor in graph.factors]
    return lp_sparsemap(scores, graph, extra, solver=ADMM(tol=1e-11))


def check_derivative(function: Callable[[Tensor], Tensor], point: Tensor) -> None:
    """The Jacobian of [rows, K] -> [rows, E] at each row of [rows, K], by central differences; all steps in one batch."""
    leaf = point.clone().requires_grad_()
    value = function(leaf)
    found = torch.stack([torch.autograd.grad(each.sum(), leaf, retain_graph=True)[0] for each in value.T], 1)
    moves = 1e-4 * torch.eye(point.shape[1], dtype=point.dtype)
    for row in range(len(point)):
        with torch.no_grad():
            around = function(torch.cat([point[row] + moves, point[row] - moves]))
        numeric = (around[: len(moves)] - around[len(moves) :]).T / 2e-4
        torch.testing.assert_close(found[row], numeric, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("name", GRAPHS)
def test_local_distributions(name: str) -> None:
    """Each factor's own distribution has the mean on its variables, is differentiable, and is over its structures."""
    graph = GRAPHS[name]
    scores, additional = problem(graph, 3, 0.7, seed=5)
    leaf = scores.requires_grad_()
    found = lp_sparsemap(leaf, graph, additional)
    for place, factor in enumerate(graph.factors):
        local = found.factor(place)
        assert local.batch_shape == (3,)
        assert supports(factor.polytope, SupportsVertices)
        listed = {tuple(row) for row in factor.polytope.vertices().tolist()}
        assert all(tuple(atom) in listed for atom in local.atoms.tolist())
        parts = Parts.of(factor.polytope)
        own = local.mean() if parts is None else local.mean()[:, parts.regularized]
        torch.testing.assert_close(own, found.mean[:, list(factor.variables)], atol=1e-7, rtol=0)
    theta = torch.randn(graph.factors[0].polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def value(everything: Tensor) -> Tensor:
        return solved(graph, everything).factor(0).expectation(lambda atoms, row: (atoms @ theta).sin()[:, None])

    check_derivative(value, joined(graph, scores.detach(), additional))


@pytest.mark.parametrize("name", GRAPHS)
def test_batched_is_one_by_one(name: str) -> None:
    graph = GRAPHS[name]
    scores, additional = problem(graph, 6, 1.0, seed=7)
    scores[::2] *= 3
    together = lp_sparsemap(scores, graph, additional)
    for row in range(6):
        alone = lp_sparsemap(scores[row], graph, row_of(additional, row))
        torch.testing.assert_close(alone.mean, together.mean[row], atol=1e-12, rtol=0)
        assert alone.stats.iterations == together.stats.iterations[row]
        assert alone.mean.shape == (graph.variables,)


def test_equal_factors_are_one_batch() -> None:
    graph = FactorGraph(4, [Factor(Simplex(2), [0, 1]), Factor(Simplex(2), [2, 3]), Factor(Budget(2, 1), [1, 2])])
    assert [group.factors for group in graph.groups] == [(0, 1), (2,)]
    # Two tables that are equal, and one that is not; one that differs in what is regularised.
    table = torch.eye(2, dtype=torch.float64)
    tables = [Explicit(table), Explicit(table.clone()), Explicit(2 * table)]
    graph = FactorGraph(2, [Factor(each, [0, 1]) for each in tables])
    assert [group.factors for group in graph.groups] == [(0, 1), (2,)]
    split = [Explicit(table, regularized=slice(0, 1)), Explicit(table, regularized=slice(1, 2))]
    assert len(FactorGraph(1, [Factor(each, [0]) for each in split]).groups) == 2


def test_order_of_factors_does_not_matter() -> None:
    graph = GRAPHS["mixed"]
    scores, additional = problem(graph, 4)
    turned = FactorGraph(6, graph.factors[::-1])
    one, other = lp_sparsemap(scores, graph, additional), lp_sparsemap(scores, turned, additional[::-1])
    torch.testing.assert_close(one.mean, other.mean, atol=1e-7, rtol=0)


def test_same_input_same_bits_any_dtype_and_shape() -> None:
    graph = GRAPHS["grid"]
    scores, additional = problem(graph, 6)
    first, again = (lp_sparsemap(scores, graph, additional).mean for _ in range(2))
    assert torch.equal(first, again)
    single = lp_sparsemap(scores.float(), graph, [None if extra is None else extra.float() for extra in additional])
    assert single.mean.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), first, atol=1e-5, rtol=0)
    shaped = lp_sparsemap(
        scores.reshape(2, 3, -1), graph, [None if extra is None else extra.reshape(2, 3, -1) for extra in additional]
    )
    assert shaped.mean.shape == (2, 3, 6)
    assert shaped.stats.primal.shape == (2, 3)
    assert shaped.factor(1).batch_shape == (2, 3)
    torch.testing.assert_close(shaped.mean.reshape(6, -1), first, atol=0, rtol=0)
    empty = lp_sparsemap(scores[:0], graph, [None if extra is None else extra[:0] for extra in additional])
    assert empty.mean.shape == (0, 6)


def test_forbidden_variables() -> None:
    """`-inf` fixes a variable at 0: a matching that may not use some places."""
    graph, exact = GRAPHS["matching"], permutations(4)
    scores = problem(graph, 4)[0]
    scores[:, [0, 6]] = -torch.inf
    leaf = scores.requires_grad_()
    one, other = lp_sparsemap(leaf, graph).mean, sparsemap(leaf, exact).mean()
    torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    gradients = [torch.autograd.grad(mean.square().sum(), leaf)[0] for mean in (one, other)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)
    scores = problem(graph, 2)[0]
    scores[1, :4] = -torch.inf
    with pytest.raises(ValueError, match=r"row 1 allows no structure of factor 0, Factor\(Simplex\(dim=4\)"):
        lp_sparsemap(scores, graph)


def test_factors_that_fix_their_variables() -> None:
    """Polytopes of one point have no derivative, and leave none to their variables."""
    graph = FactorGraph(3, [Factor(Budget(2, 0), [0, 1]), Factor(Simplex(3), range(3)), Factor(Simplex(1), [2])])
    leaf = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mean = lp_sparsemap(leaf, graph).mean
    torch.testing.assert_close(mean, torch.tensor([0.0, 0, 1]).double().expand(4, 3), atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(mean[:, 2].sum(), leaf)
    assert gradient.abs().max() < 1e-9


def test_contradiction_is_said_with_its_residual() -> None:
    """Exactly one of two, and exactly two of the same two."""
    graph = FactorGraph(2, [Factor(Simplex(2), [0, 1]), Factor(Budget(2, 2, exactly=True), [0, 1])])
    with pytest.warns(
        ConvergenceWarning, match=r"did not converge on 3 of 3 rows \(largest primal residual 2\.5e-01.*contradict"
    ):
        found = lp_sparsemap(torch.zeros(3, 2), graph, solver=ADMM(max_iter=200))
    assert not found.stats.converged.any()
    assert found.mean.isfinite().all()


def test_stopping_early_is_data() -> None:
    graph = GRAPHS["matching"]
    leaf = problem(graph, 3)[0].requires_grad_()
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        found = LPSparseMAP(graph, ADMM(max_iter=3))(leaf)
    assert not found.stats.converged.any()
    assert (found.stats.iterations == 3).all()
    (gradient,) = torch.autograd.grad(found.mean.square().sum(), leaf)
    assert gradient.isfinite().all()


def test_factors_that_do_not_converge_are_no_certificate() -> None:
    graph = GRAPHS["chain with a budget"]
    scores, additional = problem(graph, 3, 0.3)
    with pytest.warns(ConvergenceWarning):
        found = lp_sparsemap(scores, graph, additional, solver=ADMM(max_iter=300, solver=ActiveSet(max_iter=1)))
    assert not found.stats.converged.any()


@pytest.mark.parametrize("scale", [1e-6, 1e2, 1e6])
def test_small_and_large_scores(scale: float) -> None:
    """At 1e6 the mean is the best matching."""
    graph, exact = GRAPHS["matching"], permutations(4)
    scores = problem(graph, 8, scale)[0]
    found = lp_sparsemap(scores, graph)
    assert found.stats.converged.all()
    torch.testing.assert_close(found.mean, sparsemap(scores, exact).mean(), atol=1e-7, rtol=0)


def test_the_penalty_changes_the_way_only() -> None:
    graph = GRAPHS["chain with a budget"]
    scores, additional = problem(graph, 4)
    first = lp_sparsemap(scores, graph, additional).mean
    for penalty in (0.01, 30.0):
        found = lp_sparsemap(scores, graph, additional, solver=ADMM(penalty=penalty, solver=ActiveSet()))
        assert found.stats.converged.all()
        torch.testing.assert_close(found.mean, first, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Factor(Simplex(3), [0, 1]), "Factor(Simplex(dim=3)) needs 3 variables, one for each coordinate, not 2"),
        (lambda: Factor(PAIR, [0, 1, 2]), "needs 2 variables, one for each regularised coordinate, not 3"),
        (lambda: Factor(Simplex(2), [1, 1]), "needs distinct variables, not [1, 1]"),
        (lambda: Factor(Simplex(2), [0, 1.5]), "needs variables as a sequence of ints"),  # pyright: ignore
        (lambda: Factor(Simplex, [0]), "Factor needs a polytope, an object"),  # pyright: ignore
        (lambda: FactorGraph(2, []), "FactorGraph needs one or more factors"),
        (lambda: FactorGraph(2, [Simplex(2)]), "FactorGraph needs one or more factors"),  # pyright: ignore
        (lambda: FactorGraph(0, [Factor(Simplex(1), [0])]), "variables must be at least 1, not 0"),
        (lambda: FactorGraph(2, [Factor(Simplex(2), [0, 2])]), "factor 0 has variable 2, but variables are 0 to 1"),
        (lambda: FactorGraph(2, [Factor(Simplex(2), [0, -1])]), "factor 0 has variable -1"),
        (
            lambda: FactorGraph(4, [Factor(Simplex(2), [0, 2])]),
            "variables [1, 3] are in no factor, so that nothing bounds them",
        ),
        (lambda: lp_sparsemap(torch.zeros(5), matching(2)), "scores has 5 columns but FactorGraph(variables=4"),
        (lambda: lp_sparsemap(torch.tensor(0.0), matching(2)), "scores has no dimension"),
        (lambda: lp_sparsemap(torch.zeros(4).long(), matching(2)), "scores must be a float tensor"),
        (lambda: lp_sparsemap(torch.zeros(4), Simplex(4)), "lp_sparsemap needs a FactorGraph"),  # pyright: ignore
        (lambda: lp_sparsemap(torch.tensor([0, 0, 0, torch.nan]), matching(2)), "holds NaN"),
        (lambda: lp_sparsemap(torch.zeros(3), GRAPHS["triangle"], [None]), "needs one entry a factor, 3"),
        (lambda: lp_sparsemap(torch.zeros(3), GRAPHS["triangle"], [torch.zeros(2)] * 3), "additional[0] must be float [1]"),
        (lambda: lp_sparsemap(torch.zeros(2, 3), GRAPHS["triangle"], [torch.zeros(1)] * 3), "must be float [2, 1]"),
        (lambda: lp_sparsemap(torch.zeros(3), GRAPHS["triangle"], [torch.full((1,), -torch.inf)] * 3), "must be finite"),
        (lambda: lp_sparsemap(torch.zeros(4), matching(2)).factor(4), "factor 4 is not one of the 4 factors"),
        (lambda: ADMM(max_iter=0), "ADMM: max_iter must be at least 1, not 0"),
        (lambda: ADMM(tol=-1), "ADMM: tol must be at least 0, not -1"),
        (lambda: ADMM(penalty=0), "ADMM: penalty must be positive and finite, not 0"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
