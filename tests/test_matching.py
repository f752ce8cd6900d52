"""Assignments. Truth is the list of all one-to-one maps, and the projection onto its hull by cvxpy or SciPy."""

import itertools
from collections.abc import Callable

import pytest
import torch
from cases import projection
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Matching, topk
from sparsemarg.verification import parametrize_with_checks
from torch import Tensor

SIZES = [(1, 1), (1, 3), (2, 2), (3, 3), (2, 4), (3, 4)]


def assignments(rows: int, columns: int) -> Tensor:
    listed = []
    for taken in itertools.permutations(range(columns), rows):
        table = torch.zeros(rows, columns, dtype=torch.float64)
        table[torch.arange(rows), list(taken)] = 1
        listed.append(table.flatten())
    return torch.stack(listed)


def scores_of(polytope: Matching, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def as_set(rows: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_vertices_and_maximize(rows: int, columns: int) -> None:
    polytope, structures = Matching(rows, columns), assignments(rows, columns)
    listed = polytope.vertices()
    assert len(listed) == len(structures)
    assert as_set(listed) == as_set(structures)
    for dtype in (torch.float32, torch.float64):
        scores = scores_of(polytope, 100).to(dtype)
        found = polytope.maximize(scores)
        assert found.dtype == dtype
        assert torch.equal(found.double(), structures[(scores.double() @ structures.T).argmax(-1)])


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("k", [1, 5, 40])
def test_k_best(rows: int, columns: int, k: int) -> None:
    """Distinct assignments whose totals are those of a sort of all; rounded scores make most of them tie."""
    polytope, structures = Matching(rows, columns), assignments(rows, columns)
    count = min(k, len(structures))
    for scores in (scores_of(polytope, 10), scores_of(polytope, 10).round()):
        found, valid = topk(polytope, scores, k)
        assert torch.equal(valid, (torch.arange(k) < count).expand(10, -1))
        totals = (found[:, :count] * scores[:, None]).sum(-1)
        wanted = (scores @ structures.T).sort(-1, descending=True).values[:, :count]
        torch.testing.assert_close(totals, wanted, rtol=0, atol=1e-12)
        assert all(len(as_set(row[:count])) == count and as_set(row[:count]) <= as_set(structures) for row in found)


def test_k_best_of_what_cannot_be_enumerated() -> None:
    """Of a diagonal that outweighs all else the next best are the cheapest swaps of two neighbours."""
    polytope = Matching(12)
    cost = torch.linspace(0.1, 1.2, 12, dtype=torch.float64)
    table = torch.full((12, 12), -100.0, dtype=torch.float64)
    table.diagonal()[:] = 0
    table[torch.arange(11), torch.arange(1, 12)] = -cost[:11]
    table[torch.arange(1, 12), torch.arange(11)] = 0
    found, valid = topk(polytope, table.flatten()[None], 4)
    assert bool(valid.all())
    # The cheapest swap costs 0.1, the next 0.2, then 0.3: alone, as the first two share a row.
    torch.testing.assert_close((found[0] @ table.flatten()), torch.tensor([0, -0.1, -0.2, -0.3], dtype=torch.float64))


def test_forbidden_pairs() -> None:
    polytope, structures = Matching(3, 4), assignments(3, 4)
    blocked = torch.rand(60, 12, generator=torch.Generator().manual_seed(2)) < 0.45
    scores = scores_of(polytope, 60).masked_fill(blocked, -torch.inf)
    allowed = ~((structures[None] != 0) & blocked[:, None]).any(-1)
    some = allowed.any(-1)
    assert 10 < int(some.sum()) < 60
    finite = torch.where(blocked, 0, scores)[some]
    totals = (finite @ structures.T).masked_fill(~allowed[some], -torch.inf)
    assert torch.equal(polytope.maximize(scores[some]), structures[totals.argmax(-1)])
    found, valid = topk(polytope, scores[some], 6)
    assert torch.equal(valid.sum(-1), allowed[some].sum(-1).clamp(max=6))
    wanted = totals.sort(-1, descending=True).values[:, :6]
    torch.testing.assert_close((found * finite[:, None]).sum(-1).masked_fill(~valid, -torch.inf), wanted, rtol=0, atol=1e-12)
    for row in (~some).nonzero()[:2, 0].tolist():
        with pytest.raises(ValueError, match="row 0 allows no structure"):
            sparsemap(scores[row : row + 1], polytope)
    everything = torch.full((2, 12), -torch.inf, dtype=torch.float64)
    everything[0] = 0
    with pytest.raises(ValueError, match="row 1 allows no structure"):
        sparsemap(everything, polytope)


def test_mixed_sizes_give_what_each_gives_alone() -> None:
    """The same bits in any batch; as a matching of its own size the same best, k best and mean."""
    large = Matching(4, 5)
    rows, columns = torch.tensor([4, 1, 3, 2, 3, 2]), torch.tensor([5, 1, 4, 2, 3, 3])
    scores = large.mask(scores_of(large, 6), rows, columns)
    together = sparsemap(scores, large)
    best, (kbest, valid) = large.maximize(scores), large.topk(scores, 4)
    for row, (n, m) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        alone, mine = sparsemap(scores[row : row + 1], large), together.row == row
        assert torch.equal(alone.atoms, together.atoms[mine])
        torch.testing.assert_close(alone.probs, together.probs[mine], rtol=0, atol=1e-14)
        assert torch.equal(large.maximize(scores[row : row + 1])[0], best[row])
        assert torch.equal(large.topk(scores[row : row + 1], 4)[0][0], kbest[row])
        small = Matching(n, m)
        own = large.table(scores)[row, :n, :m].flatten()[None]
        assert torch.equal(large.table(best)[row, :n, :m].flatten()[None], small.maximize(own))
        listed, exists = small.topk(own, 4)
        assert torch.equal(exists[0], valid[row])
        assert torch.equal(large.table(kbest)[row, :, :n, :m].flatten(-2)[valid[row]], listed[0][exists[0]])
        mean = sparsemap(own, small).mean()[0]
        torch.testing.assert_close(large.table(together.mean())[row, :n, :m].flatten(), mean, rtol=0, atol=1e-8)


def test_mask_without_columns_keeps_the_difference() -> None:
    polytope = Matching(3, 4)
    scores = scores_of(polytope, 2)
    lengths = torch.tensor([1, 3])
    assert torch.equal(polytope.mask(scores, lengths), polytope.mask(scores, lengths, lengths + 1))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([2, 5], None, "problem 1 has 5 rows and 6 columns"),
        ([0, 2], None, "problem 0 has 0 rows and 1 columns"),
        ([2, 2], [2, 1], "problem 1 has 2 rows and 1 columns"),
        ([1, 3], [4, 4], "problem 0 has 1 rows and 4 columns.*between 0 and 1 more columns than rows"),
    ],
)
def test_bad_sizes_are_refused(rows: list[int], columns: list[int] | None, message: str) -> None:
    polytope = Matching(3, 4)
    with pytest.raises(ValueError, match=message):
        polytope.mask(torch.zeros(2, 12), torch.tensor(rows), None if columns is None else torch.tensor(columns))


def test_bad_polytopes_are_refused() -> None:
    with pytest.raises(ValueError, match="Matching: columns must be at least 3, not 2"):
        Matching(3, 2)
    with pytest.raises(ValueError, match="has 479001600 structures, too many to enumerate"):
        Matching(12).vertices()


def test_mean_is_the_projection_onto_the_birkhoff_polytope() -> None:
    """Against a QP over doubly stochastic matrices, written here, by cvxpy."""
    cvxpy = pytest.importorskip("cvxpy")
    scores = scores_of(Matching(5), 4, seed=7)
    mean = sparsemap(scores, Matching(5)).mean()
    for row in range(4):
        table = cvxpy.Variable((5, 5), nonneg=True)
        limits = [cvxpy.sum(table, axis=0) == 1, cvxpy.sum(table, axis=1) == 1]
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(table - scores[row].reshape(5, 5).numpy())), limits).solve(
            solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
        )
        torch.testing.assert_close(mean[row], torch.from_numpy(table.value).flatten(), rtol=0, atol=1e-6)
    structures = assignments(3, 4)
    scores = scores_of(Matching(3, 4), 10)
    torch.testing.assert_close(sparsemap(scores, Matching(3, 4)).mean(), projection(structures, scores), rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("polytope", [Matching(5), Matching(3, 6)], ids=repr)
def test_sparsemap_on_random_problems(polytope: Matching) -> None:
    """500 problems: at most D + 1 atoms, certified, and the gradient of an expectation by central differences."""
    scores = scores_of(polytope, 500)
    found = sparsemap(scores, polytope)
    assert bool(found.stats.converged.all())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    assert int(found.support_size().max()) <= polytope.dim + 1
    residual = scores - found.mean()
    gap = ((polytope.maximize(residual) - found.mean()) * residual).sum(-1)
    assert float(gap.max()) < 5e-9
    theta = torch.randn(polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def expectation(scores: Tensor) -> Tensor:
        return sparsemap(scores, polytope).expectation(lambda atoms, row: (atoms @ theta).sin())

    assert torch.autograd.gradcheck(expectation, scores_of(polytope, 3, seed=4).requires_grad_(), eps=1e-6, atol=1e-5)


@parametrize_with_checks([Matching(3), Matching(2, 3), Matching(1)], batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([Matching(3), Matching(2, 3)], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()
