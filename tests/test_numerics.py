"""The numerics contract: dtypes, forbidden entries, degenerate shapes, extreme scales, bad scores."""

import re
from collections.abc import Callable

import pytest
import torch
from cases import KINDS, POLYTOPE_SOLVERS, POLYTOPES, SOLVERS, enumerated, projection, scores_for
from sparsemarg.kernels import in_threads
from sparsemarg.kernels.dispatch import WORTH_A_THREAD
from sparsemarg.layers import SparseDistribution, SparseMAP, Sparsemax, TopKSparsemax
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals, sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, Solver, SortedDecomposition
from sparsemarg.layers.stats import SolverStats
from sparsemarg.models.estimators import DenseMarginalize
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, KBest, Polytope, ShortestPath, Simplex
from torch import Tensor

OPERATORS = {
    "sparsemap": lambda s, polytope: sparsemap(s, polytope),
    "sparsemap, sorted": lambda s, polytope: sparsemap(s, polytope, solver=SortedDecomposition()),
    "top-k": lambda s, polytope: topk_sparsemax(s, polytope, 4),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS)
SHAPES = [BernoulliCube(6), Budget(6, 3), Budget(6, 5), Budget(6, 3, exactly=True), Simplex(6)]
each_shape = pytest.mark.parametrize("polytope", SHAPES, ids=repr)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each_operator
@each_shape
def test_dtype_is_kept(polytope: Polytope, operator: str, dtype: torch.dtype) -> None:
    leaf = scores_for(polytope, "normal").to(dtype).requires_grad_()
    found = OPERATORS[operator](leaf, polytope)
    value = found.expectation(lambda atoms, row: atoms.square().sum(-1)) + found.entropy()
    for tensor in (found.atoms, found.probs, found.mean(), value):
        assert tensor.dtype == dtype
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert gradient.dtype == dtype
    precise = OPERATORS[operator](leaf.detach().double(), polytope)
    assert torch.equal(found.atoms.double(), precise.atoms), "the dtype chose other atoms"
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.probs.double(), precise.probs, atol=eps, rtol=eps)


@each_operator
@each_shape
def test_forbidden_entries_equal_the_face(polytope: Polytope, operator: str) -> None:
    """With -inf on two coordinates the answer is that of the structures without them."""
    scores = scores_for(polytope, "normal", batch=20)
    scores[:, [1, 4]] = -torch.inf
    leaf = scores.clone().requires_grad_()
    found = OPERATORS[operator](leaf, polytope)
    assert not found.atoms[:, [1, 4]].any()
    if operator != "top-k":
        listed = enumerated(polytope)
        face = listed[~listed[:, [1, 4]].any(-1)]
        finite = torch.where(scores.isneginf(), 0, scores)
        torch.testing.assert_close(found.mean(), projection(face, finite), atol=1e-8, rtol=0)
    (gradient,) = torch.autograd.grad(found.entropy().sum(), leaf)
    assert gradient.isfinite().all()
    assert not gradient[:, [1, 4]].any()


def test_forbidden_entries_with_low_scores_left() -> None:
    """A forbidden bit of a k-subset stays off however low the others' scores are."""
    scores = torch.tensor([[-torch.inf, -50.0, -51.0, -50.5]], dtype=torch.float64)
    polytope = Budget(4, 2, exactly=True)
    for mean in (sparsemap(scores, polytope).mean(), sparsemap_marginals(scores, polytope)):
        torch.testing.assert_close(mean, torch.tensor([[0.0, 1.0, 0.25, 0.75]], dtype=torch.float64))


@each_operator
@pytest.mark.parametrize("polytope", [Budget(4, 1, exactly=True), Simplex(4)], ids=repr)
def test_one_category_allowed(polytope: Polytope, operator: str) -> None:
    scores = torch.full((3, 4), -torch.inf)
    scores[:, 2] = torch.tensor([0.0, -1e8, 5.0])
    assert OPERATORS[operator](scores, polytope).mean().tolist() == [[0, 0, 1, 0]] * 3


@each_operator
@each_shape
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (), (2, 3), (1, 2, 2)], ids=str)
def test_batch_shapes(polytope: Polytope, operator: str, shape: tuple[int, ...]) -> None:
    leaf = torch.randn(*shape, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = OPERATORS[operator](leaf, polytope)
    assert found.batch_shape == shape
    value = found.expectation(lambda atoms, row: atoms.sum(-1))
    assert value.shape == found.entropy().shape == found.support_size().shape == shape
    assert found.mean().shape == found.mode().shape == found.sample().shape == (*shape, 6)
    assert found.log_prob(found.mode()).shape == shape
    atoms, probs = found.padded()
    assert atoms.shape == (*probs.shape, 6)
    assert probs.shape[:-1] == shape
    value.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == leaf.shape
    if 0 not in shape:
        flat = OPERATORS[operator](leaf.detach().reshape(-1, 6), polytope)
        assert torch.equal(flat.atoms, found.atoms)


@pytest.mark.parametrize("scale", [1e8, 1e-8])
@pytest.mark.parametrize(("name", "solver"), POLYTOPE_SOLVERS)
def test_extreme_scales(name: str, solver: str, scale: float) -> None:
    polytope = POLYTOPES[name]
    vertices, scores = enumerated(polytope), scale * scores_for(polytope, "normal")
    found = sparsemap(scores, polytope, solver=SOLVERS[solver])
    assert found.stats.converged.all()  # pyright: ignore
    if scale > 1:  # random scores this large put all mass on the best structure
        best = vertices[(scores @ vertices.T).argmax(-1)]
        assert torch.equal(found.mean(), best)
    else:
        torch.testing.assert_close(found.mean(), projection(vertices, scores), atol=1e-8, rtol=0)


@pytest.mark.parametrize("solver", ["active set", "sorted"])
def test_small_scores_are_accurate_relative_to_themselves(solver: str) -> None:
    scores = 1e-8 * scores_for(BernoulliCube(6), "normal")
    mean = sparsemap(scores, BernoulliCube(6), solver=SOLVERS[solver]).mean()
    torch.testing.assert_close(1e8 * mean, 1e8 * scores.clamp(min=0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_keep_their_differences(dtype: torch.dtype) -> None:
    """A common shift of 2^20 changes nothing on the simplex and the k-subsets; nor do saturated neighbours of 1e8."""
    scores = torch.tensor([[0.25, 0.0, 0.5, -1.0]], dtype=dtype)
    shifted = scores + 2**20
    torch.testing.assert_close(sparsemax(shifted), sparsemax(scores), atol=0, rtol=0)
    for polytope in (Simplex(4), Budget(4, 2, exactly=True)):
        torch.testing.assert_close(sparsemap(shifted, polytope).mean(), sparsemap(scores, polytope).mean())
    mixed = torch.tensor([[1e8, 0.3, -1e8, 0.7]], dtype=dtype)
    torch.testing.assert_close(sparsemap(mixed, BernoulliCube(4)).mean(), mixed.clamp(0, 1), atol=1e-7, rtol=0)


def test_duplicated_scores_share_equally() -> None:
    torch.testing.assert_close(sparsemax(torch.zeros(3, 7)), torch.full((3, 7), 1 / 7))
    mean = sparsemap(torch.full((2, 8), 0.4, dtype=torch.float64), Budget(8, 2)).mean()
    torch.testing.assert_close(mean, torch.full((2, 8), 0.25, dtype=torch.float64))


BAD = [
    (float("nan"), "scores row 1 holds NaN; scores must be finite"),
    (float("inf"), "scores row 1 holds +inf; scores must be finite"),
]


@each_operator
@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_scores(operator: str, value: float, message: str) -> None:
    scores = torch.zeros(3, 6)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        OPERATORS[operator](scores, BernoulliCube(6))
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsemax(scores)


@each_operator
@pytest.mark.parametrize("polytope", [Budget(6, 5, exactly=True), Simplex(6)], ids=repr)
def test_nothing_allowed(polytope: Polytope, operator: str) -> None:
    scores = torch.zeros(3, 6)
    scores[2, : 2 if isinstance(polytope, Budget) else 6] = -torch.inf
    with pytest.raises(ValueError, match=r"scores row 2 allows no structure of .* leave at least one structure allowed"):
        OPERATORS[operator](scores, polytope)


def test_the_check_can_be_switched_off() -> None:
    scores = torch.tensor([[0.0, torch.nan]])
    assert sparsemax(scores, check=False).isnan().any()
    with pytest.raises(ValueError, match="NaN"):
        sparsemax(scores)


@pytest.mark.parametrize(
    ("module", "function", "text"),
    [
        (Sparsemax(0), lambda s: sparsemax(s, 0), "Sparsemax(dim=0)"),
        (TopKSparsemax(Simplex(6), 2), lambda s: topk_sparsemax(s, Simplex(6), 2), "TopKSparsemax(Simplex(dim=6), k=2)"),
        (
            SparseMAP(Simplex(6), "pairs"),
            lambda s: sparsemap(s, Simplex(6), coding="pairs"),
            "coding='pairs', solver=ActiveSet",
        ),
    ],
)
def test_modules_are_their_functions(module, function, text: str) -> None:
    scores = scores_for(Simplex(6), "normal")
    found, wanted = module(scores), function(scores)
    pairs = [(found, wanted)] if isinstance(found, Tensor) else [(found.probs, wanted.probs), (found.atoms, wanted.atoms)]
    assert all(torch.equal(one, two) for one, two in pairs)
    assert text in repr(module)


def test_topk_is_exact_when_it_says_so() -> None:
    """The certificate against sparsemax over all 64 structures."""
    polytope = BernoulliCube(6)
    listed = enumerated(polytope)
    seen = set()
    for k in (2, 5, 20, 64, 100):
        scores = scores_for(polytope, "normal", batch=50, seed=k)
        found = topk_sparsemax(scores, polytope, k)
        full = sparsemax(scores @ listed.T) @ listed
        same = torch.isclose(found.mean(), full, atol=1e-10).all(-1)
        assert same[found.stats.exact].all()  # pyright: ignore
        seen.update(found.stats.exact.tolist())  # pyright: ignore
    assert seen == {False, True}


@pytest.mark.parametrize("k", [1, 3, 10, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_topk_of_flips_is_topk_of_what_they_flip(k: int, kind: str) -> None:
    """The cube's top-k with and without writing its structures down; ties, masks and large scores among them."""
    polytope = BernoulliCube(9)

    class Written(Polytope):
        dim, takes_forbidden, topk = 9, True, staticmethod(polytope.topk)

        def maximize(self, scores: Tensor) -> Tensor:
            return polytope.maximize(scores)

    scores = scores_for(polytope, kind, batch=30)
    scores[3, 0] = -torch.inf
    scores[4] *= 1e6
    weights = scores_for(polytope, "normal", batch=30, seed=1)

    def results(polytope: Polytope) -> tuple[SparseDistribution, list[Tensor]]:
        leaf = scores.clone().requires_grad_()
        found = topk_sparsemax(leaf, polytope, k)
        value = (found.mean() * weights).sum() + found.entropy().sum() + found.probs[::2].square().sum()
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * weights).sum(), leaf)
        return found, [found.probs.detach(), first.detach(), second]

    (in_brief, ours), (written, theirs) = results(polytope), results(Written())
    assert torch.equal(in_brief.atoms, written.atoms)
    assert torch.equal(in_brief.row, written.row)
    assert torch.equal(in_brief.stats.exact, written.stats.exact)  # pyright: ignore
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("polytope", [BernoulliCube(32), Budget(128, 64)], ids=repr)
def test_half_precision_gradients_are_finite(polytope: Polytope, dtype: torch.dtype) -> None:
    """In float16 the lightest of some 30 atoms underflow to probability 0."""
    leaf = scores_for(polytope, "small", batch=32).to(dtype).requires_grad_()
    found = sparsemap(leaf, polytope, coding="pairs")
    value = found.entropy() + found.expectation(lambda atoms, row: atoms.cumsum(-1).tanh().sum(-1))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert gradient.isfinite().all()
    precise = sparsemap(leaf.detach().double(), polytope, coding="pairs")
    torch.testing.assert_close(found.entropy().double(), precise.entropy(), atol=0, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mask", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("polytope", [Budget(10, 3), Budget(10, 3, exactly=True), Simplex(10), BernoulliCube(10)], ids=repr)
def test_large_negative_scores_forbid_like_minus_infinity(polytope: Polytope, mask: float) -> None:
    scores = scores_for(polytope, "normal").float()
    scores[:, 4:] = -torch.inf
    masked = torch.where(scores.isneginf(), mask, scores)
    for operator in OPERATORS.values():
        torch.testing.assert_close(operator(masked, polytope).mean(), operator(scores, polytope).mean())
    torch.testing.assert_close(sparsemap_marginals(masked, polytope), sparsemap_marginals(scores, polytope))


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_the_budget_projection_keeps_small_differences(offset: float) -> None:
    scores = offset + torch.tensor([[0.5, 0.25, -3.0, 0.0]], dtype=torch.float64)
    found = sparsemap_marginals(scores, Budget(4, 2, exactly=True))
    reference = projection(enumerated(Budget(4, 2, exactly=True)), scores - offset)
    torch.testing.assert_close(found, reference, atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e4, 1e6])
def test_structures_of_any_size(size: float) -> None:
    """conv(s V) and s t have the mean s mu and the same weights."""
    vertices = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = torch.randn(20, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = sparsemap(scores, Explicit(vertices))
    scaled = sparsemap(size * scores, Explicit(size * vertices))
    assert scaled.stats.converged.all()  # pyright: ignore
    torch.testing.assert_close(scaled.mean() / size, plain.mean(), atol=1e-7, rtol=0)
    torch.testing.assert_close(plain.mean(), projection(vertices, scores), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    "operator",
    [
        sparsemax,
        lambda scores: sparsemap(scores, BernoulliCube(6)).mean(),
        lambda scores: sparsemap(scores, Budget(6, 2), solver=SortedDecomposition()).mean(),
        lambda scores: sparsemap(scores, Explicit(torch.eye(6))).mean(),
        lambda scores: sparsemap_marginals(scores, ShortestPath([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (0, 3)])),
        lambda scores: topk_sparsemax(scores, BernoulliCube(6), 3).mean(),
        lambda scores: topk_sparsemax(scores, Budget(6, 2), 3).mean(),
    ],
)
def test_memory_that_holds_the_negative_of_scores_and_gradients(operator: Callable[[Tensor], Tensor]) -> None:
    """As that of `z.conj().imag` does."""
    generator = torch.Generator().manual_seed(0)
    values, gradients = (torch.randn(4, 6, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    negative, gradient = (torch.view_as_complex(given).conj().imag for given in (values, gradients))
    assert negative.is_neg()
    plain = (-values[..., 1]).requires_grad_()
    torch.testing.assert_close(operator(negative), operator(plain))
    mine, other = (
        torch.autograd.grad(operator(scores), scores, given)[0]
        for scores, given in ((negative.detach().requires_grad_(), gradient), (plain, -gradients[..., 1]))
    )
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
def test_structures_of_unlike_coordinates(size: float, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are in the hull, so that they are the mean. Beyond this size float64 does not hold the others' digits."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    table = [[0, 0, 0], [1, 0, size], [0, 1, -size], [1, 1, 2 * size], [-1, 1, size], [1, -1, 0], [0, -1, -2 * size]]
    scores = torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64)
    q = sparsemap(scores, Explicit(table))
    assert q.stats.converged.all()  # pyright: ignore
    torch.testing.assert_close(q.mean(), scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_structures_that_float64_takes_for_dependent(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    generator = torch.Generator().manual_seed(186)
    table = torch.randn(8, 3, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 1e6])
    with pytest.raises(ValueError, match="bring them to like sizes"):
        sparsemap(torch.randn(1, 3, generator=generator, dtype=torch.float64), Explicit(table))


@pytest.mark.parametrize(
    ("table", "scores"),
    [
        ([[-1, 0], [0, 1], [1, 0], [0, -1]], [-torch.inf, 0.3]),
        ([[0.01, 1, 1], [0, 0, 0], [0, 0.5, 0]], [-torch.inf, 0.3, 5.0]),
    ],
)
def test_forbidden_entries_of_structures_that_are_not_binary(table: list[list[float]], scores: list[float]) -> None:
    """Every structure with a nonzero there is out, whatever its sign or size."""
    polytope, row = Explicit(table), torch.tensor([scores], dtype=torch.float64)
    vertices = torch.tensor(table, dtype=torch.float64)
    left = vertices[vertices[:, 0] == 0]
    wanted = projection(left, torch.where(row.isneginf(), 0, row))
    torch.testing.assert_close(sparsemap(row, polytope).mean(), wanted, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gibbs_of_half_precision_scores(dtype: torch.dtype) -> None:
    for polytope in (BernoulliCube(64), Budget(64, 32), Simplex(64)):
        scores = scores_for(polytope, "large").to(dtype)
        rough, precise = polytope.gibbs(scores), polytope.gibbs(scores.double())
        drawn = precise.sample(generator=torch.Generator().manual_seed(0))
        eps = torch.finfo(dtype).eps
        assert rough.entropy().dtype == rough.sample().dtype == dtype
        torch.testing.assert_close(rough.log_prob(drawn.to(dtype)).double(), precise.log_prob(drawn), atol=0.01, rtol=2 * eps)
        torch.testing.assert_close(rough.entropy().double(), precise.entropy(), atol=0.01, rtol=2 * eps)


@pytest.mark.parametrize("solver", [ActiveSet(max_iter=50), SortedDecomposition()], ids=["active set", "sorted"])
@pytest.mark.parametrize("polytope", SHAPES[:4], ids=repr)
def test_nan_that_nobody_checked_for_is_not_converged(polytope: Polytope, solver: Solver) -> None:
    scores = scores_for(polytope, "normal", batch=3)
    scores[1, 2] = torch.nan
    found = sparsemap(scores, polytope, solver=solver, check=False).stats
    assert isinstance(found, SolverStats)
    assert found.converged.tolist() == [True, False, True]


def test_few_numbers_are_not_worth_a_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def parts(*sizes: int) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        in_threads(lambda part: seen.append((part.start, part.stop)), *sizes)
        return sorted(seen)

    assert parts(9) == parts(9, 10**9) == [(0, 3), (3, 6), (6, 9)]
    assert parts(9, 2 * WORTH_A_THREAD) == [(0, 4), (4, 9)]
    assert parts(9, 10) == [(0, 9)]
    assert parts(2) == [(0, 1), (1, 2)]
    assert parts(0) == parts(0, 0) == []


def test_autocast_leaves_scores_and_probabilities_as_they_are() -> None:
    cube, table = BernoulliCube(8), Explicit(BernoulliCube(8).vertices())
    scores = 3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    def work() -> list[Tensor]:
        gibbs, best = table.gibbs(scores), KBest(cube, 3)(scores)
        operators = [sparsemap(scores, cube), topk_sparsemax(scores, table, 4), topk_sparsemax(scores, cube, 4)]
        dense = DenseMarginalize(cube)(scores, lambda atoms, row: (atoms * torch.arange(8.0)).sum(-1))
        return [
            gibbs.entropy(),
            gibbs.log_prob(cube.maximize(scores)),
            best.scores,
            dense.value,
            *(q.mean() for q in operators),
        ]

    with torch.autocast("cpu", torch.bfloat16):
        cast = work()
    for found, wanted in zip(cast, work(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


def test_structures_have_no_gradient_though_their_table_has() -> None:
    class Learned(Polytope):
        dim = 3

        def __init__(self) -> None:
            self.table = torch.eye(3).requires_grad_()

        def maximize(self, scores: Tensor) -> Tensor:
            return self.table.to(scores)[(scores @ self.table.to(scores).T).argmax(-1)]

    scores = torch.tensor([[0.3, 0.1, -1.0]], requires_grad=True)
    value = topk_sparsemax(scores, Learned(), 2).expectation(lambda atoms, row: atoms @ torch.arange(3.0))
    (found,) = torch.autograd.grad(value.sum(), scores)
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0.5, 0.0]]))
