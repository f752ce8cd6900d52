"""Structures with parts that are not regularised. Truth is the QP over all structures, by cvxpy and by least squares."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sparsemarg.layers.functional import refit, sparsemap, sparsemap_loss, sparsemap_marginals
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, Solver, SortedDecomposition
from sparsemarg.layers.solvers.supports import Support
from sparsemarg.oracles import BernoulliCube, Explicit, LinearChain, Parts, Polytope, Product, Simplex
from sparsemarg.verification import parametrize_with_checks, verify
from sparsemarg.verification.cvxpy_references import QuadraticProgram
from sparsemarg.verification.enumeration import partial_mean
from torch import Tensor


class Pair(Polytope):
    """Two bits and their product, which takes a score and is not penalised: a factor of a pairwise graph."""

    dim = 3
    regularized = slice(0, 2)

    def maximize(self, scores: Tensor) -> Tensor:
        return PAIR.to(scores)[(scores @ PAIR.to(scores).T).argmax(-1)]


PAIR = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)


def random_vertices(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
CASES: dict[str, tuple[Polytope, Tensor]] = {
    "chain": (chain := LinearChain(4, 3, regularize_transitions=False), chain.vertices()),
    "binary chain": (binary := LinearChain(6, 2, regularize_transitions=False), binary.vertices()),
    "pair": (Pair(), PAIR),
    # Far more structures than the regularised coordinates can tell apart: most atoms are combinations of others there.
    "random": (Explicit(random_vertices(30, 6), regularized=torch.tensor([4, 1])), random_vertices(30, 6)),
    "cube": (Explicit(BITS, regularized=torch.tensor([True, True, False, False, False, False])), BITS),
    "product": (product := Product(Simplex(3), LinearChain(2, 2, regularize_transitions=False)), product.vertices()),
}
SOLVERS: list[Solver] = [ActiveSet(), PairwiseFrankWolfe()]


def scores_of(polytope: Polytope, rows: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(rows, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def regularized(polytope: Polytope) -> np.ndarray:
    parts = Parts.of(polytope)
    assert parts is not None
    return np.isin(np.arange(polytope.dim), parts.regularized.numpy())


def objective(polytope: Polytope, mean: Tensor, scores: Tensor) -> Tensor:
    return (mean * scores).sum(-1) - mean[..., regularized(polytope)].square().sum(-1) / 2


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_sparsemap_equals_the_qp_over_all_structures(name: str, solver: Solver, scale: float) -> None:
    polytope, structures = CASES[name]
    on = regularized(polytope)
    scores = scores_of(polytope, 10, scale)
    found = sparsemap(scores, polytope, solver=solver)
    assert found.stats.converged.all()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    assert int(found.support_size().max()) <= on.sum() + 1
    assert all(any(torch.equal(atom, one) for one in structures) for atom in found.atoms)
    truth, known = partial_mean(structures.numpy(), scores.numpy(), on)
    by_cvxpy, _ = QuadraticProgram(structures.numpy(), on).solve(scores.numpy())
    assert known.all()
    mean = found.mean()
    np.testing.assert_allclose(mean[:, on], truth[:, on], atol=1e-8, rtol=0)
    np.testing.assert_allclose(mean[:, on], by_cvxpy[:, on], atol=1e-6, rtol=0)
    best = objective(polytope, torch.from_numpy(truth), scores)
    torch.testing.assert_close(objective(polytope, mean, scores), best, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_tied_scores(name: str) -> None:
    """Where the rest of the mean is not determined: zero and integer scores."""
    polytope, structures = CASES[name]
    on = regularized(polytope)
    scores = torch.cat([torch.zeros(1, polytope.dim, dtype=torch.float64), scores_of(polytope, 30).mul(2).round()])
    truth, _ = partial_mean(structures.numpy(), scores.numpy(), on)
    for solver in SOLVERS:
        found = sparsemap(scores, polytope, solver=solver)
        assert found.stats.converged.all()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        np.testing.assert_allclose(found.mean()[:, on], truth[:, on], atol=1e-8, rtol=0)
        torch.testing.assert_close(
            objective(polytope, found.mean(), scores), objective(polytope, torch.from_numpy(truth), scores), atol=1e-9, rtol=0
        )


def test_a_chain_without_transition_scores_is_sparsemax_at_every_position() -> None:
    chain = LinearChain(5, 4, regularize_transitions=False)
    unary = torch.randn(7, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = sparsemap(chain.scores(unary, torch.zeros(4, 4, 4, dtype=torch.float64)), chain).mean()
    torch.testing.assert_close(chain.parts(mean)[0], Simplex(4).project(unary), atol=1e-9, rtol=0)


def test_both_ways_of_a_chain() -> None:
    """With the transitions regularised too the mean is another one, and both are what their problems say."""
    partly, wholly = LinearChain(3, 2, regularize_transitions=False), LinearChain(3, 2)
    scores = scores_of(partly, 20)
    one, other = sparsemap(scores, partly).mean(), sparsemap(scores, wholly).mean()
    assert (one - other).abs().max() > 0.1
    assert (objective(partly, one, scores) >= objective(partly, other, scores) - 1e-12).all()
    assert ((one - scores).square().sum(-1) >= (other - scores).square().sum(-1) - 1e-12).all()


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_iteration_is_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    polytope, _ = CASES[name]
    scores = torch.cat([scores_of(polytope, 20, scale) for scale in (0.1, 1.0)] + [scores_of(polytope, 20).round()])
    fast = ActiveSet().solve(scores, polytope)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    plain = ActiveSet().solve(scores, polytope)
    assert torch.equal(fast.atoms, plain.atoms)
    refitted = refit(scores, plain.atoms, plain.probs, parts=Parts.of(polytope))
    torch.testing.assert_close(fast.probs, refitted, atol=1e-12, rtol=0)
    # Real-valued structures in few dimensions are ill-conditioned: one more step may be needed until the slopes agree.
    assert (fast.stats.iterations - plain.stats.iterations).abs().max() <= (name == "random")


@pytest.mark.parametrize(
    ("name", "solver"), [(name, SOLVERS[0]) for name in CASES] + [(name, SOLVERS[1]) for name in ("pair", "random")]
)
def test_gradients(name: str, solver: Solver) -> None:
    """Of an expectation, in the scores of all parts, at random scores: central differences."""
    polytope, _ = CASES[name]
    theta = torch.randn(polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def value(scores: Tensor) -> Tensor:
        found = sparsemap(scores, polytope, solver=solver)
        return found.expectation(lambda atoms, row: (atoms @ theta).sin()) + found.entropy()

    leaf = scores_of(polytope, 3, 0.5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(value, leaf)
    assert torch.autograd.gradgradcheck(value, leaf)
    (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
    rest = torch.from_numpy(~regularized(polytope))
    assert gradient[:, rest].abs().max() > 1e-3 or name == "cube"  # the cube's rest does not depend on scores, but for jumps


@pytest.mark.parametrize("coding", ["bits", "pairs"])
def test_loss(coding) -> None:
    """Zero at the maximiser, positive elsewhere, its gradient mu - y (half of it with pairs)."""
    polytope, structures = CASES["chain"]
    leaf = scores_of(polytope, 5, seed=2).requires_grad_()
    target = structures[torch.tensor([0, 5, 20, 33, 80])]
    loss = sparsemap_loss(leaf, target, polytope, coding=coding)
    mean = sparsemap_marginals(leaf, polytope, coding=coding)
    assert (loss > 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    torch.testing.assert_close(gradient, (mean - target).detach() * (1 if coding == "bits" else 0.5))
    torch.testing.assert_close(
        sparsemap_loss(leaf, mean.detach(), polytope, coding=coding), torch.zeros_like(loss), atol=1e-12, rtol=0
    )
    assert torch.autograd.gradcheck(lambda s: sparsemap_loss(s, target, polytope, coding=coding), leaf)


def test_pairs_coding_has_two_indicators_for_each_regularised_coordinate() -> None:
    structures = torch.cat([PAIR, 1 - PAIR[:, :2]], -1)
    twice = Explicit(structures, regularized=torch.tensor([0, 1, 3, 4]))
    scores = scores_of(Pair(), 20)
    found = sparsemap(scores, Pair(), coding="pairs").mean()
    wanted = sparsemap(torch.cat([scores, torch.zeros(20, 2, dtype=torch.float64)], -1), twice).mean()
    torch.testing.assert_close(found, wanted[:, :3], atol=1e-8, rtol=0)


def test_masked_lengths() -> None:
    chain = LinearChain(5, 2, regularize_transitions=False)
    lengths = torch.tensor([5, 1, 3, 2])
    scores = chain.mask(scores_of(chain, 4), lengths)
    together = sparsemap(scores, chain)
    for row, length in enumerate(lengths.tolist()):
        small = LinearChain(length, 2, regularize_transitions=False)
        unary, pairs = chain.parts(scores[row])
        alone = sparsemap(small.scores(unary[:length], pairs[: length - 1]), small).mean()
        torch.testing.assert_close(chain.parts(together.mean()[row])[0][:length], small.parts(alone)[0], atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    "chain", [LinearChain(6, 3, regularize_transitions=False), LinearChain(20, 5, regularize_transitions=False)], ids=repr
)
def test_random_chains(chain: LinearChain, scale: float) -> None:
    """500 problems: converged, at most |R| + 1 atoms, the gap by the oracle."""
    scores = scores_of(chain, 500, scale)
    found = sparsemap(scores, chain)
    assert found.stats.converged.all()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    assert int(found.support_size().max()) <= chain.length * chain.states + 1
    parts = Parts.of(chain)
    assert parts is not None
    slope = scores - parts.penalized(found.mean())
    assert float(((chain.maximize(slope) - found.mean()) * slope).sum(-1).max()) < 5e-9


@pytest.mark.parametrize("switch", ["on", "off"])
def test_a_dependent_atom_is_seen_through_the_errors_of_the_factorisation(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A combination of other atoms once looked independent by 1e-11 here: the factorisation was worthless from there on."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    chain = LinearChain(20, 5, regularize_transitions=False)
    found = ActiveSet().solve(scores_of(chain, 200, 0.3, seed=29)[121:122], chain)
    assert found.stats.converged.all()
    assert found.stats.iterations.max() <= 150
    atoms = found.atoms[0, found.probs[0] > 0][:, regularized(chain)]
    bordered = torch.cat([atoms, torch.ones_like(atoms[:, :1])], -1)
    assert torch.linalg.matrix_rank(bordered) == len(atoms)


def test_refit_refuses_atoms_that_differ_elsewhere_only() -> None:
    atoms = torch.tensor([[[0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    with pytest.raises(ValueError, match="affinely dependent"):
        refit(
            torch.zeros(1, 3, dtype=torch.float64), atoms, torch.full((1, 2), 0.5, dtype=torch.float64), True, Parts.of(Pair())
        )


class Named(Pair):
    def __init__(self, regularized) -> None:
        self.regularized = regularized


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: sparsemap(s, Named([0, 1])),
            "Named.regularized must be None (all coordinates), a slice with a positive step",
        ),
        (lambda s: sparsemap(s, Named(torch.tensor([0.0, 1.0]))), "or int64 indices [R], not torch.float32 [2]"),
        (lambda s: sparsemap(s, Named(torch.tensor([True, False]))), "a bool mask [3]"),
        (lambda s: sparsemap(s, Named(torch.tensor([0, 3]))), "each once, between 0 and 2, not [0, 3]"),
        (lambda s: sparsemap(s, Named(torch.tensor([1, 1]))), "at least one coordinate, each once"),
        (lambda s: sparsemap(s, Named(slice(0, 0))), "at least one coordinate"),
        (lambda s: Explicit(PAIR, regularized=torch.tensor([5])), "Explicit.regularized must name"),
        (lambda s: sparsemap(s, Pair(), solver=SortedDecomposition()), "regularises some only; use ActiveSet()"),
    ],
)
def test_bad_input(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.zeros(1, 3))


def test_naming_all_coordinates_is_the_plain_problem() -> None:
    scores = scores_of(BernoulliCube(6), 5)
    named = sparsemap(scores, Explicit(BITS, regularized=slice(None)))
    plain = sparsemap(scores, Explicit(BITS))
    assert torch.equal(named.atoms, plain.atoms)
    assert torch.equal(named.probs, plain.probs)


class ForgetsParts(Solver):
    """Projects in all coordinates."""

    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        return ActiveSet().solve(scores, Explicit(PAIR))


def test_verify_finds_a_solver_that_regularises_everything() -> None:
    report = verify(Pair(), solvers=[ForgetsParts()], skip=["cvxpylayers"])
    failed = {result.check for result in report.results if result.status == "failed"}
    assert {"mean [ForgetsParts]", "certificate [ForgetsParts]"} <= failed


@parametrize_with_checks(
    [LinearChain(3, 2, regularize_transitions=False), Pair(), CASES["random"][0], CASES["product"][0]], batch=2
)
def test_verification(check: Callable[[], None]) -> None:
    check()
