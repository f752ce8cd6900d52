"""The active set method's iteration in Triton beside any oracle, interpreted on the CPU: the same as in tensor operations.

Run by `test_triton`, as `triton_checks` is.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from cases import scores_for
from sparsemarg.kernels import dispatch
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import ActiveSet, active_set
from sparsemarg.layers.solvers.active_set import _in_tensors
from sparsemarg.layers.solvers.kernels import triton_rows
from sparsemarg.layers.solvers.oracle import Oracle
from sparsemarg.layers.solvers.supports import Support
from sparsemarg.layers.solvers.tensor_rows import TensorRows
from sparsemarg.layers.solvers.ties import Ties
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, LinearChain, Polytope, Product, Simplex
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"

LIMIT, TOL = 400, 1e-9


class Counts(BernoulliCube):
    """The cube, as a user may write it, with an oracle that counts its calls."""

    calls = 0

    def maximize(self, scores: Tensor) -> Tensor:
        Counts.calls += 1
        return (scores > 0).to(scores)


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each launch had."""
    launched: list[int] = []
    plain = triton_rows.advance

    def counted(rows: TensorRows, vertex: Tensor, tol: float) -> bool:
        taken = plain(rows, vertex, tol)
        launched.extend([len(vertex)] * taken)
        return taken

    monkeypatch.setattr(triton_rows, "advance", counted)
    dispatch._loaded.cache_clear()
    yield launched
    dispatch._loaded.cache_clear()


def solved_twice(oracle: Oracle, monkeypatch: pytest.MonkeyPatch, max_iter: int = LIMIT) -> tuple[Support, Support]:
    """By the kernel and in tensor operations."""
    fast = _in_tensors(oracle, max_iter, TOL)
    with monkeypatch.context() as switched:
        switched.setenv("SPARSEMARG_KERNELS", "off")
        return fast, _in_tensors(oracle, max_iter, TOL)


def assert_same(fast: Support, plain: Support, spacing: float = 1e-15) -> None:
    tolerance = max(1e-12, 10 * spacing)
    assert torch.equal(fast.atoms, plain.atoms)
    torch.testing.assert_close(fast.probs, plain.probs, atol=tolerance, rtol=0)
    for name in ("iterations", "converged"):
        assert torch.equal(getattr(fast.stats, name), getattr(plain.stats, name))
    for name in ("gap", "margin"):
        torch.testing.assert_close(getattr(fast.stats, name), getattr(plain.stats, name), atol=tolerance, rtol=0)


REAL = Explicit(3 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
POLYTOPES = [Counts(18), Product(Simplex(3), Budget(6, 2)), LinearChain(3, 2), REAL]


@pytest.mark.parametrize("kind", ["small", "equal", "large"])
@pytest.mark.parametrize("polytope", POLYTOPES, ids=repr)
def test_the_kernel_is_the_iteration(
    polytope: Polytope, kind: str, launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scores_for(polytope, kind, batch=4)
    fast, plain = solved_twice(Oracle.of(polytope, scores), monkeypatch)
    assert launches
    assert fast.stats.converged.all()
    assert_same(fast, plain, float(scores.abs().max()) * torch.finfo(torch.float64).eps)


def test_rows_go_on_by_themselves_while_atoms_are_dropped(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So the oracle is asked less often than there are iterations."""
    polytope = Explicit(torch.randn(200, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    fast, plain = solved_twice(Oracle.of(polytope, scores_for(polytope, "equal", batch=2)), monkeypatch)
    assert_same(fast, plain)
    assert len(launches) < int(fast.stats.iterations.max())


def test_rows_that_are_done_change_no_more(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are still there or have been put aside; and forbidden bits stay off."""
    scores = scores_for(Counts(18), "normal", batch=6)
    scores[1, 4:9] = -torch.inf
    scores[2] = 100 * scores[2].sign()
    fast, plain = solved_twice(Oracle.of(Counts(18), scores), monkeypatch)
    assert_same(fast, plain)
    assert int(fast.stats.iterations[2]) == 1
    assert not fast.atoms[1, :, 4:9].any()
    assert min(launches) < max(launches)


def test_scores_lie_in_memory_as_they_like(launches: list[int]) -> None:
    scores = scores_for(Counts(18), "normal", batch=4)
    fast, again = (_in_tensors(Oracle.of(Counts(18), given), LIMIT, TOL) for given in (scores, scores.T.contiguous().T))
    assert launches
    assert_same(again, fast)


@pytest.mark.parametrize("max_iter", [1, 5, 11])
def test_no_row_iterates_more_often_than_it_may(max_iter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = solved_twice(Oracle.of(Counts(18), scores_for(Counts(18), "small", batch=4)), monkeypatch, max_iter)
    stopped = ~fast.stats.converged
    assert stopped.sum() >= 3
    assert (fast.stats.iterations[stopped] == max_iter).all()
    assert_same(fast, plain)


def test_what_the_kernel_does_not_take_runs_in_tensor_operations(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates that are not regularised, too many of them, and too many atoms in the middle of a run."""
    trees = LinearChain(3, 2, regularize_transitions=False)
    assert_same(*solved_twice(Oracle.of(trees, scores_for(trees, "normal", batch=3)), monkeypatch))
    oracle = Oracle.of(Counts(18), scores_for(Counts(18), "small", batch=3))
    with monkeypatch.context() as limited:
        limited.setattr(triton_rows, "MOST_DIMENSIONS", 17)
        assert_same(*solved_twice(oracle, monkeypatch))
    assert not launches
    monkeypatch.setattr(triton_rows, "MOST_SLOTS", 9)
    assert_same(*solved_twice(oracle, monkeypatch))
    assert 0 < len(launches) < 12


def test_derivatives_of_a_polytope_of_ones_own(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    monkeypatch.setattr(active_set, "compiled_method", lambda device: None)  # as on a GPU
    for switch in ("on", "off"):
        monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
        scores = scores_for(Counts(12), "normal", batch=3).requires_grad_()
        mean = sparsemap(scores, Counts(12), solver=ActiveSet()).mean()
        gradients.append(torch.autograd.grad((weights * mean).sum(), scores)[0])
    assert launches
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)
    inside = (scores > 0) & (scores < 1)
    torch.testing.assert_close(gradients[0], torch.where(inside, weights, 0), atol=1e-8, rtol=0)


def test_ties_are_broken_as_in_tensor_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 300, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-6, 4, 2)[:, None]
    target[:, ::7] = 0
    ties, exact = Ties.of(target), torch.tensor([False, True, False, True, False])
    residual = target * torch.rand(5, 300, generator=generator, dtype=torch.float64)
    residual[0] = (torch.arange(300) - 150.5) * ties.grid[0]  # halfway between two places of the grid
    shown = ties.broken(residual, exact)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert torch.equal(shown, ties.broken(residual, exact))
