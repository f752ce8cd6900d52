"""Gibbs distributions over spanning trees. Truth: softmax over all trees, whose list `test_matroids` checks."""

import itertools
import math

import pytest
import torch
from matroid_cases import GRAPHS, present
from sparsemarg.oracles import SpanningTree
from structures import assert_gibbs, scores_of
from torch import Tensor


@pytest.mark.parametrize("name", GRAPHS)
def test_gibbs(name: str) -> None:
    polytope = SpanningTree(GRAPHS[name])
    assert_gibbs(polytope, polytope.vertices())


@pytest.mark.parametrize("name", GRAPHS)
def test_gibbs_of_very_unequal_scores(name: str) -> None:
    """Scores of size 100: determinants of the Laplacian have no correct digit there."""
    polytope = SpanningTree(GRAPHS[name])
    structures, scores = polytope.vertices(), 100 * scores_of(polytope, 20)
    scores[10:] += 1e4
    assert_probabilities(polytope, scores, (scores @ structures.T).log_softmax(-1), structures)


@pytest.mark.parametrize("name", GRAPHS)
def test_gibbs_of_forbidden_edges(name: str) -> None:
    """Rows of random `-inf` give what the allowed trees alone give; graphs in pieces are refused by number."""
    polytope = SpanningTree(GRAPHS[name])
    structures = polytope.vertices()
    blocked = torch.rand(40, polytope.dim, generator=torch.Generator().manual_seed(2)) < 0.3
    whole = [len(present(polytope, row)) == polytope.nodes for row in blocked]  # smaller graphs: see below
    blocked = blocked[torch.tensor(whole)]
    allowed = ~((structures[None] != 0) & blocked[:, None]).any(-1)
    scores = scores_of(polytope, len(blocked)).masked_fill(blocked, -torch.inf)
    some = allowed.any(-1)
    logits = (scores.masked_fill(blocked, 0) @ structures.T).masked_fill(~allowed, -torch.inf)
    assert_probabilities(polytope, scores[some], logits[some].log_softmax(-1), structures)
    for row in (~some).nonzero()[:, 0].tolist():
        with pytest.raises(ValueError, match="gibbs: scores row 0 allows no structure"):
            polytope.gibbs(scores[row : row + 1])


def test_gibbs_of_mixed_graphs() -> None:
    """As each alone, whichever nodes there are."""
    edges = GRAPHS["wheel"]
    large, kept = SpanningTree(edges), [{0, 1, 2, 3, 4}, {0, 1}, {1, 2, 3, 4}, {0, 2, 3, 4}, {1, 4}]
    nodes = torch.tensor([[node in some for node in range(5)] for some in kept])
    scores = large.mask(scores_of(large, 5), nodes)
    gibbs = large.gibbs(scores)
    drawn = gibbs.sample((50,), torch.Generator().manual_seed(0))
    assert bool((gibbs.log_prob(drawn) > -torch.inf).all())
    for row, some in enumerate(kept):
        inside = [place for place, edge in enumerate(edges) if set(edge) <= some]
        number = {node: place for place, node in enumerate(sorted(some))}
        small = SpanningTree([(number[edges[place][0]], number[edges[place][1]]) for place in inside])
        own = small.gibbs(scores[row, inside])
        torch.testing.assert_close(own.entropy(), gibbs.entropy()[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(own.marginals(), gibbs.marginals()[row, inside], rtol=0, atol=1e-12)
        torch.testing.assert_close(own.log_prob(drawn[:, row, inside]), gibbs.log_prob(drawn)[:, row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["complete", "parallel", "several between all"])
def test_samples_follow_the_distribution(name: str) -> None:
    """Each tree's frequency within 5 standard errors, and no other structure."""
    polytope = SpanningTree(GRAPHS[name])
    structures, scores, count = polytope.vertices(), scores_of(polytope, 2, seed=3), 20_000
    probs = (scores @ structures.T).softmax(-1)
    drawn = polytope.gibbs(scores).sample((count,), torch.Generator().manual_seed(0))
    for row in range(2):
        match = (drawn[:, row, None] == structures).all(-1)
        assert bool((match.sum(-1) == 1).all())
        error = (probs[row] * (1 - probs[row]) / count).sqrt()
        assert bool(((match.double().mean(0) - probs[row]).abs() < 5 * error + 1e-9).all())


def test_complete_graphs_have_as_many_trees_as_cayley_says() -> None:
    for nodes in (2, 5, 10, 30):
        polytope = SpanningTree(list(itertools.combinations(range(nodes), 2)))
        entropy = polytope.gibbs(torch.zeros(polytope.dim, dtype=torch.float64)).entropy()
        torch.testing.assert_close(float(entropy), (nodes - 2) * math.log(nodes), rtol=1e-13, atol=1e-13)


def test_gibbs_is_minus_infinity_off_the_set() -> None:
    gibbs = SpanningTree(GRAPHS["wheel"]).gibbs(torch.zeros(8))
    cycle, forest, tree = (torch.zeros(8).index_fill(0, torch.tensor(on), 1) for on in ([0, 1, 4, 3], [0, 1, 2], [0, 1, 2, 3]))
    for structure in (cycle, forest, torch.zeros(8), torch.ones(8), torch.full((8,), 0.5), 2 * tree, tree - cycle):
        assert float(gibbs.log_prob(structure)) == -torch.inf
    torch.testing.assert_close(float(gibbs.log_prob(tree)), -math.log(45))  # the wheel's trees: a Lucas number less 2


def assert_probabilities(polytope: SpanningTree, scores: Tensor, logs: Tensor, structures: Tensor) -> None:
    """log p, entropy and mean against log-probabilities [B, V] of all structures; samples are allowed."""
    gibbs, probs = polytope.gibbs(scores), logs.exp()
    found = gibbs.log_prob(structures[:, None].expand(-1, len(scores), -1)).T
    torch.testing.assert_close(found, logs, rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(gibbs.entropy(), torch.special.entr(probs).sum(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(gibbs.marginals(), probs @ structures, rtol=0, atol=1e-10)
    drawn = gibbs.sample((5,), torch.Generator().manual_seed(0))
    assert bool((gibbs.log_prob(drawn) > -60).all())
