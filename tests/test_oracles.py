"""Oracles against enumeration: argmax, k-best, Gibbs sums, halfspaces, closed-form projections and decompositions."""

import re

import cvxpy
import pytest
import torch
from cases import BINARY, KINDS, POLYTOPES, Ring, enumerated, projection, scores_for
from scipy import stats
from sparsemarg.layers.functional import sparsemap_marginals
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
    Explicit,
    KBest,
    Permutahedron,
    Polytope,
    Product,
    Simplex,
    SupportsDecomposition,
    SupportsGibbs,
    SupportsHalfspaces,
    SupportsProjection,
    SupportsVertices,
    supports,
    topk,
)
from sparsemarg.oracles.kbest import lawler
from torch import Tensor

each_polytope = pytest.mark.parametrize("name", POLYTOPES)


def totals(vertices: Tensor, scores: Tensor) -> Tensor:
    """<a, t> for every structure, -inf for one that uses a forbidden coordinate: [B, V]."""
    forbidden = (scores.isneginf().double() @ (vertices != 0).double().T) > 0
    return (torch.where(scores.isneginf(), 0, scores) @ vertices.T).masked_fill(forbidden, -torch.inf)


@each_polytope
@pytest.mark.parametrize("kind", KINDS)
def test_maximize_equals_enumeration(name: str, kind: str) -> None:
    polytope = POLYTOPES[name]
    vertices, scores = enumerated(polytope), scores_for(polytope, kind, batch=50)
    found = polytope.maximize(scores)
    assert (found[:, None] == vertices).all(-1).any(-1).all(), "not a structure"
    torch.testing.assert_close((found * scores).sum(-1), totals(vertices, scores).amax(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 7, 64])
@pytest.mark.parametrize("kind", [*KINDS, "forbidden"])
@each_polytope
def test_topk_equals_enumeration(name: str, kind: str, k: int) -> None:
    polytope = POLYTOPES[name]
    scores = scores_for(polytope, "normal" if kind == "forbidden" else kind)
    if kind == "forbidden" and polytope.dim > 1:
        scores[:, 0] = -torch.inf
    check_topk(polytope, scores, k, *topk(polytope, scores, k))


@pytest.mark.parametrize("k", [1, 2, 7, 64])
@pytest.mark.parametrize("name", BINARY)
def test_lawler_equals_enumeration(name: str, k: int) -> None:
    for kind in KINDS:
        scores = scores_for(BINARY[name], kind)
        check_topk(BINARY[name], scores, k, *lawler(BINARY[name], scores, k))


def check_topk(polytope: Polytope, scores: Tensor, k: int, found: Tensor, valid: Tensor) -> None:
    vertices = enumerated(polytope)
    every = totals(vertices, scores).sort(dim=-1, descending=True).values
    wanted = torch.nn.functional.pad(every, (0, k), value=-torch.inf)[:, :k]
    got = torch.where(valid, (found * torch.where(scores.isneginf(), 0, scores)[:, None]).sum(-1), -torch.inf)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    for row, rightful in zip(found, valid, strict=True):
        listed = row[rightful]
        assert len(listed.unique(dim=0)) == len(listed), "a structure twice"
        assert (listed[:, None] == vertices).all(-1).any(-1).all(), "not a structure"
        assert not row[~rightful].any()


@pytest.mark.parametrize("polytope", [BernoulliCube(40), Budget(40, 20), Budget(40, 20, exactly=True)], ids=repr)
def test_native_topk_equals_lawler_in_larger_dimension(polytope: Polytope) -> None:
    scores = scores_for(polytope, "normal", batch=5)
    found, _ = topk(polytope, scores, 30)
    wanted, _ = lawler(polytope, scores, 30)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_kbest_scores_carry_the_gradient() -> None:
    scores = scores_for(BernoulliCube(4), "normal").requires_grad_()
    best = KBest(BernoulliCube(4), 3)(scores)
    (gradient,) = torch.autograd.grad(best.scores[:, 1].sum(), scores)
    assert torch.equal(gradient, best.vertices[:, 1])


closed_forms = [name for name, polytope in POLYTOPES.items() if supports(polytope, SupportsProjection)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", closed_forms)
def test_project_equals_qp(name: str, kind: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsProjection)
    scores = scores_for(polytope, kind, batch=4)
    wanted = projection(enumerated(polytope), scores)
    torch.testing.assert_close(polytope.project(scores), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", closed_forms)
def test_project_gradient(name: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsProjection)
    scores = scores_for(polytope, "normal", seed=1).requires_grad_()
    assert torch.autograd.gradcheck(polytope.project, scores)
    assert torch.autograd.gradgradcheck(polytope.project, scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", closed_forms)
def test_decompose_reconstructs_with_feasible_structures(name: str, kind: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsProjection)
    mean = polytope.project(scores_for(polytope, kind, batch=100))
    assert supports(polytope, SupportsDecomposition)
    atoms, probs = polytope.decompose(mean)
    assert atoms.shape[1] <= polytope.dim + 1
    torch.testing.assert_close((probs[:, None] @ atoms)[:, 0], mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(probs.sum(-1), torch.ones(100, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (probs >= 0).all()
    listed = enumerated(polytope)
    assert ((atoms[:, :, None] == listed).all(-1).any(-1) | (probs == 0)).all(), "not a structure"


@pytest.mark.parametrize("dim", [32, 128, 500])
def test_budget_decomposition_in_large_dimension(dim: int) -> None:
    for polytope in (Budget(dim, dim // 2), Budget(dim, dim // 3, exactly=True)):
        mean = polytope.project(scores_for(polytope, "small", batch=20))
        atoms, probs = polytope.decompose(mean)
        torch.testing.assert_close((probs[:, None] @ atoms)[:, 0], mean, atol=1e-12, rtol=0)
        sizes = atoms.sum(-1)[probs > 0]
        assert (sizes == polytope.budget).all() if polytope.exactly else (sizes <= polytope.budget).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("polytope", [Budget(16, 5), Budget(30, 10, exactly=True), Product(Budget(8, 3), Simplex(8))], ids=repr)
def test_decompose_survives_rounding_in_the_mean(polytope, dtype: torch.dtype) -> None:
    """A projection rounded to float32 still gets feasible structures."""
    scores = torch.cat([scores_for(polytope, "normal", batch=500), scores_for(polytope, "equal", batch=2)]).to(dtype)
    mean = polytope.project(scores)
    atoms, probs = polytope.decompose(mean)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close((probs[:, None] @ atoms)[:, 0], mean, atol=100 * eps + 1e-12, rtol=0)
    assert (probs >= 0).all()
    parts = atoms[probs > 0].split(polytope.dims if isinstance(polytope, Product) else [polytope.dim], -1)
    for part, block in zip(polytope.parts if isinstance(polytope, Product) else [polytope], parts, strict=True):
        sizes = block.sum(-1)
        if isinstance(part, Simplex) or part.exactly:
            assert (sizes == (1 if isinstance(part, Simplex) else part.budget)).all()
        else:
            assert (sizes <= part.budget).all()


def test_decompose_a_point_just_outside() -> None:
    atoms, probs = BernoulliCube(2).decompose(torch.tensor([[1 + 1e-7, -1e-8]]))
    assert (probs >= 0).all()
    torch.testing.assert_close((probs[:, None] @ atoms)[:, 0], torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("levels", [3, 100, 10**9])
@pytest.mark.parametrize("polytope", [BernoulliCube(40), Simplex(40), Explicit(torch.eye(40).roll(1, 0) + 1)], ids=repr)
def test_topk_selects_as_it_sorts(polytope: BernoulliCube | Simplex | Explicit, levels: int) -> None:
    """Where data cannot be seen all are sorted; else the few that can be among the best are selected, unless they tie."""
    scores = torch.randint(-levels, levels + 1, (200, 40), generator=torch.Generator().manual_seed(0)).double()
    for k in (1, 2, 5, 10, 14, 15, 40):
        vertices, valid = polytope.topk(scores, k)
        sorted_vertices, sorted_valid = torch.vmap(lambda row, k=k: polytope.topk(row, k))(scores)
        assert torch.equal(vertices, sorted_vertices)
        assert torch.equal(valid, sorted_valid)


def test_topk_of_a_product_for_large_k() -> None:
    polytope = Product(BernoulliCube(5), Budget(6, 3), Simplex(4))
    scores = scores_for(polytope, "normal", batch=3)
    check_topk(polytope, scores, 500, *topk(polytope, scores, 500))


with_gibbs = [name for name, polytope in POLYTOPES.items() if supports(polytope, SupportsGibbs)]


@pytest.mark.parametrize("kind", ["normal", "large", "zero", "forbidden"])
@pytest.mark.parametrize("name", with_gibbs)
def test_gibbs_equals_enumeration(name: str, kind: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsGibbs)
    scores = scores_for(POLYTOPES[name], "normal" if kind == "forbidden" else kind)
    if kind == "forbidden" and name not in ("simplex of one", "exactly all", "explicit"):
        scores[:, 0] = -torch.inf
    vertices = enumerated(POLYTOPES[name])
    logs = totals(vertices, scores).log_softmax(-1)
    distribution = polytope.gibbs(scores)
    for place, structure in enumerate(vertices):
        torch.testing.assert_close(distribution.log_prob(structure.expand_as(scores)), logs[:, place], atol=1e-10, rtol=0)
    entropy = torch.special.entr(logs.exp()).sum(-1)
    torch.testing.assert_close(distribution.entropy(), entropy, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", with_gibbs)
def test_gibbs_gradients(name: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsGibbs)
    scores = scores_for(POLYTOPES[name], "normal", batch=2).requires_grad_()
    structure = enumerated(POLYTOPES[name])[-1].expand_as(scores)

    def both(scores: Tensor) -> Tensor:
        distribution = polytope.gibbs(scores)
        return distribution.log_prob(structure) + distribution.entropy()

    assert torch.autograd.gradcheck(both, scores)


@pytest.mark.parametrize("name", with_gibbs)
def test_gibbs_samples_pass_chi_square(name: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsGibbs)
    scores = scores_for(POLYTOPES[name], "normal", batch=1, seed=5)
    vertices = enumerated(POLYTOPES[name])
    draws = polytope.gibbs(scores).sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert draws.shape == (20_000, 1, POLYTOPES[name].dim)
    match = (draws[:, 0, None] == vertices).all(-1)
    assert match.any(-1).all(), "not a structure"
    counts = match.double().sum(0)
    expected = 20_000 * totals(vertices, scores).softmax(-1)[0]
    rare = expected < 5  # the test's own rule of thumb: pool the rare
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = expected > 0
    if keep.sum() > 1:
        assert stats.chisquare(counts[keep].numpy(), expected[keep].numpy()).pvalue > 1e-3


def test_off_the_set_has_no_probability() -> None:
    scores = scores_for(Budget(4, 2), "normal", batch=1)
    for structure in ([1, 1, 1, 0], [0.5, 0, 0, 0]):
        outside = torch.tensor([structure], dtype=torch.float64)
        assert Budget(4, 2).gibbs(scores).log_prob(outside).item() == -torch.inf


@pytest.mark.parametrize("name", [name for name, polytope in POLYTOPES.items() if supports(polytope, SupportsVertices)])
def test_vertices_are_all_structures(name: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsVertices)
    listed, wanted = polytope.vertices(), enumerated(POLYTOPES[name])
    assert len(listed) == len(wanted)
    assert (listed[:, None] == wanted).all(-1).any(-1).all()


@pytest.mark.parametrize("name", [name for name, polytope in POLYTOPES.items() if supports(polytope, SupportsHalfspaces)])
def test_halfspaces_are_the_hull(name: str) -> None:
    polytope = POLYTOPES[name]
    assert supports(polytope, SupportsHalfspaces)
    half, vertices = polytope.halfspaces(), enumerated(POLYTOPES[name])
    assert (vertices @ half.a_ub.T <= half.b_ub + 1e-12).all()
    assert (vertices @ half.a_eq.T == half.b_eq).all()
    # In random directions the two descriptions have the same maximum.
    point = cvxpy.Variable(POLYTOPES[name].dim)
    constraints = [half.a_ub.numpy() @ point <= half.b_ub.numpy()]
    if len(half.b_eq):
        constraints.append(half.a_eq.numpy() @ point == half.b_eq.numpy())
    for direction in scores_for(POLYTOPES[name], "normal", batch=5):
        best = cvxpy.Problem(cvxpy.Maximize(direction.numpy() @ point), constraints).solve(solver=cvxpy.CLARABEL)
        assert best == pytest.approx(float((vertices @ direction).amax()), abs=1e-6)


def test_product_has_what_its_parts_have() -> None:
    assert supports(POLYTOPES["product"], SupportsProjection)
    assert not supports(POLYTOPES["product of an opaque part"], SupportsProjection)


def test_the_docstring_example() -> None:
    best = KBest(BernoulliCube(2), k=3)(torch.tensor([[1.0, -0.5]])).scores
    torch.testing.assert_close(best, torch.tensor([[1.0, 0.5, 0.0]]))


class Shapeless(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores)[0]


class Undefined(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores) * torch.nan


class SinglePrecision(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return torch.einsum("bd,de->be", scores, torch.eye(6))


class Fractions(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores) / 2


class BadLists(Ring):
    """Spoils what it lists, or the projection."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def topk(self, scores, k):
        return self.spoil(*topk(Ring(), scores, k))

    def project(self, scores):
        return scores[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topk(Shapeless(), torch.ones(3, 6), 2), "Shapeless.maximize must return one structure a row"),
        (lambda: topk(Undefined(), torch.ones(3, 6), 2), "Undefined.maximize returned NaN or infinity"),
        (lambda: topk(SinglePrecision(), torch.ones(3, 6), 2), "SinglePrecision.maximize failed on torch.float64 scores"),
        (lambda: topk(BernoulliCube(2), torch.tensor([[torch.nan, 1]]), 2), "scores row 0 holds NaN"),
        (lambda: topk(BernoulliCube, torch.zeros(2, 2), 2), "not the class BernoulliCube"),
        (lambda: Budget(3, 2).gibbs(torch.zeros(2, 5)), "scores has 5 columns but Budget(dim=3"),
        (lambda: Simplex(3).gibbs(torch.full((2, 3), -torch.inf)), "gibbs: scores row 0 allows no structure"),
        (lambda: Budget(3, 2, True).gibbs(torch.tensor([[-torch.inf, -torch.inf, 1]])), "row 0 allows no structure"),
        (lambda: BernoulliCube(1).gibbs(torch.tensor([[torch.inf]])), "scores row 0 holds +inf"),
        (lambda: Simplex(0), "Simplex: dim must be at least 1, not 0"),
        (lambda: BernoulliCube(2.0), "dim must be an int at least 1, not 2.0"),
        (lambda: Budget(4, 5), "Budget(dim=4): budget must be between 0 and 4, not 5"),
        (lambda: Budget(4, -1), "budget must be between 0 and 4, not -1"),
        (lambda: topk(Simplex(3), torch.zeros(2, 3), 0), "k must be at least 1, not 0"),
        (lambda: KBest(Simplex(3), 0), "KBest: k must be at least 1, not 0"),
        (lambda: topk(Simplex(3), torch.zeros(2, 4), 1), "scores has 4 columns but Simplex(dim=3) needs 3"),
        (lambda: topk(Simplex(3), torch.zeros(2, 3, dtype=torch.int64), 1), "scores must be a float tensor"),
        (lambda: topk(Fractions(), torch.ones(2, 6), 2), "needs structures of 0s and 1s, but Fractions.maximize returned"),
        (lambda: topk(BadLists(lambda v, ok: (v / 0, ok)), torch.ones(2, 6), 2), "BadLists.topk returned NaN or infinity"),
        (
            lambda: topk(BadLists(lambda v, ok: (v, ok.float())), torch.ones(2, 6), 2),
            "it returned [2, 2, 6] and [2, 2] float32",
        ),
        (lambda: sparsemap_marginals(torch.ones(2, 6), BadLists(None)), "shape [2, 6]; it returned [6]"),
        (lambda: Explicit(torch.zeros(0, 3)), "vertices [V, D] with V, D >= 1"),
        (lambda: Explicit(torch.tensor([[0.0, torch.nan]])), "finite vertices"),
        (lambda: Explicit(torch.zeros(2, 3)), "distinct vertices, but 1 of 2 rows repeat"),
        (lambda: Explicit([torch.zeros(2), torch.ones(2).double()]), "one dtype, but they have torch.float32, torch.float64"),
        (lambda: Explicit([torch.zeros(2), torch.ones(3)]), "one shape"),
        (lambda: Budget(4, 2, "no"), "exactly must be True or False, not 'no'"),
        (lambda: Simplex(3).maximize(torch.zeros(2, 6)), "scores has 6 columns but Simplex(dim=3) needs 3"),
        (lambda: Simplex(3).project(torch.ones(2, 3, dtype=torch.int64)), "scores must be a float tensor, not torch.int64"),
        (lambda: BernoulliCube(3).maximize(torch.zeros(2, 6)), "scores has 6 columns but BernoulliCube(dim=3) needs 3"),
        (lambda: BernoulliCube(3).project(torch.zeros(2, 6)), "scores has 6 columns but BernoulliCube(dim=3) needs 3"),
        (lambda: Budget(3, 1).maximize(torch.zeros(2, 6)), "scores has 6 columns but Budget(dim=3, budget=1"),
        (lambda: Budget(3, 1).project(torch.ones(1, 3, dtype=torch.int64)), "scores must be a float tensor"),
        (lambda: Explicit(torch.eye(2)).topk(torch.ones(1, 2, dtype=torch.int64), 1), "scores must be a float tensor"),
        (lambda: Permutahedron([3, 2, 1]).project(torch.zeros(1, 6)), "scores has 6 columns but Permutahedron"),
        (lambda: Permutahedron([0.9, 0.1]).maximize(torch.ones(1, 2, dtype=torch.int64)), "scores must be a float tensor"),
        (lambda: Permutahedron(torch.tensor([1 + 2j])), "needs one or more finite numbers"),
        (lambda: Product(), "Product needs one or more polytopes"),
        (lambda: Product(Simplex), "Product needs one or more polytopes"),
        (lambda: BernoulliCube(30).vertices(), "too many to enumerate"),
        (lambda: Budget(40, 20).vertices(), "too many to enumerate"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
