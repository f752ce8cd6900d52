"""Logic factors. Truth is every bit vector for which the constraint, written in Python, holds."""

import itertools
from collections.abc import Callable

import pytest
import torch
from cases import KINDS, projection, scores_for
from sparsemarg.layers import SparseMAP
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.oracles import AtLeastOne, AtMostOne, Budget, ExactlyOne, Implies, Polytope, Product, topk
from sparsemarg.oracles.logic import LogicFactor
from sparsemarg.verification import parametrize_with_checks
from torch import Tensor

HOLDS: dict[type[LogicFactor], Callable[[list[bool]], bool]] = {
    ExactlyOne: lambda literals: sum(literals) == 1,
    AtMostOne: lambda literals: sum(literals) <= 1,
    AtLeastOne: any,
    Implies: lambda literals: not all(literals[:-1]) or literals[-1],
}

FACTORS: list[LogicFactor] = [
    factor(dim, negated)
    for factor in HOLDS
    for dim, negated in (
        (4, None),
        (4, [True, False, True, False]),
        (3, [False, False, True]),
        (3, [True] * 3),
        (2, [False, True]),
    )
] + [factor(1, negated) for factor in (ExactlyOne, AtMostOne, AtLeastOne) for negated in (None, [True])]


def satisfying(factor: LogicFactor) -> Tensor:
    rows = [
        bits
        for bits in itertools.product([0.0, 1.0], repeat=factor.dim)
        if HOLDS[type(factor)]([bool(bit) != flag for bit, flag in zip(bits, factor.negated, strict=True)])
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("factor", FACTORS, ids=repr)
def test_vertices_and_maximize(factor: LogicFactor) -> None:
    structures = satisfying(factor)
    assert sorted(factor.vertices().tolist()) == sorted(structures.tolist())
    for kind in KINDS:
        scores = scores_for(factor, kind, batch=50)
        found = factor.maximize(scores)
        assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in structures.tolist()}
        best = (scores @ structures.T).amax(-1)
        torch.testing.assert_close((found * scores).sum(-1), best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS, ids=repr)
def test_k_best(factor: LogicFactor) -> None:
    structures = satisfying(factor)
    for kind in ("normal", "integer", "zero"):
        scores = scores_for(factor, kind, batch=20)
        for k in (1, 3, 20):
            found, valid = topk(factor, scores, k)
            count = min(k, len(structures))
            assert torch.equal(valid, (torch.arange(k) < count).expand(20, -1))
            totals = (found[:, :count] * scores[:, None]).sum(-1)
            wanted = (scores @ structures.T).sort(-1, descending=True).values[:, :count]
            torch.testing.assert_close(totals, wanted, rtol=0, atol=1e-12)
            assert all(len({tuple(atom) for atom in row[:count].tolist()}) == count for row in found)


@pytest.mark.parametrize("factor", FACTORS, ids=repr)
def test_forbidden_bits(factor: LogicFactor) -> None:
    """A score of -inf leaves the structures without that bit: the best, the k best, the projection."""
    structures = satisfying(factor)
    scores = scores_for(factor, "normal", batch=30)
    blocked = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    scores = scores.masked_fill(blocked, -torch.inf)
    for row in range(30):
        allowed = structures[~((structures != 0) & blocked[row]).any(-1)]
        if len(allowed) == 0:
            with pytest.raises(ValueError, match="row 0 allows no structure"):
                sparsemap(scores[row : row + 1], factor)
            continue
        finite = torch.where(blocked[row], 0, scores[row])
        totals = allowed @ finite
        assert torch.equal(factor.maximize(scores[row : row + 1])[0], allowed[totals.argmax()])
        found, valid = topk(factor, scores[row : row + 1], 5)
        assert int(valid.sum()) == min(5, len(allowed))
        torch.testing.assert_close(found[0][valid[0]] @ finite, totals.sort(descending=True).values[:5], rtol=0, atol=1e-12)
        mean = sparsemap_marginals(scores[row : row + 1], factor)
        torch.testing.assert_close(mean, projection(allowed, finite[None]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("factor", FACTORS, ids=repr)
def test_projection_and_its_decomposition(factor: LogicFactor) -> None:
    structures = satisfying(factor)
    for kind in KINDS:
        scores = scores_for(factor, kind)
        mean = factor.project(scores)
        torch.testing.assert_close(mean, projection(structures, scores), rtol=0, atol=1e-8)
        atoms, probs = factor.decompose(mean)
        assert atoms.shape[1] <= factor.dim + 1
        torch.testing.assert_close((probs[..., None] * atoms).sum(-2), mean, rtol=0, atol=1e-10)
        used = {tuple(atom) for atom in atoms[probs > 1e-12].tolist()}
        assert used <= {tuple(row) for row in structures.tolist()}
        torch.testing.assert_close(sparsemap(scores, factor, solver=SortedDecomposition()).mean(), mean, rtol=0, atol=1e-8)
    scores = scores_for(factor, "normal").requires_grad_()
    assert torch.autograd.gradcheck(factor.project, scores)


def test_half_precision() -> None:
    """Sums that float16 cannot hold do not matter."""
    scores = torch.tensor([[60000.0, -50000, -torch.inf, 5]], dtype=torch.float16)
    factor = AtLeastOne(4, [True, False, False, True])
    vertices, valid = topk(factor, scores, 2)
    assert vertices.dtype == torch.float16
    assert valid.tolist() == [[True, True]]
    assert vertices.tolist() == [[[1, 0, 0, 0], [1, 1, 0, 1]]]
    assert sparsemap_marginals(scores, factor).tolist() == [[1, 0, 0, 0]]


def test_plain_factors_are_budgets() -> None:
    scores = scores_for(AtMostOne(5), "normal", batch=40)
    for factor, budget in ((AtMostOne(5), Budget(5, 1)), (ExactlyOne(5), Budget(5, 1, exactly=True))):
        assert torch.equal(factor.maximize(scores), budget.maximize(scores))
        torch.testing.assert_close(factor.project(scores), budget.project(scores))


def test_in_a_layer_and_a_product() -> None:
    polytope = Product(Implies(3), AtLeastOne(2, [True, False]))
    scores = torch.randn(4, 5, requires_grad=True)
    SparseMAP(polytope, solver=SortedDecomposition())(scores).expectation(
        lambda z, row: z.cumsum(-1).sin().sum(-1)
    ).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AtMostOne(0), "AtMostOne: dim must be at least 1, not 0"),
        (lambda: AtLeastOne(2, 5), "negated must be a flag for each literal, .* not 5"),  # pyright: ignore[reportArgumentType]
        (lambda: Implies(1), "Implies: dim must be at least 2, not 1"),
        (lambda: AtLeastOne(3, [True]), "AtLeastOne: negated must have a flag for each of the 3 literals, not 1"),
    ],
)
def test_bad_factors_are_refused(build: Callable[[], Polytope], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


VERIFIED = [ExactlyOne(3, [True, False, False]), AtMostOne(4), AtLeastOne(3, [False, True, False]), Implies(4)]


@parametrize_with_checks(VERIFIED, batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VERIFIED[:3], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()
