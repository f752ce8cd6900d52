"""LP-SparseMAP: local distributions, batches, orders, forbidden variables, limits and bad input."""

import random
import re
from collections.abc import Callable

import pytest
import torch
from factor_graphs import GRAPHS, PAIR, check_derivative, joined, matching, permutations, problem, row_of, solved
from scipy.optimize import linprog
from sparsemarg.layers import ConvergenceWarning, LPSparseMAP
from sparsemarg.layers.functional import lp_sparsemap, sparsemap
from sparsemarg.layers.solvers import ADMM, ActiveSet
from sparsemarg.oracles import (
    AtLeastOne,
    BernoulliCube,
    Budget,
    Explicit,
    Factor,
    FactorGraph,
    Parts,
    Simplex,
    SupportsVertices,
    supports,
)
from torch import Tensor


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


def test_contradiction_is_said_by_naming_the_factors() -> None:
    """Exactly one of two, and exactly two of the same two; a third factor has nothing to do with it."""
    factors = [Factor(Simplex(2), [0, 1]), Factor(BernoulliCube(2), [1, 2]), Factor(Budget(2, 2, exactly=True), [0, 1])]
    graph = FactorGraph(3, factors)
    with pytest.raises(
        ValueError, match=r"scores row 0: .*all of factor 0, Factor\(Simplex.*; factor 2, Factor\(Budget\(d[^;]*$"
    ):
        lp_sparsemap(torch.zeros(3, 3), graph)
    found = lp_sparsemap(torch.zeros(3, 3), graph, check=False)
    assert found.stats.contradictory.all()
    assert not found.stats.converged.any()
    assert found.mean.isfinite().all()


def test_contradiction_without_a_proof_is_said_with_its_residual() -> None:
    graph = FactorGraph(2, [Factor(Simplex(2), [0, 1]), Factor(Budget(2, 2, exactly=True), [0, 1])])
    with pytest.warns(
        ConvergenceWarning, match=r"did not converge on 3 of 3 rows \(largest primal residual 2\.5e-01.*contradict"
    ):
        found = lp_sparsemap(torch.zeros(3, 2), graph, solver=ADMM(max_iter=20))
    assert not found.stats.converged.any()
    assert found.mean.isfinite().all()


def test_contradiction_of_some_rows() -> None:
    """Three rows of a matching have two columns that are allowed. The others are as they are alone."""
    graph = GRAPHS["matching"]
    scores = problem(graph, 3)[0]
    scores[1, [0, 1, 4, 5, 8, 9]] = -torch.inf
    with pytest.raises(
        ValueError, match=r"scores row 1: .*; and 5 more, beginning with 3, .* of which some have a score of -inf"
    ):
        lp_sparsemap(scores, graph)
    found = lp_sparsemap(scores, graph, check=False)
    assert found.stats.contradictory.tolist() == [False, True, False]
    assert found.stats.converged.tolist() == [True, False, True]
    alone = lp_sparsemap(scores[[0, 2]], graph).mean
    torch.testing.assert_close(found.mean[[0, 2]], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_contradiction_is_proved_exactly_where_a_linear_programme_is_infeasible(seed: int) -> None:
    """Of random subsets with exactly, or at least, so many of five bits on, and rows that forbid some."""
    draw = random.Random(seed)
    factors = [Factor(BernoulliCube(5), range(5))]
    for _ in range(draw.randint(2, 4)):
        size = draw.randint(1, 4)
        kind = Budget(size, draw.randint(1, size), exactly=True) if draw.random() < 0.7 else AtLeastOne(size)
        factors.append(Factor(kind, draw.sample(range(5), size)))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    scores[2, draw.randrange(5)] = -torch.inf
    found = [agree(row, FactorGraph(5, factors)) for row in scores]
    assert found == [feasible(factors, row.isneginf()) for row in scores]


def agree(row: Tensor, graph: FactorGraph) -> bool:
    """Whether there is a mean; not, if an error says that there is none."""
    try:
        return bool(lp_sparsemap(row, graph).stats.converged)
    except ValueError as error:
        if not re.search("contradict one another|allows no structure", str(error)):
            raise
        return False


def feasible(factors: list[Factor], forbidden: Tensor) -> bool:
    """Whether the local polytope has a point, over weights of all factors' structures: a linear programme."""
    tables = [factor.polytope.vertices().double() for factor in factors]
    weights = sum(len(table) for table in tables)
    rows, wanted, before = [], [], 0
    for factor, table in zip(factors, tables, strict=True):
        sums = torch.zeros(1 + len(factor.variables), len(forbidden) + weights, dtype=torch.float64)
        sums[0, len(forbidden) + before : len(forbidden) + before + len(table)] = 1
        sums[1:, len(forbidden) + before : len(forbidden) + before + len(table)] = table.T
        sums[range(1, len(sums)), list(factor.variables)] = -1
        rows, wanted, before = [*rows, sums], [*wanted, 1.0, *[0.0] * len(factor.variables)], before + len(table)
    most = [(0, 0 if off else 1) for off in forbidden.tolist()] + [(0, 1)] * weights
    return linprog([0.0] * len(most), A_eq=torch.cat(rows).numpy(), b_eq=wanted, bounds=most).status == 0


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
