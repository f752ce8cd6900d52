"""Compiled oracles, which the compiled active set method asks row by row: what it finds is what it finds by `maximize`."""

import math
from itertools import combinations

import pytest
import torch
from cases import KINDS, scores_for
from sparsemarg.kernels import compiled
from sparsemarg.layers.functional import sparsemap, sparsemap_loss, sparsemap_marginals
from sparsemarg.layers.solvers import ActiveSet
from sparsemarg.oracles import (
    Arborescence,
    BernoulliCube,
    Budget,
    Explicit,
    Knapsack,
    LinearChain,
    Polytope,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
)
from sparsemarg.oracles.row_kernels import row_oracle
from torch import Tensor

SOLVED_IN_TURN = [
    BernoulliCube(40),
    Budget(40, 20),
    Budget(9, 4, exactly=True),
    Simplex(9),
    LinearChain(5, 3),
    LinearChain(9, 8, regularize_transitions=False),  # long: more than 512 coordinates
    Segmentation(6, 2, 3),
    Knapsack([1, 2, 3, 4, 5, 6, 7] * 2, 20),
    ShortestPath.grid(5, 5, diagonal=True),
    ProjectiveTree(6),
    ProjectiveTree(5, single_root=True),
    Arborescence(6),
    Arborescence(5, single_root=True),
    SpanningTree(list(combinations(range(7), 2))),
]


def asked(polytope: Polytope) -> Polytope:
    """The same polytope, as if a user had written it: each iteration asks `maximize` for all rows."""

    class Own(Polytope):
        dim, takes_forbidden, regularized = polytope.dim, True, polytope.regularized

        def maximize(self, scores: Tensor) -> Tensor:
            return polytope.maximize(scores)

    return Own()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", SOLVED_IN_TURN, ids=repr)
def test_rows_in_turn_are_rows_in_step(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in two threads, with forbidden coordinates, and where the iterations run out."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    scores = scores_for(polytope, kind, batch=30)
    generator = torch.Generator().manual_seed(1)
    some = polytope.maximize(torch.randn(10, polytope.dim, generator=generator, dtype=torch.float64))
    scores[:10] = scores[:10].masked_fill((some == 0) & (torch.rand(some.shape, generator=generator) < 0.3), -torch.inf)
    assert row_oracle(polytope, scores) is not None
    assert row_oracle(asked(polytope), scores) is None
    for solver in (ActiveSet(), ActiveSet(max_iter=3)):
        ours, theirs = solver.solve(scores, polytope), solver.solve(scores, asked(polytope))
        assert torch.equal(ours.atoms, theirs.atoms)
        assert torch.equal(ours.probs, theirs.probs)
        assert torch.equal(ours.stats.iterations, theirs.stats.iterations)
        assert torch.equal(ours.stats.gap, theirs.stats.gap)
        assert torch.equal(ours.stats.converged, theirs.stats.converged)


@pytest.mark.parametrize("kind", ["bit_atoms", "seen_bits"])
@pytest.mark.parametrize("own", [False, True], ids=["in turn", "asked"])
@pytest.mark.parametrize("polytope", SOLVED_IN_TURN, ids=repr)
def test_the_mean_alone(polytope: Polytope, own: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit that of the distribution, with the same certificate, where iterations run out, too; nothing is written."""
    monkeypatch.setattr("sparsemarg.layers.solvers.kernels.compiled_rows.LONG", 1 if kind == "seen_bits" else math.inf)
    scores = torch.randn(12, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solved = asked(polytope) if own else polytope
    found = [sparsemap(scores, solved, solver=ActiveSet(most), check=False) for most in (3, 500)]
    monkeypatch.setattr("sparsemarg.layers.solvers.kernels.row_results.unpack", None)
    for whole, most in zip(found, (3, 500), strict=True):
        alone = ActiveSet(most).solve_mean(scores, solved, check=True)
        assert alone is not None
        assert torch.equal(alone[0], whole.mean())
        assert all(map(torch.equal, vars(alone[1]).values(), vars(whole.stats).values()))
        assert torch.equal(sparsemap_marginals(scores, solved, solver=ActiveSet(most), check=False), whole.mean())
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sparsemap_loss(leaf, found[1].mode(), solved, solver=ActiveSet()).sum(), leaf)
    assert torch.equal(gradient, found[1].mean() - found[1].mode())


def test_the_mean_alone_of_other_structures() -> None:
    """Structures that are not 0/1, and some of which the first ones are, are left to `sparsemap`; infinite scores, too."""
    generator = torch.Generator().manual_seed(0)
    for odd in (2.0, 0.5):
        table = Explicit(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [odd, 0, 0.25]], dtype=torch.float64))
        scores = torch.randn(40, 3, dtype=torch.float64, generator=generator)
        leaf = scores.clone().requires_grad_()
        assert ActiveSet().solve_mean(scores, table, check=True) is None
        assert torch.equal(sparsemap_marginals(scores, table), sparsemap_marginals(leaf, table))
    cube = BernoulliCube(3)
    assert ActiveSet().solve_mean(torch.tensor([[0.0, 1.0, torch.inf]]).double(), cube, check=True) is None
    assert ActiveSet().solve_mean(torch.zeros(0, 3, dtype=torch.float64), cube, check=True) is None
    for wrong in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match="row 0"):
            sparsemap_marginals(torch.tensor([[0.0, 1.0, wrong]]), cube, solver=ActiveSet())


@pytest.mark.parametrize("polytope", [LinearChain(6, 3), Segmentation(6, 2, 3), ProjectiveTree(6), Arborescence(6)], ids=repr)
def test_shorter_sequences_in_the_batch(polytope: LinearChain | Segmentation | ProjectiveTree | Arborescence) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(24, polytope.dim, generator=generator, dtype=torch.float64)
    scores = polytope.mask(scores, torch.arange(24) % 6 + 1)
    ours, theirs = ActiveSet().solve(scores, polytope), ActiveSet().solve(scores, asked(polytope))
    assert torch.equal(ours.atoms, theirs.atoms)
    assert torch.equal(ours.probs, theirs.probs)


def test_a_maximize_of_ones_own_is_asked() -> None:
    """Of a subclass, of one polytope; a subclass with a `row_oracle` as well, or with neither, is solved in turn."""
    calls = []

    def noted(polytope: ShortestPath, scores: Tensor) -> Tensor:
        calls.append(len(scores))
        return ShortestPath.maximize(polytope, scores)

    class Asked(ShortestPath):
        maximize = noted

    class Same(ShortestPath):
        pass

    class Both(Asked):
        row_oracle = ShortestPath.row_oracle

    scores = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = ActiveSet().solve(scores, ShortestPath.grid(5, 5))
    one = ShortestPath.grid(5, 5)
    one.maximize = noted.__get__(one)  # pyright: ignore[reportAttributeAccessIssue]
    for polytope, in_turn in ((Asked.grid(5, 5), False), (one, False), (Same.grid(5, 5), True), (Both.grid(5, 5), True)):
        calls.clear()
        found = ActiveSet().solve(scores, polytope)
        assert torch.equal(found.atoms, wanted.atoms)
        assert torch.equal(found.probs, wanted.probs)
        assert (row_oracle(polytope, scores) is not None) == in_turn
        assert (sum(calls) <= 2 * len(scores)) == in_turn  # the first structures, and the gap of what is left at the end
    assert row_oracle(Explicit(torch.eye(3)), scores[:, :3]) is None
    assert compiled(".kernels.derivation_rows", "sparsemarg.oracles", "best", scores.device) is not None
