"""Rankings. Truth is the list of all permutations, SciPy's least squares over it, and SciPy's isotonic regression."""

import itertools
import warnings
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from cases import KINDS, projection, scores_for
from scipy.optimize import isotonic_regression
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.oracles import Permutahedron, topk
from sparsemarg.verification import parametrize_with_checks
from torch import Tensor

WEIGHTS: list[list[float]] = [
    [2.0],
    [1, 0],
    [3, 2, 1],
    [4, 3, 2, 1],
    [1, 1, 0, 0],
    [0.5, -1, 2, 0.5],
    [0, 0, 0],
    [1, 0, 0, 0, 0],
]


def arrangements(weights: list[float]) -> Tensor:
    return torch.tensor(sorted(set(itertools.permutations(weights))), dtype=torch.float64)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_vertices_maximize_and_k_best(weights: list[float]) -> None:
    polytope, structures = Permutahedron(weights), arrangements(weights)
    assert sorted(polytope.vertices().tolist()) == structures.tolist()
    for kind in KINDS:
        scores = scores_for(polytope, kind, batch=20)
        found = polytope.maximize(scores)
        assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in structures.tolist()}
        wanted = (scores @ structures.T).sort(-1, descending=True).values
        torch.testing.assert_close((found * scores).sum(-1), wanted[:, 0], rtol=0, atol=1e-12)
        kbest, valid = topk(polytope, scores, 5)
        count = min(5, len(structures))
        assert torch.equal(valid, (torch.arange(5) < count).expand(20, -1))
        totals = (kbest[:, :count] * scores[:, None]).sum(-1)
        torch.testing.assert_close(totals, wanted[:, :count], rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_projection_and_its_decomposition(weights: list[float]) -> None:
    polytope, structures = Permutahedron(weights), arrangements(weights)
    for kind in KINDS:
        scores = scores_for(polytope, kind)
        mean = polytope.project(scores)
        torch.testing.assert_close(mean, projection(structures, scores), rtol=0, atol=1e-8)
        atoms, probs = polytope.decompose(mean)
        assert atoms.shape[1] <= polytope.dim
        torch.testing.assert_close((probs[..., None] * atoms).sum(-2), mean, rtol=0, atol=1e-10)
        used = {tuple(atom) for atom in atoms[probs > 0].tolist()}
        assert used <= {tuple(row) for row in structures.tolist()}
        sorted_mean = sparsemap(scores, polytope, solver=SortedDecomposition()).mean()
        torch.testing.assert_close(sorted_mean, mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(sparsemap_marginals(scores, polytope), sparsemap(scores, polytope).mean(), rtol=0, atol=1e-8)
    scores = scores_for(polytope, "normal").requires_grad_()
    assert torch.autograd.gradcheck(polytope.project, scores)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 30.0, 1e8])
def test_larger_rankings(scale: float) -> None:
    """n = 40: the projection by SciPy's isotonic regression, the decomposition by its mean and independence."""
    polytope = Permutahedron(list(range(40)))
    scores = scale * torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = polytope.project(scores)
    ordered, order = scores.sort(-1, descending=True)
    for row in range(6):
        fit = isotonic_regression((ordered[row] - torch.arange(39, -1, -1.0)).numpy(), increasing=False).x
        wanted = torch.zeros(40, dtype=torch.float64).scatter(0, order[row], ordered[row] - torch.tensor(fit.copy()))
        torch.testing.assert_close(mean[row], wanted, rtol=0, atol=1e-9 * max(1.0, scale))
    for dtype in (torch.float64, torch.float32):
        atoms, probs = polytope.decompose(mean.to(dtype))
        assert atoms.dtype == probs.dtype == dtype
        close = 39 * (1e-11 if dtype == torch.float64 else 1e-6)
        assert float(probs.min()) >= 0
        torch.testing.assert_close((probs[..., None] * atoms).sum(-2), mean.to(dtype), rtol=0, atol=close)
        assert torch.equal(atoms.sort(-1).values, torch.arange(40).to(dtype).expand(atoms.shape))
        used = [atoms[row][probs[row] > 0].double() for row in range(6)]
        assert all(int(torch.linalg.matrix_rank(rows[1:] - rows[0])) == len(rows) - 1 for rows in used)


def in_fractions(scores: Tensor, weights: list[float]) -> Tensor:
    """The projection of one row, without rounding: pool adjacent violators, one at a time."""
    order = scores.argsort(descending=True, stable=True).tolist()
    given = [Fraction(float(scores[item])) for item in order]
    gaps = [score - Fraction(weight) for score, weight in zip(given, sorted(weights, reverse=True), strict=True)]
    blocks: list[list[Fraction]] = []
    for gap in gaps:
        blocks.append([gap])
        while len(blocks) > 1 and sum(blocks[-1]) * len(blocks[-2]) > sum(blocks[-2]) * len(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [sum(block) / len(block) for block in blocks for _ in block]
    found = [float(score - of_block) for score, of_block in zip(given, level, strict=True)]
    return torch.zeros(len(order), dtype=torch.float64).scatter(
        0, torch.tensor(order), torch.tensor(found, dtype=torch.float64)
    )


@pytest.mark.parametrize("weights", [[3, 2, 1], [0.3, 1.7, -0.9, 2.2], [1, 0, 0, 0, 0], [-2.72], [0.002, 0.001, 0]], ids=str)
def test_the_size_of_scores_costs_no_digits(weights: list[float]) -> None:
    """All large; close together but far from 0; and some masked by a huge number."""
    polytope = Permutahedron(weights)
    scores = torch.randn(20, len(weights), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masked = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    lowest = float(torch.finfo(torch.float32).min)
    offset = scores + 1e8
    for given in (1e4 * scores, 1e15 * scores, 1e30 * scores, offset, scores.masked_fill(masked, lowest)):
        wanted = torch.stack([in_fractions(row, weights) for row in given])
        torch.testing.assert_close(polytope.project(given), wanted, rtol=0, atol=1e-14 * max(map(abs, weights)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = sparsemap(given, polytope, solver=SortedDecomposition())
        refit = 1e-13 + (1e-15 * 1e8 if given is offset else 0)  # its sums over a structure leave fewer digits
        torch.testing.assert_close(found.mean(), wanted, rtol=0, atol=refit)


def test_a_ranking_of_equal_scores_is_the_centre() -> None:
    polytope = Permutahedron([4.0, 3, 2, 1])
    mean = polytope.project(torch.zeros(1, 4))
    torch.testing.assert_close(mean, torch.full((1, 4), 2.5))
    atoms, probs = polytope.decompose(mean)
    torch.testing.assert_close((probs[..., None] * atoms).sum(-2), mean)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 3)])
def test_any_batch(shape: tuple[int, ...]) -> None:
    polytope = Permutahedron([3, 2, 1])
    mean = polytope.project(torch.randn(shape))
    assert mean.shape == shape
    atoms, probs = polytope.decompose(mean)
    assert atoms.shape == (*shape, 3)
    assert probs.shape == shape


@pytest.mark.parametrize("weights", [[], [[1.0, 2.0]], [1.0, float("nan")], "ab", ["a"]], ids=str)
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="Permutahedron needs one or more finite numbers"):
        Permutahedron(weights)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="has 20! structures, too many to enumerate"):
        Permutahedron(list(range(20))).vertices()
    with pytest.raises(ValueError, match=r"has 2\^13 - 2 halfspaces, too many to list"):
        Permutahedron(list(range(13))).halfspaces()
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        Permutahedron([1, 0]).project(torch.tensor([[0.0, 1], [float("nan"), 0]]))


VERIFIED = [Permutahedron([3, 2, 1]), Permutahedron([0.002, 0.001, 0]), Permutahedron([1, 1, 0, 0]), Permutahedron([2.0])]


@parametrize_with_checks(VERIFIED, batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VERIFIED[:3], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()


# Pairwise Frank-Wolfe needs more than its iterations for gaps of 1e-9 between structures of size 4.
@parametrize_with_checks([Permutahedron([4, 3, 2, 1])], batch=2, skip=["PairwiseFrankWolfe"])
def test_verification_of_a_larger_one(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("solver", [None, SortedDecomposition()])
def test_a_forbidden_item_has_weight_zero_and_the_others_share_the_rest(solver: SortedDecomposition | None) -> None:
    polytope = Permutahedron([3.0, 2, 1, 0, 0])
    scores = scores_for(polytope, "normal", batch=6).double()
    scores[0, 1], scores[1, 2], scores[1, 4] = -torch.inf, -torch.inf, -torch.inf
    leaf = scores.clone().requires_grad_()
    mean = sparsemap_marginals(leaf, polytope) if solver is None else sparsemap(leaf, polytope, solver=solver).mean()
    (gradient,) = torch.autograd.grad((mean * torch.arange(5.0)).sum(), leaf)
    assert gradient.isfinite().all()
    for row in range(6):
        allowed = scores[row].isfinite()
        rest = Permutahedron(polytope.weights[: int(allowed.sum())])
        wanted = torch.zeros(5, dtype=torch.float64)
        wanted[allowed] = projection(rest.vertices(), scores[row : row + 1, allowed])[0]
        torch.testing.assert_close(mean[row].detach(), wanted, rtol=0, atol=1e-9)
        assert not gradient[row][~allowed].any()


def test_more_forbidden_items_than_weights_zero_are_refused() -> None:
    scores = torch.tensor([[1.0, -torch.inf, -torch.inf]])
    for call in (sparsemap, sparsemap_marginals):
        with pytest.raises(ValueError, match="scores row 0 allows no structure"):
            call(scores, Permutahedron([2.0, 1, 0]))
    with pytest.raises(ValueError, match="row 0 has more entries -inf than Permutahedron"):
        Permutahedron([2.0, 1, 0]).project(scores)


def test_the_default_dtype_does_not_matter() -> None:
    scores = torch.tensor([[1.3, 2.2, 0.6, 1.9]], dtype=torch.float64)
    torch.set_default_dtype(torch.float16)
    try:
        found = sparsemap(scores, Permutahedron([3.0, 2, 1, 0]), solver=SortedDecomposition())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.mean(), projection(Permutahedron([3.0, 2, 1, 0]).vertices(), scores), rtol=0, atol=1e-9)
