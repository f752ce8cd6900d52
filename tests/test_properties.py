"""Properties of the layers that hold for all scores: searched by hypothesis, with the search's seed fixed."""

from collections.abc import Callable

import hypothesis.strategies as st
import torch
from cases import Ring
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import arrays
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals, sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, Solver, SortedDecomposition
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Product, Simplex
from torch import Tensor

DIM = 5
# One size, so that pairs of scores and permutations fit; the first three are the same under any permutation of coordinates.
SYMMETRIC: list[Polytope] = [Simplex(DIM), BernoulliCube(DIM), Budget(DIM, 2), Budget(DIM, 3, exactly=True)]
POLYTOPES: list[Polytope] = [*SYMMETRIC, Product(Simplex(2), Budget(3, 1))]
SOLVERS: list[Solver] = [ActiveSet(), SortedDecomposition()]
ACCURACY = 1e-8

# Multiples of 1/64 make ties frequent; sums and differences of them are exact, so that what is equal on paper is equal.
entries = st.integers(-256, 256).map(lambda units: units / 64)
rows = arrays("float64", DIM, elements=entries).map(torch.from_numpy)
solvers = st.sampled_from(SOLVERS)


def property_of(examples: int = 60) -> Callable:
    """Settings: reproducible, and no deadline, since the machine may be busy."""
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def mean(scores: Tensor, polytope: Polytope, solver: Solver) -> Tensor:
    return sparsemap(scores, polytope, solver=solver).mean()


def close(found: Tensor, wanted: Tensor, tolerance: float = ACCURACY) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@property_of()
@given(rows, st.sampled_from(SYMMETRIC), solvers, st.permutations(range(DIM)))
def test_permutation_equivariance(scores: Tensor, polytope: Polytope, solver: Solver, order: list[int]) -> None:
    close(mean(scores[order], polytope, solver), mean(scores, polytope, solver)[order])
    close(sparsemax(scores[order]), sparsemax(scores)[order])


@property_of()
@given(rows, entries, solvers)
def test_shift_along_the_normal_of_the_hull(scores: Tensor, shift: float, solver: Solver) -> None:
    """Where all structures have the same number of ones, adding a constant changes nothing."""
    for polytope in (Simplex(DIM), Budget(DIM, 3, exactly=True)):
        close(mean(scores + shift, polytope, solver), mean(scores, polytope, solver))
    close(sparsemax(scores + shift), sparsemax(scores))


@property_of()
@given(rows, st.sampled_from(POLYTOPES), solvers)
def test_projection_is_idempotent(scores: Tensor, polytope: Polytope, solver: Solver) -> None:
    once = mean(scores, polytope, solver)
    close(mean(once, polytope, solver), once)


@property_of()
@given(rows, rows, st.sampled_from(POLYTOPES), solvers)
def test_projection_is_firmly_non_expansive(one: Tensor, other: Tensor, polytope: Polytope, solver: Solver) -> None:
    """||mu - mu'||^2 <= <mu - mu', t - t'>; so ||mu - mu'|| <= ||t - t'||, and mu is monotone in t."""
    moved = mean(one, polytope, solver) - mean(other, polytope, solver)
    assert moved @ moved <= moved @ (one - other) + ACCURACY
    assert moved.norm() <= (one - other).norm() + ACCURACY


@property_of()
@given(rows, st.integers(0, DIM - 1), entries.map(abs))
def test_sparsemax_is_monotone(scores: Tensor, place: int, rise: float) -> None:
    """A higher score never loses probability, nor do the others gain; and larger scores have larger probabilities."""
    raised = scores.clone()
    raised[place] += rise
    before, after = sparsemax(scores), sparsemax(raised)
    others = torch.arange(DIM) != place
    assert after[place] >= before[place] - 1e-14
    assert (after[others] <= before[others] + 1e-14).all()
    ranked = sparsemax(scores)[scores.argsort()]
    assert (ranked.diff() >= -1e-14).all()


@property_of()
@given(rows, st.sampled_from([*POLYTOPES]), st.integers(1, 12))
def test_top_k_equals_full_sparsemax_where_it_says_so(scores: Tensor, polytope: Polytope, k: int) -> None:
    vertices = polytope.vertices()  # pyright: ignore
    full = sparsemax(vertices @ scores)
    found = topk_sparsemax(scores, polytope, k)
    assert found.stats is not None
    if found.stats.exact:  # pyright: ignore
        close(found.mean(), full @ vertices)
        close(found.probs.sort().values, full[full > 0].sort().values)
    else:
        assert (full > 0).sum() >= k


@property_of()
@given(rows, st.sampled_from(POLYTOPES), solvers)
def test_large_scores_give_the_map(scores: Tensor, polytope: Polytope, solver: Solver) -> None:
    """t / eps -> MAP: once eps is small against the lead of the best structure, all mass is on it (to the last bit)."""
    vertices = polytope.vertices()  # pyright: ignore
    totals = (vertices @ scores).sort(descending=True).values
    lead = totals[0] - totals[1]
    if lead == 0:
        return
    # mu = v exactly if <t / eps - v, a - v> <= 0 for all a; no two structures here are further apart than sqrt(DIM).
    found = sparsemap(scores * (2 * DIM / lead), polytope, solver=solver)
    assert torch.equal(found.atoms, polytope.maximize(scores[None]))
    assert torch.equal(found.probs, torch.ones_like(found.probs))


@property_of()
@given(rows, st.sampled_from(POLYTOPES))
def test_small_scores_give_the_nearest_point_to_the_origin(scores: Tensor, polytope: Polytope) -> None:
    """eps t -> the projection of 0, and no faster than eps t moves."""
    origin = mean(torch.zeros_like(scores), polytope, ActiveSet())
    moved = mean(1e-6 * scores, polytope, ActiveSet()) - origin
    assert moved.norm() <= 1e-6 * scores.norm() + ACCURACY


@property_of()
@given(rows, st.sampled_from(POLYTOPES))
def test_solvers_and_the_closed_form_agree(scores: Tensor, polytope: Polytope) -> None:
    closed = sparsemap_marginals(scores, polytope)
    for solver in SOLVERS:
        close(mean(scores, polytope, solver), closed)


@property_of()
@given(rows)
def test_sparsemax_is_sparsemap_on_the_simplex(scores: Tensor) -> None:
    close(mean(scores, Simplex(DIM), ActiveSet()), sparsemax(scores))


@property_of()
@given(rows, rows, st.sampled_from(POLYTOPES), solvers)
def test_rows_do_not_see_each_other(one: Tensor, other: Tensor, polytope: Polytope, solver: Solver) -> None:
    both = mean(torch.stack([one, other]), polytope, solver)
    close(both, torch.stack([mean(one, polytope, solver), mean(other, polytope, solver)]), 1e-12)


@property_of()
@given(arrays("float64", 6, elements=entries).map(torch.from_numpy), st.integers(0, 5))
def test_a_users_polytope_is_equivariant_too(scores: Tensor, turn: int) -> None:
    """The ring turned."""
    close(mean(scores.roll(turn), Ring(), ActiveSet()), mean(scores, Ring(), ActiveSet()).roll(turn))
