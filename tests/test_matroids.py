"""Spanning trees and matroids. Truth is every set of edges (items) for which the definition, written in Python, holds."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from cases import projection
from matroid_cases import CASES, GRAPHS, at_most_two, case, one_of_each, present
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from sparsemarg.kernels import compiled
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Budget, Matroid, Product, Simplex, SpanningTree, topk
from sparsemarg.oracles.trees.heaviest_forest import heaviest_forest
from sparsemarg.verification import parametrize_with_checks
from structures import as_set, assert_k_best, assert_random_problems, assert_same_bits, scores_of

KITE = SpanningTree([(0, 1), (1, 2), (0, 2), (2, 3)])


@pytest.mark.parametrize("name", CASES)
def test_vertices_and_maximize(name: str) -> None:
    polytope, structures = case(name)
    listed = polytope.vertices()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(listed) == len(structures)
    assert as_set(listed) == as_set(structures)
    for dtype in (torch.float32, torch.float64):
        scores = scores_of(polytope, 100).to(dtype)
        found = polytope.maximize(scores)
        assert found.dtype == dtype
        assert torch.equal(found.double(), structures[(scores.double() @ structures.T).argmax(-1)])
    for scores in (scores_of(polytope, 50).round(), torch.zeros(2, polytope.dim, dtype=torch.float64)):
        found = polytope.maximize(scores)
        assert as_set(found) <= as_set(structures)
        assert torch.equal((found * scores).sum(-1), (scores @ structures.T).amax(-1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 5, 50])
def test_k_best(name: str, k: int) -> None:
    assert_k_best(*case(name), k)


@pytest.mark.parametrize("name", CASES)
def test_forbidden_items(name: str) -> None:
    """Rows of random `-inf` give what the allowed structures alone give; rows that allow none are refused by number."""
    polytope, structures = case(name)
    blocked = torch.rand(40, polytope.dim, generator=torch.Generator().manual_seed(2)) < 0.3
    scores = scores_of(polytope, 40).masked_fill(blocked, -torch.inf)
    for row in range(40):
        if isinstance(polytope, SpanningTree) and len(present(polytope, blocked[row])) < polytope.nodes:
            continue  # a smaller graph: see below
        one = scores[row : row + 1]
        allowed = structures[~((structures != 0) & blocked[row]).any(-1)]
        if len(allowed) == 0:
            with pytest.raises(ValueError, match="row 0 allows no structure"):
                sparsemap(one, polytope)
            assert not topk(polytope, one, 2)[1].any()
            continue
        finite = torch.where(blocked[row], 0, scores[row])
        assert torch.equal(polytope.maximize(one)[0], allowed[(allowed @ finite).argmax()])
        found, valid = topk(polytope, one, 4)
        assert int(valid.sum()) == min(4, len(allowed))
        totals = (allowed @ finite).sort(descending=True).values[:4]
        torch.testing.assert_close(found[0][valid[0]] @ finite, totals, rtol=0, atol=1e-12)
        torch.testing.assert_close(sparsemap(one, polytope).mean(), projection(allowed, finite[None]), rtol=0, atol=1e-8)


def test_everything_forbidden_is_refused() -> None:
    for name in ("triangle", "uniform"):
        polytope = CASES[name]()
        scores = torch.zeros(2, polytope.dim)
        scores[1] = -torch.inf
        with pytest.raises(ValueError, match="row 1 allows no structure"):
            sparsemap(scores, polytope)
        assert not topk(polytope, scores, 2)[1][1].any()


def test_mixed_graphs_give_what_each_gives_alone() -> None:
    """One by one the same bits; as a graph of its own the same best, k best and mean."""
    edges = GRAPHS["wheel"]
    large = SpanningTree(edges)
    kept = [{0, 1, 2, 3, 4}, {0, 1}, {0, 1, 2}, {1, 2, 3, 4}, {0, 2, 3, 4}, {1, 4}]
    nodes = torch.tensor([[node in some for node in range(5)] for some in kept])
    scores = large.mask(scores_of(large, 6), nodes)
    together = sparsemap(scores, large)
    best, (kbest, valid) = large.maximize(scores), large.topk(scores, 5)
    for row, some in enumerate(kept):
        one = scores[row : row + 1]
        alone, mine = sparsemap(one, large), together.row == row
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        assert torch.equal(large.maximize(one)[0], best[row])
        assert torch.equal(large.topk(one, 5)[0][0], kbest[row])
        inside = [place for place, edge in enumerate(edges) if set(edge) <= some]
        number = {node: place for place, node in enumerate(sorted(some))}
        small = SpanningTree([(number[edges[place][0]], number[edges[place][1]]) for place in inside])
        own = scores[row, inside][None]
        assert torch.equal(small.maximize(own)[0], best[row, inside])
        assert int(best[row].sum()) == len(some) - 1
        listed, exists = small.topk(own, 5)
        assert torch.equal(exists[0], valid[row])
        assert torch.equal(listed[0], kbest[row][:, inside])
        torch.testing.assert_close(sparsemap(own, small).mean()[0], together.mean()[row, inside], rtol=0, atol=1e-8)


def test_a_larger_graph_by_scipy() -> None:
    edges = list(itertools.combinations(range(30), 2))
    polytope = SpanningTree(edges)
    scores = 1 + torch.rand(5, len(edges), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = polytope.maximize(scores)
    ends = torch.tensor(edges).T.numpy()
    for row in range(5):
        lightest = minimum_spanning_tree(coo_array((3 - scores[row].numpy(), (ends[0], ends[1])), shape=(30, 30)))
        assert int(found[row].sum()) == 29
        torch.testing.assert_close(float(found[row] @ scores[row]), 3 * 29 - float(lightest.sum()))


def kruskal(scores: list[float], edges: list[tuple[int, int]], nodes: int) -> list[int]:
    piece, chosen = list(range(nodes)), [0] * len(edges)
    for place in sorted(range(len(edges)), key=lambda place: -scores[place]):  # stable: of equal ones the lower first
        one, other = (piece[node] for node in edges[place])
        if one != other and scores[place] > -math.inf:
            piece = [one if here == other else here for here in piece]
            chosen[place] = 1
    return chosen


@pytest.mark.parametrize("nodes", [2, 3, 7, 8, 9, 40])
@pytest.mark.parametrize("levels", [1, 3, None])
def test_forests_by_kruskal(nodes: int, levels: int | None) -> None:
    """Ties and all, of graphs in pieces, with several edges between two nodes; paths make the longest chains of pieces."""
    generator = torch.Generator().manual_seed(nodes)
    several = torch.randint(nodes, (3 * nodes, 2), generator=generator)
    path = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)], 1)
    for ends in (several[several[:, 0] != several[:, 1]], path):
        scores = torch.randn(20, len(ends), generator=generator)
        if levels is not None:
            scores = (scores * levels / 3).round()
        scores[:10].masked_fill_(torch.rand(10, len(ends), generator=generator) < 0.3, -torch.inf)
        if levels is None:
            scores[0] = torch.arange(len(ends))  # of a path, each takes the next
        found = heaviest_forest(scores, scores.sort(descending=True, stable=True).indices, ends, nodes)
        edges = [(int(one), int(other)) for one, other in ends]
        assert found.int().tolist() == [kruskal(row, edges, nodes) for row in scores.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nodes", [2, 5, 9, 40])
def test_compiled_trees_are_the_plain_ones(nodes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two threads: ties, missing edges, smaller graphs, graphs in pieces, no edge at all, NaN."""
    generator = torch.Generator().manual_seed(nodes)
    several = torch.randint(nodes, (2 * nodes, 2), generator=generator).tolist()
    polytope = SpanningTree([*itertools.pairwise(range(nodes)), *((one, other) for one, other in several if one != other)])
    normal = torch.randn(polytope.dim, 20, dtype=dtype, generator=generator).T  # not contiguous
    sparse = torch.where(torch.rand(normal.shape, generator=generator) < 0.3, -torch.inf, normal)
    kept = torch.rand(20, nodes, generator=generator) < 0.7
    few = torch.where(kept[:, torch.tensor(polytope.edges)].all(-1), normal, -torch.inf)  # without nodes, in pieces maybe
    broken = torch.where(torch.rand(normal.shape, generator=generator) < 0.1, torch.nan, normal)
    scores = torch.cat([normal, (2 * normal).round(), 0 * normal, sparse, few, broken, torch.full_like(normal[:1], -torch.inf)])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    assert compiled(".kernels.spanning_rows", "sparsemarg.oracles", "best", scores.device) is not None
    for given in (scores, normal):
        found = polytope.maximize(given)
        with monkeypatch.context() as patch:
            patch.setenv("SPARSEMARG_KERNELS", "off")
            assert found.dtype == dtype
            assert torch.equal(found, polytope.maximize(given))
    with pytest.raises(ValueError, match="take scores"):
        polytope.maximize(scores[:, 1:])


def test_nodes_of_scores_that_are_shared_or_forbidden() -> None:
    """What is there is said by `nodes`; edges that are forbidden already stay so."""
    kept = torch.tensor([[True, True, True, False], [True] * 4])
    assert KITE.mask(torch.zeros(1, 4), kept).tolist() == [[0, 0, 0, -torch.inf], [0] * 4]
    blocked = torch.tensor([[0.0, -torch.inf, -torch.inf, 0.0]])
    assert torch.equal(KITE.mask(blocked, torch.ones(1, 4, dtype=torch.bool)), blocked)
    mapped = torch.func.vmap(lambda scores: KITE.mask(scores, kept[0]))(torch.zeros(3, 4))
    assert mapped.isneginf().sum(0).tolist() == [0, 0, 0, 3]


def test_known_matroids() -> None:
    scores = scores_of(Budget(5, 2), 50)
    assert torch.equal(Matroid(5, at_most_two).maximize(scores), Budget(5, 2, exactly=True).maximize(scores))
    assert torch.equal(Matroid(5, at_most_two, bases=False).maximize(scores), Budget(5, 2).maximize(scores))
    product = Product(Simplex(2), Simplex(3))
    assert torch.equal(Matroid(5, one_of_each).maximize(scores), product.maximize(scores))
    graphic = SpanningTree(GRAPHS["wheel"])
    incidence = torch.zeros(8, 5, dtype=torch.float64)
    for place, (one, other) in enumerate(graphic.edges):
        incidence[place, one], incidence[place, other] = 1, -1
    same = Matroid(8, lambda sets: torch.linalg.matrix_rank(incidence * sets[..., None]) == sets.sum(-1))
    assert same.rank == 4
    scores = scores_of(graphic, 50)
    assert torch.equal(same.maximize(scores), graphic.maximize(scores))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SpanningTree([]), "edges must be one or more pairs"),
        (lambda: SpanningTree([(0, 1), (2, 2)]), r"edge 1, \(2, 2\), must join two different nodes of 0..2"),
        (lambda: SpanningTree([(0, 1), (1, 5)], 3), r"edge 1, \(1, 5\), must join two different nodes of 0..2"),
        (lambda: SpanningTree([(0, 1), (2, 3)]), "the graph has 2 pieces, so it has no spanning tree"),
        (lambda: SpanningTree([(0, 1)], 3), "the graph has 2 pieces"),
        (
            lambda: KITE.mask(torch.zeros(1, 4), torch.tensor([[True, True, False, True]])),
            "problem 0 has node 3, but no edge from there to another of its nodes",
        ),
        (
            lambda: KITE.mask(torch.zeros(2, 4), torch.ones(2, 7, dtype=torch.bool)),
            r"nodes must be bool \[2, 4\], the nodes that are there, not torch.bool \[2, 7\]",
        ),
        (
            lambda: SpanningTree([(0, 1)]).mask(torch.zeros(2, 1), torch.tensor([[True, True], [True, False]])),
            "problem 1 has 1 nodes, but needs at least 2",
        ),
        (lambda: SpanningTree([(0, 1), (1, 2, 3)]), "must be pairs of ints, .* but number 1 is"),  # pyright: ignore
        (lambda: SpanningTree(list(itertools.combinations(range(13), 2))).halfspaces(), r"2\^13 halfspaces, too many"),
        (lambda: SpanningTree(list(itertools.combinations(range(13), 2))).vertices(), "too many to enumerate"),
        (lambda: Matroid(3, lambda sets: sets.any(-1)), "not even the empty set is independent"),
        (lambda: Matroid(3, lambda sets: sets.sum(-1)), r"\[B\] bool; it returned torch.int64 \[1\]"),
        (lambda: Matroid(3, lambda sets: True), r"\[B\] bool; it returned bool"),  # pyright: ignore[reportArgumentType]
        (lambda: Matroid(3, 3), "independent must be a function of sets .* not 3"),  # pyright: ignore[reportArgumentType]
        (lambda: Matroid(0, at_most_two), "Matroid: dim must be at least 1, not 0"),
        (lambda: Matroid(13, at_most_two).halfspaces(), r"2\^13 halfspaces, too many"),
        (lambda: Matroid(21, at_most_two).vertices(), r"2\^21 structures are too many"),
    ],
)
def test_bad_input_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 3)])
@pytest.mark.parametrize("name", ["triangle", "only the empty set"])
def test_any_batch(name: str, shape: tuple[int, ...]) -> None:
    polytope = CASES[name]()
    assert sparsemap(torch.randn(shape), polytope).mean().shape == shape
    assert topk(polytope, torch.randn(shape), 2)[0].shape == (*shape[:-1], 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wheel", "linear"])
def test_sparsemap_on_random_problems(name: str) -> None:
    assert_random_problems(CASES[name]())


VERIFIED = [CASES[name]() for name in ("triangle", "complete", "linear, independent", "partition")]


@parametrize_with_checks(VERIFIED, batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([VERIFIED[0], VERIFIED[3]], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()
