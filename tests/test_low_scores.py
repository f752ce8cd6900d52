"""Structures ruled out by very low scores in place of -inf: exactly the best ones are found, or an error says why not."""

from fractions import Fraction

import pytest
import torch
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import (
    Arborescence,
    AtLeastOne,
    Budget,
    Explicit,
    Implies,
    Knapsack,
    LinearChain,
    Matching,
    OracleFromSolver,
    Permutahedron,
    Polytope,
    Product,
    SpanningTree,
    topk,
)
from sparsemarg.oracles.logic import LogicFactor
from torch import Tensor

LOW = [-1e12, -1e18, -1e30, torch.finfo(torch.float32).min]


def masked(polytope: Polytope, low: float, rows: int) -> Tensor:
    """Random scores, some of them low."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, polytope.dim, generator=generator, dtype=torch.float64)
    return scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.3, low)


def exact_totals(structures: Tensor, scores: Tensor) -> list[Fraction]:
    """<a, t> of structures [n, D] for scores [D] that are above -inf where the structures are not 0, in rational arithmetic."""
    return [
        sum((Fraction(t) for a, t in zip(row, scores.tolist(), strict=True) if a), Fraction(0)) for row in structures.tolist()
    ]


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize(
    "polytope", [Arborescence(3), Arborescence(3, single_root=True), Arborescence(4, single_root=True)], ids=repr
)
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_the_best_tree(polytope: Arborescence, low: float, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    scores, trees = masked(polytope, low, rows=200), polytope.vertices()
    found = polytope.maximize(scores)
    for row, tree in zip(scores, found, strict=True):
        best = max(exact_totals(trees, row))
        assert abs(float(exact_totals(tree[None], row)[0] - best)) <= 1e-12 * max(1, abs(float(best)))
    rows = (found != 0) & (scores == low)
    usual = scores[~rows.any(-1)]  # a tree without a low score is the best
    mean = sparsemap(usual, polytope).mean()
    torch.testing.assert_close(mean, sparsemap(usual.masked_fill(usual == low, -torch.inf), polytope).mean(), atol=1e-8, rtol=0)


LISTED = [AtLeastOne(4), Implies(4), AtLeastOne(4, [True, False, True, False]), Budget(4, 2), Budget(4, 3, exactly=True)]


@pytest.mark.parametrize("low", [*LOW, -torch.inf])
@pytest.mark.parametrize("polytope", LISTED, ids=repr)
def test_the_best_bit_vectors(polytope: LogicFactor | Budget, low: float) -> None:
    """In order. Budgets of reflected bits have large scores in their place."""
    structures = polytope.vertices()
    for scores in masked(polytope, low, rows=40):
        allowed = structures[~((structures != 0) & scores.isneginf()).any(-1)]
        wanted = sorted(exact_totals(allowed, scores), reverse=True)[:5]
        found, valid = topk(polytope, scores[None], 5)
        totals = exact_totals(found[0][valid[0]], scores)
        assert len(totals) == len(wanted)
        assert all(abs(float(a - b)) <= 1e-12 * max(1, abs(float(b))) for a, b in zip(totals, wanted, strict=True))


class Opaque(Polytope):
    """A knapsack of which only `maximize` is known."""

    dim = 4

    def maximize(self, scores: Tensor) -> Tensor:
        return Knapsack([1, 2, 3, 1], 4).maximize(scores)


@pytest.mark.parametrize("polytope", [Opaque(), Matching(2), Arborescence(2)], ids=repr)
def test_k_best_by_forcing_bits_says_that_it_cannot(polytope: Polytope) -> None:
    scores = torch.tensor([[0.2, 0.1, 1.0, 2.3], [-1e30, 0.1, 1.0, 2.3]])
    with pytest.raises(ValueError, match=r"those of row 1 reach 1e\+30: .* forbid bits by -inf"):
        topk(polytope, scores, 3)
    found, valid = topk(polytope, scores.masked_fill(scores < -1e9, -torch.inf), 3)
    assert not (found[1][..., 0] * valid[1]).any()


@pytest.mark.parametrize("polytope", [Opaque(), Matching(2), Arborescence(2)], ids=repr)
def test_the_single_best_forces_no_bit(polytope: Polytope) -> None:
    scores = torch.tensor([[-1e30, 0.1, 1.0, 2.0]])
    assert torch.equal(topk(polytope, scores, 1)[0][:, 0], polytope.maximize(scores))


def test_k_best_where_scores_are_only_compared() -> None:
    triangle = SpanningTree([(0, 1), (1, 2), (0, 2), (2, 3)])
    found, valid = topk(triangle, torch.tensor([[0.1, 0.2, -1e30, 0.3]]), 3)
    assert valid.all()
    assert found[0, 0].tolist() == [1, 1, 0, 1]


def test_entries_below_one_are_forbidden() -> None:
    """By a number, for polytopes that do not take -inf; of a product, for those of its parts alone."""
    table = torch.tensor([[0.1, 5.0], [0.0, 0.0]], dtype=torch.float64)
    solver = OracleFromSolver(lambda scores: table.numpy()[int((table.numpy() @ scores).argmax())], 2, vertices=table)
    scores = torch.tensor([[-torch.inf, 1.0]])
    assert sparsemap(scores, solver).mean().tolist() == [[0, 0]]
    both = torch.tensor([[-torch.inf, 1.0, 1.0, 0.0]])
    for part in (solver, Explicit(table)):
        assert sparsemap(both, Product(part, Permutahedron([1, 0]))).mean().tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_sum_in_half_precision(dtype: torch.dtype) -> None:
    chain = LinearChain(20, 5)
    scores = torch.randn(100, chain.dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    found, best = chain.maximize(scores), topk(chain, scores, 1)[0][:, 0]
    assert found.dtype == dtype
    torch.testing.assert_close(
        (found.double() * scores.double()).sum(-1), (best.double() * scores.double()).sum(-1), rtol=0, atol=1e-9
    )
