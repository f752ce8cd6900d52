"""Assignments. Truth is the list of all one-to-one maps, and the projection onto its hull by cvxpy or SciPy."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import rational
import torch
from cases import projection
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals
from sparsemarg.oracles import Matching, birkhoff, topk
from sparsemarg.verification import parametrize_with_checks
from structures import as_set, assert_k_best, assert_random_problems, assert_same_bits, scores_of
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp

SIZES = [(1, 1), (1, 3), (2, 2), (3, 3), (2, 4), (3, 4)]


def assignments(rows: int, columns: int) -> Tensor:
    listed = []
    for taken in itertools.permutations(range(columns), rows):
        table = torch.zeros(rows, columns, dtype=torch.float64)
        table[torch.arange(rows), list(taken)] = 1
        listed.append(table.flatten())
    return torch.stack(listed)


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
    assert_k_best(Matching(rows, columns), assignments(rows, columns), k)


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
        assert_same_bits(alone.probs, together.probs[mine])
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


def test_sizes_that_broadcast_are_refused_as_others_are() -> None:
    with pytest.raises(ValueError, match="problem 1 has 2 rows and 9 columns"):
        Matching(3).mask(torch.zeros(2, 9), torch.tensor(2), torch.tensor([2, 9]))


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
    assert_random_problems(polytope)


def with_known_projection(
    polytope: Matching, rows: int, scale: float, held: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B, D], their projection, and its free entries, made from the optimality conditions.

    The mean is a mixture of a few assignments. Potentials of the rows, and of the columns that it fills, are random; entries
    off the support are `held` at 0 by at least that much.
    """
    n, m = polytope.rows, polytope.columns
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    best = polytope.maximize(uniform(3 * rows, n * m)).reshape(3, rows, n, m)
    weights = 0.1 + uniform(3, rows, 1, 1)
    mean = (best * (weights / weights.sum(0))).sum(0)
    full = (mean.sum(-2, keepdim=True) - 1).abs() < 1e-12
    lines, columns = scale * uniform(rows, n, 1), torch.where(full, -scale * (0.1 + uniform(rows, 1, m)), 0)
    slack = torch.where(mean > 0, 0, held * (1 + scale * uniform(rows, n, m)))
    return (mean - lines - columns - slack).flatten(-2), mean.flatten(-2), (mean > 0).flatten(-2)


PROJECTED = [Matching(1), Matching(1, 4), Matching(2), Matching(3), Matching(2, 4), Matching(3, 4)]


@pytest.mark.parametrize("polytope", PROJECTED, ids=repr)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_projection_on_all_assignments(polytope: Matching, scale: float) -> None:
    """Against bounded least squares over the list of assignments; rounded scores tie."""
    structures = assignments(polytope.rows, polytope.columns)
    for scores in (scale * scores_of(polytope, 12), (scale * scores_of(polytope, 12)).round()):
        torch.testing.assert_close(polytope.project(scores), projection(structures, scores), rtol=0, atol=1e-8)


@pytest.mark.parametrize("polytope", [Matching(4), Matching(5, 7), Matching(30), Matching(20, 30)], ids=repr)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("held", [0.0, 0.01], ids=["degenerate", "strict"])
def test_projection_that_is_known(polytope: Matching, scale: float, held: float) -> None:
    scores, mean, _ = with_known_projection(polytope, 6, scale, held)
    torch.testing.assert_close(polytope.project(scores), mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("polytope", [Matching(30), Matching(20, 30), Matching(25, 26)], ids=repr)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 100.0, 1e8])
def test_projection_is_certified(polytope: Matching, scale: float) -> None:
    """Random scores: the sums, and no assignment is better for T - X than X, up to the rounding of such totals."""
    scores = scale * scores_of(polytope, 8)
    mean = polytope.project(scores)
    table, residual = polytope.table(mean), scores - mean
    assert float(mean.min()) >= 0
    torch.testing.assert_close(table.sum(-1), torch.ones_like(table.sum(-1)), rtol=0, atol=1e-14)
    excess = table.sum(-2) - 1
    assert float((excess.abs() if polytope.rows == polytope.columns else excess).max()) < 1e-14
    gap = ((polytope.maximize(residual) - mean) * residual).sum(-1)
    assert float(gap.max()) < 1e-14 * max(1.0, scale) * polytope.rows


@pytest.mark.parametrize("polytope", [Matching(5), Matching(3, 6)], ids=repr)
def test_projection_is_the_mean_of_sparsemap(polytope: Matching) -> None:
    scores = scores_of(polytope, 40, seed=5)
    torch.testing.assert_close(polytope.project(scores), sparsemap(scores, polytope).mean(), rtol=0, atol=1e-8)
    for dtype, atol in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        rough = scores.to(dtype)
        found = sparsemap_marginals(rough.reshape(5, 2, 4, -1), polytope)
        assert found.dtype == dtype
        wanted = polytope.project(rough.double())
        torch.testing.assert_close(found.double().reshape(40, -1), wanted, rtol=0, atol=atol)
    assert polytope.project(scores[:0]).shape == (0, polytope.dim)
    assert polytope.project(scores[0]).shape == (polytope.dim,)


def test_projection_of_ties() -> None:
    third = torch.full((1, 9), 1 / 3, dtype=torch.float64)
    assert torch.equal(Matching(3).project(torch.full((1, 9), 7.0, dtype=torch.float64)), third)
    quarter = torch.full((2, 8), 0.25)
    assert torch.equal(Matching(2, 4).project(torch.tensor([[0.0] * 8, [1e8] * 8])), quarter)


@pytest.mark.parametrize("polytope", [Matching(4), Matching(3, 5)], ids=repr)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_projection_is_differentiable(polytope: Matching, scale: float) -> None:
    """Away from kinks, backward and forward, and twice."""
    scores, _, _ = with_known_projection(polytope, 3, scale, held=0.05, seed=3)
    leaf = scores.requires_grad_()
    assert torch.autograd.gradcheck(polytope.project, leaf, eps=1e-6, atol=1e-8, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda scores: polytope.project(scores).square(), leaf, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("polytope", [Matching(4), Matching(8), Matching(3, 5)], ids=repr)
def test_jacobian_of_the_projection(polytope: Matching) -> None:
    """The projector on the tables that vanish off the free entries, and whose rows and full columns sum to 0."""
    scores, mean, free = with_known_projection(polytope, 3, 1.0, held=0.05, seed=4)
    found = torch.autograd.functional.jacobian(lambda scores: polytope.project(scores).sum(0), scores)
    identity = polytope.table(torch.eye(polytope.dim, dtype=torch.float64))
    for row in range(3):
        full = polytope.table(mean[row]).sum(0) > 1 - 1e-9
        sums = torch.cat([identity.sum(-1).T, identity.sum(-2).T[full]])
        normals = torch.cat([sums, torch.eye(polytope.dim, dtype=torch.float64)[~free[row]]])
        wanted = torch.eye(polytope.dim, dtype=torch.float64) - torch.linalg.pinv(normals) @ normals
        torch.testing.assert_close(found[:, row], wanted, rtol=0, atol=1e-10)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_projection_of_smaller_problems_and_forbidden_pairs() -> None:
    large = Matching(4, 5)
    rows, columns = torch.tensor([4, 1, 3, 2, 3, 2]), torch.tensor([5, 1, 4, 2, 3, 3])
    scores = 2 * scores_of(large, 6)
    masked = large.mask(scores, rows, columns).requires_grad_()
    together = large.project(masked)
    for row, (n, m) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        own = large.table(scores)[row, :n, :m].flatten()[None]
        inside = large.table(together)[row, :n, :m].flatten()[None]
        torch.testing.assert_close(inside, Matching(n, m).project(own), rtol=0, atol=1e-12)
    assert bool(torch.autograd.grad(together.square().sum(), masked)[0].isfinite().all())


@pytest.mark.parametrize("polytope", [Matching(3), Matching(3, 4)], ids=repr)
def test_projection_where_assignments_are_forbidden(polytope: Matching) -> None:
    structures = assignments(polytope.rows, polytope.columns)
    blocked = torch.rand(60, polytope.dim, generator=torch.Generator().manual_seed(2)) < 0.4
    scores = scores_of(polytope, 60).masked_fill(blocked, -torch.inf)
    allowed = ~((structures[None] != 0) & blocked[:, None]).any(-1)
    some = allowed.any(-1)
    assert 10 < int(some.sum()) < 60
    mean = polytope.project(scores[some])
    for row, left, found in zip(torch.where(blocked, 0, scores)[some], allowed[some], mean, strict=True):
        torch.testing.assert_close(found, projection(structures[left], row[None])[0], rtol=0, atol=1e-8)
    for row in (~some).nonzero()[:3, 0].tolist():
        pair = torch.stack([torch.zeros_like(scores[row]), scores[row]])
        with pytest.raises(ValueError, match="row 1 allows no structure of Matching"):
            polytope.project(pair)
        with pytest.raises(ValueError, match=r"row \(0, 1\) allows no structure of Matching"):
            polytope.project(pair[None])
        with pytest.raises(ValueError, match="row 1 allows no structure of Matching"):
            sparsemap_marginals(pair, polytope)
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        polytope.project(torch.stack([scores[0], torch.full_like(scores[0], torch.nan)]))
    with pytest.raises(ValueError, match=f"scores has 2 columns but Matching.* needs {polytope.dim}"):
        polytope.project(torch.zeros(1, 2))


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (4, 6), (8, 8)], ids=str)
@pytest.mark.parametrize("low", [1e6, 1e9, 1e12, 1e15, 1e20, 1e30, -float(torch.finfo(torch.float32).min)])
def test_projection_of_scores_masked_by_huge_numbers(shape: tuple[int, int], low: float) -> None:
    """The same as for pairs that are forbidden, and where some such pair is needed, as for any mask that is large enough."""
    polytope, generator = Matching(*shape), torch.Generator().manual_seed(0)
    scores = torch.randn(60, polytope.dim, dtype=torch.float64, generator=generator)
    masked = torch.rand(60, polytope.dim, generator=generator) < 0.35
    forbidden = scores.masked_fill(masked, -torch.inf)
    possible = ~((polytope.maximize(forbidden) != 0) & masked).any(-1)
    assert possible.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaf = scores.masked_fill(masked, -low).requires_grad_()
        found = polytope.project(leaf)
        torch.testing.assert_close(found, polytope.project(scores.masked_fill(masked, -1e5)), rtol=0, atol=1e-14)
        leaf_of_forbidden = forbidden[possible].requires_grad_()
        expected = polytope.project(leaf_of_forbidden)
    torch.testing.assert_close(found[possible], expected, rtol=0, atol=1e-14)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((found * weights).sum(), leaf)
    (wanted,) = torch.autograd.grad((expected * weights[possible]).sum(), leaf_of_forbidden)
    torch.testing.assert_close(gradient[possible], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("digits", [4, 12, 20, 40])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (2, 4)], ids=str)
def test_projection_of_scores_of_every_size_is_that_in_rational_arithmetic(shape: tuple[int, int], digits: int) -> None:
    polytope, generator = Matching(*shape), torch.Generator().manual_seed(digits)
    normal, uniform = torch.randn(2, 4, polytope.dim, dtype=torch.float64, generator=generator)
    sizes = 10.0 ** (uniform.abs() * digits / 2 - 2)
    some = 10.0 ** (digits * (uniform > 0).double())
    for scores in (normal * sizes, normal * some, -normal.abs() * some):
        expected = torch.stack([rational.projection(polytope.vertices(), row) for row in scores])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(polytope.project(scores), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1e9, 1e12, 1e15])
def test_projection_of_large_scores_is_the_best_assignment(scale: float) -> None:
    polytope = Matching(5, 6)
    scores = scale * torch.randn(50, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(polytope.project(scores), polytope.maximize(scores), rtol=0, atol=1e-14)


@pytest.mark.parametrize("polytope", [Matching(6), Matching(4, 6)], ids=repr)
def test_projection_that_does_not_settle(polytope: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point of the polytope without forbidden pairs, a finite gradient, and a warning."""
    scores = 30 * scores_of(polytope, 10)
    scores[:5, 1] = -torch.inf
    monkeypatch.setattr(birkhoff, "_LAST_STEPS", 0)
    monkeypatch.setattr(birkhoff, "_STAGE_STEPS", 0)
    for given in (scores, 1e30 * scores):
        leaf = given.clone().requires_grad_()
        with pytest.warns(RuntimeWarning, match="rows did not settle"):
            mean = polytope.project(leaf)
        half = polytope.halfspaces()
        assert float((mean.detach() @ half.a_ub.T - half.b_ub).max()) < 1e-12
        torch.testing.assert_close(mean @ half.a_eq.T, half.b_eq.expand(10, -1), rtol=0, atol=1e-12)
        assert bool((mean[:5, 1] == 0).all())
        assert bool(torch.autograd.grad(mean.square().sum(), leaf)[0].isfinite().all())


@parametrize_with_checks([Matching(3), Matching(2, 3), Matching(1)], batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([Matching(3), Matching(2, 3)], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()


def test_derivatives_by_torch_func() -> None:
    polytope = Matching(3)
    scores = scores_of(polytope, 1).double()

    def mean(given: Tensor) -> Tensor:
        return sparsemap(given, polytope).mean()

    leaf = scores.clone().requires_grad_()
    wanted = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0][0] for value in mean(leaf)[0]])
    for found in (jacrev(mean)(scores), jacfwd(mean)(scores)):
        torch.testing.assert_close(found[0, :, 0], wanted, rtol=0, atol=1e-9)
    value, change = jvp(mean, (scores,), (torch.ones_like(scores),))  # pyright: ignore
    torch.testing.assert_close(value, mean(scores), rtol=0, atol=1e-12)
    torch.testing.assert_close(change[0], wanted.sum(-1), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"cannot run under torch\.func\.vmap: pass the whole batch"):
        torch.vmap(polytope.maximize)(scores[None])
