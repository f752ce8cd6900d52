"""Polytopes of dynamic programs. Truth is the list of all structures, made without any dynamic program, and softmax over it."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from cases import dependency_trees
from sparsemarg.layers import SparseMAP
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Arborescence, Knapsack, LinearChain, ProjectiveTree, Segmentation, ShortestPath
from sparsemarg.oracles.programs.derivations import Derivations
from sparsemarg.oracles.programs.hyperedges import Edge
from sparsemarg.oracles.programs.hypergraph import Hypergraph
from sparsemarg.verification import parametrize_with_checks
from structures import as_set, assert_gibbs, assert_k_best, assert_random_problems, assert_same_bits, scores_of
from torch import Tensor


def chains(length: int, states: int) -> Tensor:
    rows = []
    for sequence in itertools.product(range(states), repeat=length):
        unary, pairs = torch.zeros(length, states), torch.zeros(length - 1, states, states)
        for t, state in enumerate(sequence):
            unary[t, state] = 1
        for t, (one, two) in enumerate(itertools.pairwise(sequence)):
            pairs[t, one, two] = 1
        rows.append(torch.cat([unary.flatten(), pairs.flatten()]))
    return torch.stack(rows).double()


def arc_sets(arcs: list[tuple[int, int]], source: int, target: int) -> Tensor:
    """Paths by walking the graph."""
    rows = []

    def walk(node: int, used: list[int]) -> None:
        if node == target:
            rows.append(torch.zeros(len(arcs)).index_fill(0, torch.tensor(used), 1))
        for place, (tail, head) in enumerate(arcs):
            if tail == node and node != target:
                walk(head, [*used, place])

    walk(source, [])
    return torch.stack(rows).double()


def segmentations(length: int, labels: int, width: int) -> Tensor:
    rows = []
    for cuts in itertools.product([False, True], repeat=length - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [length]
        pieces = list(zip([0, *ends[:-1]], ends, strict=True))
        if any(end - start > width for start, end in pieces):
            continue
        for names in itertools.product(range(labels), repeat=len(pieces)):
            row = torch.zeros(length, width, labels)
            for (start, end), name in zip(pieces, names, strict=True):
                row[start, end - start - 1, name] = 1
            rows.append(row.flatten())
    return torch.stack(rows).double()


def packings(weights: list[int], capacity: int) -> Tensor:
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(weights))), dtype=torch.float64)
    return bits[bits @ torch.tensor(weights, dtype=torch.float64) <= capacity]


ARCS = [(0, 2), (0, 1), (1, 2), (2, 4), (1, 3), (3, 4), (2, 3), (5, 4), (4, 6), (0, 4)]  # 5 and 6 are on no path to 4

CASES: dict[str, tuple[Callable[[], Derivations], Callable[[], Tensor]]] = {
    "chain": (lambda: LinearChain(4, 3), lambda: chains(4, 3)),
    "binary chain": (lambda: LinearChain(6, 2), lambda: chains(6, 2)),
    "chain of one": (lambda: LinearChain(1, 4), lambda: chains(1, 4)),
    "one state": (lambda: LinearChain(3, 1), lambda: chains(3, 1)),
    "paths": (lambda: ShortestPath(ARCS, 0, 4), lambda: arc_sets(ARCS, 0, 4)),
    "grid": (
        lambda: ShortestPath.grid(3, 4, diagonal=True),
        lambda: arc_sets(list(ShortestPath.grid(3, 4, diagonal=True).arcs), 0, 11),
    ),
    "segments": (lambda: Segmentation(5, 2, 3), lambda: segmentations(5, 2, 3)),
    "knapsack": (lambda: Knapsack([3, 1, 4, 2, 0], 5), lambda: packings([3, 1, 4, 2, 0], 5)),
    "trees": (lambda: ProjectiveTree(4), lambda: dependency_trees(4, projective=True, single_root=False)),
    "rooted trees": (
        lambda: ProjectiveTree(4, single_root=True),
        lambda: dependency_trees(4, projective=True, single_root=True),
    ),
    "one word": (lambda: ProjectiveTree(1), lambda: dependency_trees(1, projective=True, single_root=False)),
}


@cache
def case(name: str) -> tuple[Derivations, Tensor]:
    polytope, structures = CASES[name]
    return polytope(), structures()


@pytest.mark.parametrize("name", CASES)
def test_structures_are_all_that_there_are(name: str) -> None:
    polytope, structures = case(name)
    listed = polytope.vertices()
    assert len(as_set(listed)) == len(listed) == len(structures)
    assert as_set(listed) == as_set(structures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_maximize(name: str, dtype: torch.dtype) -> None:
    polytope, structures = case(name)
    scores = scores_of(polytope, 200).to(dtype)
    found = polytope.maximize(scores)
    assert found.dtype == dtype
    assert torch.equal(found.double(), structures[(scores.double() @ structures.T).argmax(-1)])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 4, 300])
def test_k_best(name: str, k: int) -> None:
    assert_k_best(*case(name), k, rows=20)


@pytest.mark.parametrize("name", CASES)
def test_gibbs(name: str) -> None:
    assert_gibbs(*case(name))


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_distribution(name: str) -> None:
    """Each structure's frequency within 5 standard errors."""
    polytope, structures = case(name)
    scores = scores_of(polytope, 2, seed=3)
    probs = (scores @ structures.T).softmax(-1)
    count = 20_000
    drawn = polytope.gibbs(scores).sample((count,), torch.Generator().manual_seed(0))
    assert drawn.shape == (count, 2, polytope.dim)
    key = torch.randn(polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys = structures @ key
    for row in range(2):
        match = (drawn[:, row] @ key)[:, None].sub(keys).abs() < 1e-9
        assert (match.sum(1) == 1).all()
        error = (match.double().mean(0) - probs[row]).abs() / (probs[row] * (1 - probs[row]) / count + 1e-9).sqrt()
        assert float(error.max()) < 5


@pytest.mark.parametrize("name", CASES)
def test_forbidden_coordinates(name: str) -> None:
    """Rows of random `-inf` give what the allowed structures alone give; rows that allow none are refused by number."""
    polytope, structures = case(name)
    blocked = torch.rand(60, polytope.dim, generator=torch.Generator().manual_seed(2)) < 0.15
    scores = scores_of(polytope, 60).masked_fill(blocked, -torch.inf)
    allowed = ~((structures[None] != 0) & blocked[:, None]).any(-1)  # [rows, structures]
    # Positions that are blocked as a whole shorten the problem: those have their own test.
    shortened = torch.zeros(60, dtype=torch.bool)
    if isinstance(polytope, LinearChain):
        shortened = polytope.parts(blocked)[0].all(-1).any(-1)
    elif isinstance(polytope, Segmentation):
        start, end = torch.arange(5)[:, None], torch.arange(5)[:, None] + torch.arange(1, 4)
        covers = (start[..., None] <= torch.arange(5)) & (torch.arange(5) < end[..., None]) & (end <= 5)[..., None]
        shortened = ~(~polytope.cells(blocked)[..., None] & covers[:, :, None]).flatten(1, 3).any(1).all(-1)
        assert not (shortened & allowed.any(-1)).any()
    elif isinstance(polytope, ProjectiveTree):
        shortened = blocked.unflatten(-1, (polytope.words, polytope.words)).all(-1).any(-1)
    some = allowed.any(-1) & ~shortened
    assert int(some.sum()) > 10
    finite = torch.where(blocked, 0, scores)[some]
    logits = (finite @ structures.T).masked_fill(~allowed[some], -torch.inf)
    assert torch.equal(polytope.maximize(scores[some]), structures[logits.argmax(-1)])
    gibbs = polytope.gibbs(scores[some])
    probs = logits.softmax(-1)
    torch.testing.assert_close(gibbs.entropy(), torch.special.entr(probs).sum(-1), rtol=0, atol=1e-10)
    found = gibbs.log_prob(structures[:, None].expand(-1, int(some.sum()), -1)).T
    torch.testing.assert_close(found, logits.log_softmax(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(gibbs.marginals(), probs @ structures, rtol=0, atol=1e-10)
    for row in (~allowed.any(-1) & ~shortened).nonzero()[:3, 0].tolist():
        for ask in (polytope.gibbs, lambda s: sparsemap(s, polytope)):
            with pytest.raises(ValueError, match="row 0 allows no structure"):
                ask(scores[row : row + 1])


SHORTER: dict[str, Callable[[int], Derivations]] = {
    "chain": lambda size: LinearChain(size, 3),
    "segments": lambda size: Segmentation(size, 2, min(size, 3)),
    "trees": lambda size: ProjectiveTree(size),
    "rooted trees": lambda size: ProjectiveTree(size, single_root=True),
}


def embedded(small: Derivations, large: Derivations, structures: Tensor) -> Tensor:
    """Structures of a shorter problem in the coordinates of the longer one."""
    if isinstance(small, LinearChain) and isinstance(large, LinearChain):
        unary, pairs = small.parts(structures)
        pad = large.length - small.length
        unary = torch.nn.functional.pad(unary, (0, 0, 0, pad))
        return large.scores(unary, torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, pad)))
    if isinstance(small, Segmentation) and isinstance(large, Segmentation):
        cells = small.cells(structures)
        pad = (0, 0, 0, large.width - small.width, 0, large.length - small.length)
        return torch.nn.functional.pad(cells, pad).flatten(-3)
    assert isinstance(small, ProjectiveTree)
    assert isinstance(large, ProjectiveTree)
    pad = large.words - small.words
    return large.scores(torch.nn.functional.pad(small.arcs.matrix(structures), (0, pad, 0, pad)))


@pytest.mark.parametrize("name", SHORTER)
def test_mixed_sizes_give_what_each_gives_alone(name: str) -> None:
    """One by one: the same structures and probabilities, to the bit.

    As a polytope of its own size: the same best structures, k best, entropies and means.
    """
    large = SHORTER[name](5)
    lengths = torch.tensor([5, 1, 3, 2, 4, 5, 1, 3])
    scores = large.mask(scores_of(large, 8), lengths)  # pyright: ignore[reportAttributeAccessIssue]
    together = sparsemap(scores, large)
    best, (kbest, valid), gibbs = large.maximize(scores), large.topk(scores, 6), large.gibbs(scores)
    for row, length in enumerate(lengths.tolist()):
        alone = sparsemap(scores[row : row + 1], large)
        mine = together.row == row
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        assert torch.equal(large.maximize(scores[row : row + 1])[0], best[row])
        assert torch.equal(large.gibbs(scores[row : row + 1]).entropy()[0], gibbs.entropy()[row])

        small = SHORTER[name](length)
        structures = embedded(small, large, small.vertices())
        own = torch.where(scores[row].isneginf(), 0, scores[row])
        totals = structures @ own
        assert torch.equal(best[row], structures[totals.argmax()])
        count = min(6, len(structures))
        assert int(valid[row].sum()) == count
        torch.testing.assert_close((kbest[row, :count] @ own), totals.sort(descending=True).values[:count])
        torch.testing.assert_close(gibbs.entropy()[row], torch.special.entr(totals.softmax(0)).sum(), rtol=0, atol=1e-10)
        back = torch.linalg.lstsq(embedded(small, large, torch.eye(small.dim, dtype=torch.float64)).T, own[:, None]).solution[
            :, 0
        ]
        expected = embedded(small, large, sparsemap(back[None], small).mean())[0]
        torch.testing.assert_close(together.mean()[row], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("polytope", "longest"),
    [
        (LinearChain(12, 4), 12),
        (ProjectiveTree(7), 7),
        (Segmentation(8, 3), 8),
        (Arborescence(9), 9),
        (Arborescence(9, single_root=True), 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [5, 64])
def test_a_row_has_the_same_bits_in_any_batch(polytope: Any, longest: int, batch: int) -> None:
    lengths = torch.randint(1, longest + 1, (batch,), generator=torch.Generator().manual_seed(batch))
    scores = polytope.mask(scores_of(polytope, batch, seed=batch), lengths)
    together, gibbs = sparsemap(scores, polytope), polytope.gibbs(scores)
    mean, modes = together.mean(), together.mode()
    whole = (gibbs.entropy(), gibbs.marginals(), gibbs.log_prob(modes))
    for row in range(0, batch, 4):
        one, mine = scores[row : row + 1], together.row == row
        alone, own = sparsemap(one, polytope), polytope.gibbs(one)
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        assert_same_bits(alone.mean()[0], mean[row])
        for ours, theirs in zip((own.entropy(), own.marginals(), own.log_prob(modes[row : row + 1])), whole, strict=True):
            assert torch.equal(ours[0], theirs[row])


def test_paths_of_parts_of_a_graph_give_what_each_gives_alone() -> None:
    """Arcs of -inf are not there: one by one the same bits, and as a graph without them the same best, k best and mean."""
    large = ShortestPath.grid(3, 3, diagonal=True)
    blocked = torch.rand(12, large.dim, generator=torch.Generator().manual_seed(5)) < 0.25
    scores = scores_of(large, 12).masked_fill(blocked, -torch.inf)
    structures = arc_sets(list(large.arcs), 0, 8)
    some = [row for row in range(12) if bool((~((structures != 0) & blocked[row]).any(-1)).any())]
    assert len(some) > 6
    scores, blocked = scores[some], blocked[some]
    together = sparsemap(scores, large)
    best, (kbest, valid) = large.maximize(scores), large.topk(scores, 4)
    for row in range(len(some)):
        one, mine = scores[row : row + 1], together.row == row
        alone = sparsemap(one, large)
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        kept = (~blocked[row]).nonzero()[:, 0]
        small = ShortestPath([large.arcs[place] for place in kept.tolist()], 0, 8)
        assert torch.equal(small.maximize(one[:, kept])[0], best[row, kept])
        listed, exists = small.topk(one[:, kept], 4)
        assert torch.equal(exists[0], valid[row])
        assert torch.equal(listed[0], kbest[row][:, kept])
        mean = sparsemap(one[:, kept], small).mean()[0]
        torch.testing.assert_close(mean, together.mean()[row, kept], rtol=0, atol=1e-8)


def test_bad_lengths_are_refused() -> None:
    chain = LinearChain(4, 2)
    for lengths, shown in (([4, 5], "problem 1 is 5"), ([0, 4], "problem 0 is 0")):
        with pytest.raises(ValueError, match=rf"lengths must be between 1 and 4, but that of {shown}"):
            chain.mask(torch.zeros(2, chain.dim), torch.tensor(lengths))
    for lengths, shown in (
        (torch.tensor([[3], [2]]), r"lengths must be \[2\], a number for each problem of scores \[2, 20\], not \[2, 1\]"),
        (torch.ones(2, dtype=torch.bool), r"lengths as a mask must be \[2, 4\], true where something is, not \[2\]"),
        (torch.tensor([2.5, 1]), "not torch.float32"),
        ([2, 1], "not list"),
    ):
        for polytope in (chain, Segmentation(4, 5, 1)):
            with pytest.raises(ValueError, match=shown):
                polytope.mask(torch.zeros(2, 20), lengths)  # pyright: ignore[reportArgumentType]
    assert chain.mask(torch.zeros(3, 2, 20), torch.tensor([4, 2])).isneginf().sum((0, 2)).tolist() == [0, 3 * (4 + 8)]
    shared = chain.mask(torch.zeros(1, 20), torch.tensor([4, 2]))  # the same scores for several lengths
    assert torch.equal(shared, chain.mask(torch.zeros(2, 20), torch.tensor([4, 2])))
    with pytest.raises(ValueError, match=r"scores takes unary scores \[\*B, 4, 2\] and transitions \[5, 3, 2, 2\]"):
        chain.scores(torch.zeros(5, 2, 4), torch.zeros(5, 3, 2, 2))


def test_a_large_capacity_takes_no_longer_than_the_weights() -> None:
    items = Knapsack([1, 2, 3], 10**9)
    assert len(items.vertices()) == 8
    for three in (np.array(3), np.int32(3), torch.tensor([3]), Fraction(3), 3.0):
        assert Knapsack([Fraction(1), 2], three).capacity == 3  # pyright: ignore[reportArgumentType]
    assert Knapsack(np.array([2, 1]), torch.tensor(2)).maximize(torch.tensor([[3.0, 1]])).tolist() == [[1, 0]]


@pytest.mark.parametrize("side", ["ends", "starts"])
def test_a_boundary_is_ruled_out_by_the_segments_that_end_or_start_there(side: str) -> None:
    """Others cross it, so that the sequence does not end there."""
    polytope = Segmentation(3)
    width, start = torch.meshgrid(torch.arange(1, 4), torch.arange(3), indexing="xy")
    scores = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    out = start + width == 2 if side == "ends" else start == 2
    found = polytope.maximize(scores.masked_fill(out.flatten(), -torch.inf))
    assert not polytope.cells(found)[:, 2].any()
    assert ((polytope.cells(found)[..., 0] * width).sum((1, 2)) == 3).all()


def test_nothing_at_all_is_refused() -> None:
    for polytope in (LinearChain(3, 2), ProjectiveTree(3), Segmentation(3)):
        scores = torch.zeros(2, polytope.dim)
        scores[1] = -torch.inf
        with pytest.raises(ValueError, match="row 1 allows no structure"):
            sparsemap(scores, polytope)


@pytest.mark.slow
@pytest.mark.parametrize(
    "polytope", [LinearChain(6, 3), ProjectiveTree(5), ShortestPath.grid(4, 4), Segmentation(6, 2, 3)], ids=repr
)
def test_sparsemap_on_random_problems(polytope: Derivations) -> None:
    assert_random_problems(polytope)


def test_layers_take_them() -> None:
    chain = LinearChain(5, 3)
    scores = torch.randn(4, chain.dim, requires_grad=True)
    q = SparseMAP(chain)(scores)
    (q.expectation(lambda atoms, row: chain.parts(atoms)[0].argmax(-1).float().sum(-1)) - q.entropy()).sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() > 0


# Bad graphs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ShortestPath([(0, 1), (1, 2), (2, 1), (2, 3)]),
            "directed acyclic graph .* but the graph has a cycle through node",
        ),
        (lambda: ShortestPath([(0, 1), (2, 3)]), "with a path from 0 to 3, but the graph has no derivation"),
        (lambda: ShortestPath([(0, 1), (0, 1)]), r"the arc \(0, 1\) is there twice"),
        (lambda: ShortestPath([]), "must be one or more"),
        (lambda: ShortestPath([(-1, 0), (0, 2)]), "nodes must be numbered from 0 on, not -1"),
        (lambda: ShortestPath([(0, 1), 3]), "arcs must be pairs of ints, .* but number 1 is 3"),  # pyright: ignore
        (lambda: ShortestPath([(0, 1)], 0, 7), "must be different nodes of the graph"),
        (lambda: Knapsack([1.5, 2], 3), "its weight 0 is 1.5: scale and round"),  # pyright: ignore[reportArgumentType]
        (lambda: Knapsack([float("nan"), 2], 3), "its weight 0 is nan"),  # pyright: ignore[reportArgumentType]
        (lambda: Knapsack([2, 2], float("inf")), "its capacity is inf"),  # pyright: ignore[reportArgumentType]
        (lambda: Knapsack([1, -2], 3), "its weight 1 is -2"),
        (lambda: Knapsack([1, 2], -1), "its capacity is -1"),
        (lambda: Knapsack([1, 2], None), "its capacity is None"),  # pyright: ignore[reportArgumentType]
        (lambda: Knapsack([1, 2], "3"), "its capacity is '3'"),  # pyright: ignore[reportArgumentType]
        (lambda: Knapsack(5, 3), r"needs the weights of the items, e.g. \[2, 3, 1\], not 5"),  # pyright: ignore
        (lambda: Knapsack(np.array([True, False]), 1), "its weight 0 is True"),  # pyright: ignore[reportArgumentType]
        (lambda: ShortestPath([(0, 1)], source=[0]), r"source must be an int at least 0, not \[0\]"),  # pyright: ignore
        (lambda: ShortestPath.grid(1, 1), "needs two or more cells"),
        (lambda: LinearChain(0, 2), "LinearChain: length must be at least 1, not 0"),
        (lambda: Segmentation(3, 2, 4), "Segmentation: width must be between 1 and 3"),
    ],
)
def test_bad_problems_are_refused(build: Callable[[], Derivations], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_hypergraph_by_hand() -> None:
    """Two ways to derive one node, which two edges share: 2 x 1 + 1 derivations."""
    graph = Hypergraph(4, [Edge(0, (), (0,)), Edge(0, (), (1,)), Edge(1), Edge(2, (0, 1), (2,)), Edge(2, (1,), (3,))], 2)
    assert graph.count_derivations() == 3
    structures, totals = graph.kbest(torch.tensor([[1.0, 2, 4, 5.5]]), 4)
    assert structures[0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert totals[0].tolist() == [6, 5.5, 5, -math.inf]


@parametrize_with_checks(
    [LinearChain(3, 2), ShortestPath.grid(2, 3), Segmentation(3, 2, 2), Knapsack([2, 1, 3, 2], 4), ProjectiveTree(3)],
    batch=2,
    skip=["by cvxpy"],
)
def test_verification(check: Callable[[], None]) -> None:
    check()
