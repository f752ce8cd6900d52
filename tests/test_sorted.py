"""The closed form: written out or not, compiled or not, its distributions and derivatives are the same."""

import pytest
import torch
from cases import KINDS, projection, scores_for, with_derivatives
from sparsemarg.layers import ConvergenceWarning
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.layers.solvers.cuts import in_one_pass
from sparsemarg.layers.stats import SolverStats
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Simplex, SupportsProjection, supports
from torch import Tensor


@pytest.mark.parametrize("polytope", [BernoulliCube(128), Budget(128, 64), Budget(128, 40, exactly=True)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_sorted_decomposition_is_exact(polytope: Polytope, kind: str) -> None:
    scores = scores_for(polytope, kind, batch=64)
    found = sparsemap(scores, polytope, solver=SortedDecomposition())
    assert supports(polytope, SupportsProjection)
    torch.testing.assert_close(found.mean(), polytope.project(scores), atol=1e-12, rtol=0)
    if isinstance(polytope, Budget):
        sizes = found.atoms.sum(-1)
        assert (sizes == polytope.budget).all() if polytope.exactly else (sizes <= polytope.budget).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 6, 40])
def test_nested_structures_give_what_the_dense_refit_gives(dim: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms to the bit; weights, first and second derivatives up to rounding; ties, masks and large scores among them."""
    scores = scores_for(BernoulliCube(dim), kind, batch=30)
    scores[3, 0] = -torch.inf
    scores[4] *= 1e6
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    nested, ours = with_derivatives(scores, BernoulliCube(dim), SortedDecomposition())
    in_brief = BernoulliCube.nested
    monkeypatch.setattr(BernoulliCube, "decompose", lambda self, mean: _written(in_brief(self, mean)))
    monkeypatch.delattr(BernoulliCube, "nested")
    dense, theirs = with_derivatives(scores, BernoulliCube(dim), SortedDecomposition())
    assert torch.equal(nested.atoms, dense.atoms)
    assert torch.equal(nested.row, dense.row)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


SORTED = [
    *(BernoulliCube(dim) for dim in (1, 6, 40)),
    *(Budget(dim, budget) for dim, budget in ((1, 1), (5, 0), (6, 3), (6, 6), (40, 20), (40, 37))),
    *(Budget(dim, budget, exactly=True) for dim, budget in ((6, 3), (6, 6), (40, 2))),
]


def masked_in_part(polytope: Polytope, kind: str) -> Tensor:
    """30 rows of scores: one a million times as large, two with forbidden coordinates, in one as many as can be."""
    scores = scores_for(polytope, kind, batch=30)
    scores[4] *= 1e6
    needed = polytope.budget if isinstance(polytope, Budget) and polytope.exactly else 0
    scores[3, : min(1, polytope.dim - needed)] = -torch.inf
    scores[5, needed:] = -torch.inf
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", SORTED, ids=repr)
def test_the_compiled_decomposition_is_the_plain_one(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms to the bit, in two threads; ties, masks and large scores among them."""
    scores = masked_in_part(polytope, kind)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    used = in_one_pass(scores, polytope, scores.dtype) is not None
    assert used or kind in ("integer", "equal", "zero"), "cuts coincide where scores tie, and only there"
    fast, ours = with_derivatives(scores, polytope, SortedDecomposition())
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert in_one_pass(scores, polytope, scores.dtype) is None
    plain, theirs = with_derivatives(scores, polytope, SortedDecomposition())
    assert torch.equal(fast.atoms, plain.atoms)
    assert torch.equal(fast.row, plain.row)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    stats, wanted = fast.stats, plain.stats
    assert isinstance(stats, SolverStats)
    assert isinstance(wanted, SolverStats)
    assert torch.equal(stats.converged, wanted.converged)
    assert stats.converged.all()
    torch.testing.assert_close(stats.margin, wanted.margin, rtol=1e-6, atol=1e-12)


def test_means_that_are_all_but_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on or off but for 1e-13 is on or off in every structure, by the kernel and without."""
    scores = torch.tensor([[1 - 1e-13, 0.4, 1e-13, 0.7], [1e-13, 1 - 1e-13, 1e-13, 1 - 1e-14]], dtype=torch.float64)
    compiled = sparsemap(scores, BernoulliCube(4), solver=SortedDecomposition())
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    plain = sparsemap(scores, BernoulliCube(4), solver=SortedDecomposition())
    atoms = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1]], dtype=torch.float64)
    for found in (compiled, plain):
        assert torch.equal(found.atoms, atoms)
        torch.testing.assert_close(found.probs, torch.tensor([0.3, 0.3, 0.4, 1], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", [chosen for chosen in SORTED if isinstance(chosen, Budget)], ids=repr)
def test_a_systematic_sample_is_refit_without_a_solve(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tensor operations: its weights and their derivatives against those of the KKT system."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    scores = masked_in_part(polytope, kind)
    used = SortedDecomposition().solve_chained(scores, polytope) is not None
    assert used or kind in ("integer", "equal", "zero"), "cuts coincide where scores tie, and only there"
    brief, ours = with_derivatives(scores, polytope, SortedDecomposition())
    monkeypatch.delattr(SortedDecomposition, "solve_chained")
    written, theirs = with_derivatives(scores, polytope, SortedDecomposition())
    assert torch.equal(brief.atoms, written.atoms)
    assert torch.equal(brief.row, written.row)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("scores", "polytope"),
    [
        ([0.3, 0.6, 0.4], Budget(3, 2)),  # 0.6 + 0.4 is an integer by chance, not as the budget binds
        ([0.3, 0.7], Budget(2, 1, exactly=True)),  # the sum is held fixed, though it would be the same if it were not
        ([0.5, 0.5, 0.5, 0.5], Budget(4, 3)),
    ],
)
def test_coincidences_are_solved_for(scores: list[float], polytope: Polytope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    given = torch.tensor([scores, scores], dtype=torch.float64)
    assert SortedDecomposition().solve_chained(given, polytope) is None
    found = sparsemap(given, polytope, solver=SortedDecomposition())
    torch.testing.assert_close(found.mean(), given.clamp(min=0))


@pytest.mark.parametrize("polytope", [BernoulliCube(9), Budget(9, 4), Budget(9, 4, exactly=True)], ids=repr)
def test_derivatives_of_the_compiled_decomposition(polytope: Polytope) -> None:
    """Against central differences of the weights themselves; the fast path is taken."""
    scores = scores_for(polytope, "small", batch=6)
    assert in_one_pass(scores, polytope, scores.dtype) is not None

    def weights(leaf: Tensor) -> Tensor:
        return sparsemap(leaf, polytope, solver=SortedDecomposition()).probs

    leaf = scores.requires_grad_()
    assert torch.autograd.gradcheck(weights, leaf, eps=1e-7)
    assert torch.autograd.gradgradcheck(lambda leaf: weights(leaf).square(), leaf, eps=1e-7)


def test_where_cuts_coincide_the_plain_decomposition_runs() -> None:
    """Two halves and two halves on three bits: the grid passes two ends at once, and one structure less has mass."""
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.35, 0.7]], dtype=torch.float64)
    assert in_one_pass(scores, Budget(4, 3), scores.dtype) is None
    assert in_one_pass(scores[1:], Budget(4, 3), scores.dtype) is not None
    found = sparsemap(scores, Budget(4, 3), solver=SortedDecomposition())
    torch.testing.assert_close(found.mean(), scores)
    assert found.support_size().tolist() == [2, 5]


def _written(nested: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The structures of a nested decomposition."""
    order, probs = nested
    place = order.argsort(-1)[:, None]
    return (place < torch.arange(probs.shape[-1])[:, None]).double(), probs


class Astray(Simplex):
    """With a decomposition of another mean than the one it is given."""

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        atoms, probs = super().decompose(mean)
        return atoms, torch.cat([probs[..., 1:], probs[..., :1]], -1)


def test_a_decomposition_of_another_mean_is_not_certified() -> None:
    scores = torch.tensor([[0.3, 0.1, -0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="did not converge on 1 of 2 rows"):
        found = sparsemap(scores, Astray(3), solver=SortedDecomposition())
    assert found.stats.converged.tolist() == [False, True]  # pyright: ignore
    mean = projection(torch.eye(3).double(), scores).roll(-1, -1)
    gap = ((scores - mean) * (torch.eye(3)[(scores - mean).argmax(-1)] - mean)).sum(-1)
    torch.testing.assert_close(found.stats.gap, gap.clamp(min=0), rtol=0, atol=1e-12)  # pyright: ignore
