"""The derivative of the mean is the projector of the whole face, of which the support may span a part only."""

import itertools
from collections.abc import Callable

import pytest
import torch
from sparsemarg.layers.functional import lp_sparsemap, sparsemap, sparsemap_loss, sparsemap_marginals
from sparsemarg.layers.solvers import ActiveSet, SortedDecomposition
from sparsemarg.oracles import (
    Arborescence,
    BernoulliCube,
    Budget,
    Explicit,
    Factor,
    FactorGraph,
    LinearChain,
    Polytope,
    ShortestPath,
    SpanningTree,
)
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


class Bare(Polytope):
    """A polytope's oracle alone, so that nothing has a closed form."""

    def __init__(self, whole: Polytope, regularized: slice | None = None) -> None:
        self.dim, self.whole, self.regularized = whole.dim, whole, regularized

    def maximize(self, scores: Tensor) -> Tensor:
        return self.whole.maximize(scores)


def normal(batch: int, dim: int, scale: float, seed: int = 0) -> Tensor:
    return scale * torch.randn(batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jacobian(call: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """d mu / d t of each row, [B, D, D]."""
    leaf = scores.clone().requires_grad_()
    mean = call(leaf)
    return torch.stack([torch.autograd.grad(mean[:, i].sum(), leaf, retain_graph=True)[0] for i in range(scores.shape[1])], 1)


def lost_by_the_support(scores: Tensor, polytope: Polytope) -> float:
    """How much of the derivative the support does not span: the test would show nothing if that were 0."""
    part = jacobian(lambda leaf: sparsemap(leaf, polytope).mean(), scores)
    whole = jacobian(lambda leaf: sparsemap_marginals(leaf, polytope), scores)
    return float((whole - part).norm() / whole.norm())


@pytest.mark.parametrize("whole", [BernoulliCube(96), Budget(96, 40), Budget(96, 40, exactly=True)], ids=repr)
def test_of_large_faces_against_the_closed_form(whole: Polytope) -> None:
    scores = 0.5 + normal(4, 96, 0.15)
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, Bare(whole)), scores)
    torch.testing.assert_close(found, jacobian(lambda leaf: sparsemap_marginals(leaf, whole), scores), atol=1e-6, rtol=0)
    assert lost_by_the_support(scores, Bare(whole)) > 0.2


EDGES = list(itertools.combinations(range(10), 2))
# With the scale of scores, and whether the support of the default solver misses some of the derivative there.
STRUCTURED: dict[str, tuple[Polytope, float, bool]] = {
    "spanning tree": (SpanningTree(EDGES), 0.1, False),
    "arborescence": (Arborescence(12), 0.1, True),
    "chain": (LinearChain(20, 5), 0.1, True),
    "chain, labels regularised": (LinearChain(20, 5, regularize_transitions=False), 0.1, False),
    "paths": (ShortestPath.grid(9, 9), 0.1, False),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_of_structures_against_differences(name: str) -> None:
    polytope, scale, loses = STRUCTURED[name]
    scores, direction = normal(6, polytope.dim, scale), normal(6, polytope.dim, 1, seed=1)
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(sparsemap_marginals(leaf, polytope), leaf, direction)
    step = 1e-6
    ahead, behind = (sparsemap_marginals(scores + way * step * direction, polytope) for way in (1, -1))
    here = sparsemap_marginals(scores, polytope)
    straight = (ahead - 2 * here + behind).abs().amax(-1) < 1e-10  # no kink within the step
    assert straight.sum() >= 3
    wanted = (ahead - behind) / (2 * step)
    torch.testing.assert_close(found[straight], wanted[straight], atol=1e-5, rtol=0)
    assert (lost_by_the_support(scores, polytope) > 1e-3) == loses


def test_equal_scores_have_the_derivative_of_each() -> None:
    """Tied coordinates share their structures; the mean can still move in each of them."""
    scores = torch.full((2, 6), 0.3, dtype=torch.float64)
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, Bare(BernoulliCube(6))), scores)
    torch.testing.assert_close(found, torch.eye(6, dtype=torch.float64).expand(2, 6, 6), atol=1e-9, rtol=0)
    assert lost_by_the_support(scores, Bare(BernoulliCube(6))) > 0.5


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_of_real_structures_of_any_size(size: float) -> None:
    """Corners of a box of edge 2 `size`: the mean is inside where scores are, and moves with them there."""
    corners = size * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    scores = normal(3, 6, size)
    inside = (scores.abs() < size).double()
    assert 0 < inside.mean() < 1
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, Explicit(corners)), scores)
    torch.testing.assert_close(found, torch.diag_embed(inside), atol=1e-8, rtol=0)


def test_only_some_coordinates_regularised() -> None:
    """Scores of the rest do not move a cube's means, and neither do those of the others the rest's."""
    polytope = Bare(BernoulliCube(60), regularized=slice(0, 55))
    scores = torch.cat([0.5 + normal(3, 55, 0.2), normal(3, 5, 1)], 1)
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, polytope), scores)
    inside = torch.cat([(scores[:, :55] > 0) & (scores[:, :55] < 1), torch.zeros(3, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(found, torch.diag_embed(inside.double()), atol=1e-6, rtol=0)
    assert lost_by_the_support(scores, polytope) > 0.1


def test_forbidden_coordinates_do_not_move() -> None:
    scores = 0.5 + normal(3, 80, 0.15)
    scores[:, ::7] = -torch.inf
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, Bare(BernoulliCube(80))), scores)
    torch.testing.assert_close(found, torch.diag_embed(((scores > 0) & (scores < 1)).double()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 0.3, 10.0])
@pytest.mark.parametrize("dim", [28, 40])
def test_of_many_rows(dim: int, scale: float) -> None:
    """A row is right or wrong by what one direction's share in a random vector is: of many rows none may be wrong."""
    scores, direction = normal(500, dim, scale, seed=dim), normal(500, dim, 1, seed=1)
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(sparsemap_marginals(leaf, Bare(BernoulliCube(dim))), leaf, direction)
    torch.testing.assert_close(found, direction * ((scores > 0) & (scores < 1)), atol=1e-6, rtol=0)


class Box(Polytope):
    """Corners of [-edge, edge]^D."""

    def __init__(self, dim: int, edge: float) -> None:
        self.dim, self.edge = dim, edge

    def maximize(self, scores: Tensor) -> Tensor:
        return torch.where(scores > 0, self.edge, -self.edge).to(scores)


@pytest.mark.parametrize(("edge", "scale", "one"), [(1e-3, 1e-3, 1.0), (1e-3, 1e-3, 1e3), (1e4, 0.01, 0.0), (1e4, 1e4, 0.0)])
def test_of_structures_and_scores_of_unlike_size(edge: float, scale: float, one: float) -> None:
    scores, direction = normal(100, 64, scale), normal(100, 64, 1, seed=1)
    scores[:, 0] += one
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(sparsemap_marginals(leaf, Box(64, edge)), leaf, direction)
    torch.testing.assert_close(found, direction * (scores.abs() < edge), atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e3])
def test_where_the_mean_is_zero_but_for_rounding(level: float) -> None:
    """Centred permutations under equal scores: all of the hull is the face."""
    table = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.float64)
    scores = torch.full((2, 4), level, dtype=torch.float64)
    found = jacobian(lambda leaf: sparsemap_marginals(leaf, Explicit(table - table.mean(0))), scores)
    torch.testing.assert_close(found, (torch.eye(4, dtype=torch.float64) - 0.25).expand(2, 4, 4), atol=1e-9, rtol=0)


def test_rows_that_do_not_converge_have_the_derivative_of_their_support_in_any_mode() -> None:
    polytope = LinearChain(20, 5, regularize_transitions=False)
    scores, vector = normal(2, polytope.dim, 1e-5), normal(2, polytope.dim, 1, seed=1)

    def mean(values: Tensor, solver: ActiveSet | None = None) -> Tensor:
        return sparsemap_marginals(values, polytope, solver=solver, check=False)

    leaf = scores.clone().requires_grad_()
    assert not sparsemap(scores, polytope, check=False).stats.converged.any()  # pyright: ignore
    (wanted,) = torch.autograd.grad(mean(leaf, ActiveSet()), leaf, vector)
    (found,) = torch.autograd.grad(mean(leaf), leaf, vector)
    torch.testing.assert_close(found, wanted)
    transformed = torch.func.grad(lambda values: (mean(values) * vector).sum())(scores)
    torch.testing.assert_close(transformed, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


CASES: dict[str, tuple[Polytope, Tensor]] = {
    "large face": (Bare(BernoulliCube(80)), 0.5 + normal(2, 80, 0.15)),
    "tied": (Bare(BernoulliCube(4)), torch.full((2, 4), 0.4, dtype=torch.float64)),
    "chain in part": (LinearChain(4, 3, regularize_transitions=False), normal(2, 12 + 27, 0.5)),
    "no row": (Bare(BernoulliCube(4)), torch.zeros(0, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_ask_for_it(name: str) -> None:
    polytope, scores = CASES[name]
    vector = normal(len(scores), polytope.dim, 1, seed=2)

    def mean(values: Tensor) -> Tensor:
        return sparsemap_marginals(values, polytope)

    def pulled(call: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = scores.clone().requires_grad_()
        return torch.autograd.grad(call(leaf), leaf, vector)[0]

    wanted = pulled(mean)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(mean(forward_ad.make_dual(scores, vector))).tangent
    leaf = scores.clone().requires_grad_()
    batched = torch.autograd.grad(mean(leaf), leaf, torch.stack([vector, -vector]), is_grads_batched=True)[0]
    found = {
        "forward mode": tangent,
        "jvp": torch.func.jvp(mean, (scores,), (vector,))[1],
        "grad": torch.func.grad(lambda values: (mean(values) * vector).sum())(scores),
        "checkpoint": pulled(lambda values: checkpoint(mean, values, use_reentrant=False)),  # pyright: ignore
        "reentrant checkpoint": pulled_by_backward(mean, scores, vector),
        "batched": batched[0],
        "loss": pulled_twice(polytope, scores, vector),
    }
    for way, value in found.items():
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=0, msg=lambda text, way=way: f"{way}: {text}")
    torch.testing.assert_close(batched[1], -wanted, atol=1e-9, rtol=0)


def pulled_by_backward(call: Callable[[Tensor], Tensor], scores: Tensor, vector: Tensor) -> Tensor:
    leaf = scores.clone().requires_grad_()
    checkpoint(call, leaf, use_reentrant=True).backward(vector)  # pyright: ignore
    assert leaf.grad is not None
    return leaf.grad


def pulled_twice(polytope: Polytope, scores: Tensor, vector: Tensor) -> Tensor:
    """The second derivative of the SparseMAP loss, whose first is mu - y."""
    leaf = scores.clone().requires_grad_()
    loss = sparsemap_loss(leaf, polytope.maximize(scores), polytope)
    (first,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
    return torch.autograd.grad(first, leaf, vector)[0]


def test_compiled() -> None:
    polytope, scores = CASES["large face"]
    leaf = scores.clone().requires_grad_()
    mean = torch.compile(lambda values: 2 * sparsemap_marginals(values, polytope), backend="eager")(leaf)
    (found,) = torch.autograd.grad(mean.sum(), leaf)
    torch.testing.assert_close(found, 2 * ((scores > 0) & (scores < 1)).double(), atol=1e-6, rtol=0)


def test_in_the_surroundings_of_others() -> None:
    """A default device, vectorised forward mode, hooks that are disabled; and hooks of the caller see W."""
    polytope, scores = CASES["large face"]
    wanted = torch.diag_embed(((scores > 0) & (scores < 1)).double())

    def mean(values: Tensor) -> Tensor:
        return sparsemap_marginals(values, polytope)

    with torch.device("meta"):
        torch.testing.assert_close(jacobian(mean, scores), wanted, atol=1e-6, rtol=0)
    found = torch.autograd.functional.jacobian(mean, scores, strategy="forward-mode", vectorize=True)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(torch.stack([found[row, :, row] for row in range(2)]), wanted, atol=1e-6, rtol=0)
    leaf = scores.clone().requires_grad_()
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        found = mean(leaf)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaf)[0], wanted.sum(1), atol=1e-6, rtol=0)
    shapes: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (shapes.append(tensor.shape), tensor)[1], lambda kept: kept):
        mean(leaf)
    assert (2, 80, 80) in shapes


def test_hooks_and_values_see_nothing_of_it() -> None:
    """Hooks of the scores run once, and the mean has the same bits whether derivatives are wanted or not."""
    polytope, scores = CASES["large face"]
    seen: list[Tensor] = []
    leaf = scores.clone().requires_grad_()
    leaf.register_hook(seen.append)
    mean = sparsemap_marginals(leaf, polytope)
    assert not seen
    mean.sum().backward()
    assert len(seen) == 1
    assert torch.equal(mean, sparsemap_marginals(scores, polytope))


def test_float32() -> None:
    polytope, scores = CASES["large face"]
    leaf = scores.float().requires_grad_()
    mean = sparsemap_marginals(leaf, polytope)
    assert mean.dtype == torch.float32
    (found,) = torch.autograd.grad(mean.sum(), leaf)
    torch.testing.assert_close(found, ((leaf > 0) & (leaf < 1)).float(), atol=1e-5, rtol=0)


def test_a_given_solver_has_the_derivative_of_its_support() -> None:
    polytope, scores = CASES["large face"]
    with_solver = jacobian(lambda leaf: sparsemap_marginals(leaf, polytope, solver=ActiveSet()), scores)
    torch.testing.assert_close(with_solver, jacobian(lambda leaf: sparsemap(leaf, polytope).mean(), scores))
    closed = jacobian(lambda leaf: sparsemap_marginals(leaf, BernoulliCube(80), solver=SortedDecomposition()), scores)
    torch.testing.assert_close(closed, torch.diag_embed(((scores > 0) & (scores < 1)).double()), atol=1e-6, rtol=0)


def test_of_a_factor_graph() -> None:
    """Two halves of a cube as factors of their own: the mean is that of the cube."""
    dim = 64
    graph = FactorGraph(2 * dim, [Factor(Bare(BernoulliCube(dim)), list(range(k * dim, (k + 1) * dim))) for k in range(2)])
    scores = 0.5 + normal(2, 2 * dim, 0.15)
    found = jacobian(lambda leaf: lp_sparsemap(leaf, graph).mean, scores)
    torch.testing.assert_close(found, torch.diag_embed(((scores > 0) & (scores < 1)).double()), atol=1e-6, rtol=0)


def test_asked_for_little_where_nothing_is_missing() -> None:
    """One structure more a row; none without a gradient."""

    class Counted(Bare):
        asked = 0

        def maximize(self, scores: Tensor) -> Tensor:
            self.asked += 1
            return super().maximize(scores)

    counts = []
    for wanted in (False, True):
        polytope = Counted(BernoulliCube(8))
        sparsemap_marginals(normal(5, 8, 1).requires_grad_(wanted), polytope)
        counts.append(polytope.asked)
    assert counts[1] == counts[0] + 1
