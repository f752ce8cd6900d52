"""Solvers: the mean against closed forms and a second algorithm, the support, reproducibility, non-convergence."""

import re
import subprocess
import sys
import warnings

import pytest
import torch
from cases import (
    KINDS,
    POLYTOPE_SOLVERS,
    POLYTOPES,
    SOLVERS,
    Ring,
    enumerated,
    projection,
    ring_vertices,
    scores_for,
    with_derivatives,
)
from sparsemarg.layers import ConvergenceWarning, SparseMAP
from sparsemarg.layers.functional import sparsemap, sparsemap_marginals, topk_sparsemax
from sparsemarg.layers.refit import refit
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, SortedDecomposition
from sparsemarg.layers.solvers.active_set import compiled_method
from sparsemarg.oracles import (
    AtLeastOne,
    AtMostOne,
    BernoulliCube,
    Budget,
    Explicit,
    Permutahedron,
    Polytope,
    Product,
    Simplex,
    SupportsProjection,
    supports,
)
from structures import assert_same_bits
from torch import Tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("polytope", "solver"), POLYTOPE_SOLVERS)
def test_sparsemap_equals_the_qp_over_all_structures(polytope: str, solver: str, kind: str) -> None:
    chosen = POLYTOPES[polytope]
    vertices, scores = enumerated(chosen), scores_for(chosen, kind)
    found = sparsemap(scores, chosen, solver=SOLVERS[solver])
    check_distribution(found, vertices)
    torch.testing.assert_close(found.mean(), projection(vertices, scores), atol=1e-8, rtol=0)


def check_distribution(found, vertices: Tensor) -> None:
    """A distribution over listed structures, each once a row, with a support of at most D + 1 and a true certificate."""
    assert found.stats.converged.all()
    assert (found.probs >= 0).all()
    _, probs = found.padded()
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]), atol=1e-6, rtol=0)
    assert found.support_size().max() <= vertices.shape[1] + 1
    match = (found.atoms[:, None] == vertices).all(-1)
    assert match.any(-1).all(), "not a structure"
    pairs = torch.stack([found.row, match.to(torch.int8).argmax(-1)])
    assert pairs.unique(dim=1).shape[1] == pairs.shape[1], "a structure twice in a row"


large = [
    (polytope, sigma, dtype)
    for dim in (32, 128)
    for polytope in (BernoulliCube(dim), Budget(dim, dim // 2))
    for sigma in (0.3, 1.0, 3.0, None)
    for dtype in (torch.float64, torch.float32)
]


@pytest.mark.parametrize(("polytope", "sigma", "dtype"), large, ids=str)
def test_no_bad_row_of_512(polytope: Polytope, sigma: float | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(512, polytope.dim, generator=generator, dtype=torch.float64)
    scores = (torch.full_like(normal, 0.37) if sigma is None else sigma * normal).to(dtype)
    found = sparsemap(scores, polytope)
    assert supports(polytope, SupportsProjection)
    error = (found.mean().double() - polytope.project(scores.double())).abs().amax(-1)
    bad = int((error > (1e-8 if dtype == torch.float64 else 1e-5)).sum())
    print(f"{polytope} sigma={sigma} {dtype}: {bad} bad rows of 512, worst {error.max():.1e}, ", end="")
    print(f"support {found.support_size().double().mean():.1f}, iterations {found.stats.iterations.double().mean():.1f}")
    assert bad == 0
    assert (found.probs >= 0).all()
    _, probs = found.padded()
    assert (probs.sum(-1) - 1).abs().max() <= 1e-6
    assert found.support_size().max() <= polytope.dim + 1


def test_a_polytope_of_ten_lines() -> None:
    """`Ring` has `dim` and `maximize`, nothing else."""
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        scores = scores_for(Ring(), "normal", batch=200, seed=7).to(dtype)
        wanted = projection(ring_vertices(), scores.double())
        torch.testing.assert_close(sparsemap(scores, Ring()).mean().double(), wanted, atol=tolerance, rtol=0)
        best = topk_sparsemax(scores, Ring(), 6)
        full = projection(torch.eye(6, dtype=torch.float64), scores.double() @ ring_vertices().T)
        torch.testing.assert_close(best.mean().double(), full @ ring_vertices(), atol=tolerance, rtol=0)
        assert best.stats.exact.all()  # pyright: ignore


@pytest.mark.parametrize(("polytope", "solver"), POLYTOPE_SOLVERS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_same_input_same_bits(polytope: str, solver: str, deterministic: bool) -> None:
    scores = scores_for(POLYTOPES[polytope], "integer", batch=20)
    torch.use_deterministic_algorithms(deterministic)
    try:
        runs = []
        for _ in range(2):
            leaf = scores.clone().requires_grad_()
            found = sparsemap(leaf, POLYTOPES[polytope], solver=SOLVERS[solver])
            value = found.expectation(lambda atoms, row: atoms.cumsum(-1).tanh().sum(-1))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            runs.append([found.atoms, found.probs.detach(), found.row, value.detach(), gradient])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", ["normal", "small", "integer", "equal"])
@pytest.mark.parametrize("polytope", [BernoulliCube(32), Budget(32, 16), Ring()], ids=repr)
def test_a_row_does_not_depend_on_its_batch(polytope: Polytope, kind: str) -> None:
    scores = scores_for(polytope, kind, batch=40)
    atoms, probs = sparsemap(scores, polytope).padded()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    permuted_atoms, permuted_probs = sparsemap(scores[order], polytope).padded()
    assert torch.equal(permuted_atoms, atoms[order])
    assert_same_bits(permuted_probs, probs[order], in_tensors=1e-12)
    for row in range(0, 40, 7):
        alone_atoms, alone_probs = sparsemap(scores[row], polytope).padded()
        used = alone_probs > 0
        assert torch.equal(alone_atoms[used], atoms[row][probs[row] > 0])
        assert_same_bits(alone_probs[used], probs[row][probs[row] > 0], in_tensors=1e-12)


def same_atoms(scores: Tensor, rounded: Tensor, polytope: Polytope) -> int:
    """On how many rows SparseMAP of the two scores has the same atoms."""
    one, other = sparsemap(scores, polytope), sparsemap(rounded, polytope)
    (atoms, probs), (other_atoms, other_probs) = one.padded(), other.padded()
    width = max(atoms.shape[1], other_atoms.shape[1])
    atoms = torch.nn.functional.pad(atoms, (0, 0, 0, width - atoms.shape[1]))
    other_atoms = torch.nn.functional.pad(other_atoms, (0, 0, 0, width - other_atoms.shape[1]))
    same_size = (probs > 0).sum(-1) == (other_probs > 0).sum(-1)
    return int(((atoms == other_atoms).all(-1).all(-1) & same_size).sum())


wide = torch.randn(60, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64).float().double()
sixteen = [
    *(BernoulliCube(16), Budget(16, 8), Budget(16, 8, exactly=True), Simplex(16)),
    *(Explicit(wide), Product(Simplex(6), Budget(10, 4)), Product(Ring(), BernoulliCube(10))),
]


@pytest.mark.parametrize("polytope", sixteen, ids=repr)
def test_float32_and_float64_choose_the_same_atoms(polytope: Polytope) -> None:
    """On the same scores, and on scores rounded to float32: a relative change of 6e-8."""
    scores = scores_for(polytope, "normal", batch=1000, seed=11)
    exact = scores.float().double()
    assert same_atoms(exact, exact.float(), polytope) == 1000
    assert same_atoms(scores, scores.float(), polytope) == 1000


@pytest.mark.parametrize("polytope", [BernoulliCube(128), Budget(128, 64)], ids=repr)
def test_float32_and_float64_atoms_in_large_dimension(polytope: Polytope) -> None:
    scores = scores_for(polytope, "normal", batch=1000, seed=11)
    exact = scores.float().double()
    print(f"{polytope}: same atoms on {same_atoms(scores, scores.float(), polytope)} of 1000 rows after rounding to float32")
    assert same_atoms(exact, exact.float(), polytope) == 1000


kernel_cases = [*POLYTOPES.values(), BernoulliCube(40), Budget(40, 20), Budget(128, 64), BernoulliCube(70)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", kernel_cases, ids=repr)
def test_the_compiled_method_is_the_plain_one(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_for(polytope, kind, batch=30)
    assert compiled_method(scores.device) is not None
    fast = ActiveSet().solve(scores, polytope)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert compiled_method(scores.device) is None
    plain = ActiveSet().solve(scores, polytope)
    assert torch.equal(fast.atoms, plain.atoms)
    # What is left after the lightest atoms are dropped is made optimal again in the compiled state, and else by `refit`.
    torch.testing.assert_close(fast.probs, refit(scores, plain.atoms, plain.probs), atol=1e-12, rtol=0)
    assert torch.equal(fast.stats.iterations, plain.stats.iterations)
    assert torch.equal(fast.stats.converged, plain.stats.converged)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polytope", kernel_cases, ids=repr)
def test_packed_weights_are_those_of_the_refit(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms to the bit, weights, first and second derivatives, in two threads; large scores among them."""
    scores = scores_for(polytope, kind, batch=30)
    scores[4] *= 1e3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    packed, ours = with_derivatives(scores, polytope, ActiveSet())
    monkeypatch.delattr(ActiveSet, "solve_packed")
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    padded, theirs = with_derivatives(scores, polytope, ActiveSet())
    assert torch.equal(packed.atoms, padded.atoms)
    assert torch.equal(packed.row, padded.row)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-11)
    for one, other in zip(ours[1:], theirs[1:], strict=True):  # an updated factorisation against a fresh one
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("polytope", kernel_cases, ids=repr)
def test_the_sensitivity_is_that_of_the_kkt_system(polytope: Polytope) -> None:
    """P is the block of [[A'A, 1], [1', 0]]^-1 that belongs to the weights (paper eq. 17)."""
    found = ActiveSet().solve(scores_for(polytope, "normal", batch=30), polytope)
    # Real-valued structures may be close to dependent: their factorisation is not kept.
    if found.sensitivity is None:
        assert isinstance(polytope, Explicit)
        return
    for atoms, probs, ours in zip(found.atoms, found.probs, found.sensitivity, strict=True):
        count = int((probs > 0).sum())
        system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        system[:count, :count] = atoms[:count] @ atoms[:count].T
        system[:count, count] = system[count, :count] = 1
        wanted = system.inverse()[:count, :count]
        # Both are as good as the condition number, some 1e7 with 47 atoms of 128 bits.
        least = float(torch.finfo(wanted.dtype).eps * torch.linalg.cond(system) * wanted.abs().max())
        torch.testing.assert_close(ours[:count, :count], wanted, atol=1e-9 + least, rtol=1e-9)
        assert not ours[count:].any()
        assert not ours[:, count:].any()


def test_the_plain_iteration_runs_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from sparsemarg.layers.functional import sparsemap\n"
        "from sparsemarg.layers.solvers.active_set import compiled_method\n"
        "from sparsemarg.oracles import BernoulliCube\n"
        "assert compiled_method(torch.device('cpu')) is None\n"
        "print(sparsemap(torch.tensor([[0.25, 2.0]]), BernoulliCube(2)).mean().tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[[0.25, 1.0]]"


@pytest.mark.parametrize("solver", [ActiveSet(max_iter=5), PairwiseFrankWolfe(max_iter=5)], ids=repr)
def test_stopping_early_is_data(solver) -> None:
    polytope = BernoulliCube(40)
    leaf = scores_for(polytope, "small").requires_grad_()
    with pytest.warns(ConvergenceWarning, match=r"did not converge on 8 of 8 rows \(largest gap .*raise max_iter or tol"):
        found = sparsemap(leaf, polytope, solver=solver)
    assert not found.stats.converged.any()  # pyright: ignore
    _, probs = found.padded()
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[:, 0]))
    (gradient,) = torch.autograd.grad(found.entropy().sum(), leaf)
    assert gradient.isfinite().all()


def test_the_gap_bounds_the_error_of_an_early_stop() -> None:
    polytope = BernoulliCube(40)
    scores = scores_for(polytope, "small")
    for iterations in (2, 5, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = sparsemap(scores, polytope, solver=PairwiseFrankWolfe(max_iter=iterations))
        error = (found.mean() - polytope.project(scores)).square().sum(-1)
        assert (error <= found.stats.gap + 1e-12).all()  # pyright: ignore


APART = [[-1.0, 0, 0, -1], [1, 2, 1, 2]]


@pytest.mark.parametrize(
    ("polytope", "scores"),
    [
        (
            Product(Simplex(2), Permutahedron([2.0, 1.0, 0.0]), AtLeastOne(3)),
            [0.0, 0, 0.249999998, 1, -0.500000001, 0.369999998, -0.500000001, 0.250000001],
        ),
        (
            Product(AtMostOne(4, [True, False, False, False]), AtMostOne(4, [True, False, False, False]), Explicit(APART)),
            [
                *(-1.4638568832258763e-08, 0, 2.0305038965450374e-08, 0, 9.875894173116105e-09, 7.207708804841057e-09, 0),
                *(1.1032482072892296e-09, -9.099797630293492e-09, 0, 0, 1.292319085079907e-08),
            ],
        ),
    ],
    ids=["near ties", "low scores"],
)
def test_frank_wolfe_arrives_where_an_atom_has_hardly_any_mass(polytope: Product, scores: list[float]) -> None:
    """About its tolerance: left out, that atom would be just what the certificate misses."""
    given = torch.tensor([scores], dtype=torch.float64)
    found = sparsemap(given, polytope, solver=PairwiseFrankWolfe())
    assert found.stats.converged.all()  # pyright: ignore
    assert (found.stats.gap < 1e-9).all()  # pyright: ignore
    torch.testing.assert_close(found.mean(), projection(polytope.vertices(), given), atol=1e-8, rtol=0)


def test_pairs_coding_is_the_projection_of_half_one_plus_scores() -> None:
    scores = scores_for(BernoulliCube(8), "large")
    wanted = ((1 + scores) / 2).clamp(0, 1)
    torch.testing.assert_close(sparsemap(scores, BernoulliCube(8), coding="pairs").mean(), wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(sparsemap_marginals(scores, BernoulliCube(8), coding="pairs"), wanted)
    # Two indicators a bit, as the equivalence says: the projection of [t, 0] on the hull of [z, 1 - z].
    bits = enumerated(BernoulliCube(8))
    twice = projection(torch.cat([bits, 1 - bits], -1), torch.cat([scores, torch.zeros_like(scores)], -1))
    torch.testing.assert_close(twice[:, :8], wanted, atol=1e-8, rtol=0)


class Unfinished(Polytope):
    """Without `dim`."""

    def maximize(self, scores: Tensor) -> Tensor:
        return scores


class Shapeless(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores)[0]


class Boolean(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores).bool()


class SinglePrecision(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize((scores @ torch.eye(6)).double())


class Nothing(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return None  # pyright: ignore


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: sparsemap(s, Shapeless()), "Shapeless.maximize must return one structure a row"),
        (lambda s: sparsemap(s, Nothing()), "it returned NoneType"),
        (lambda s: sparsemap(s, Boolean()), "Boolean.maximize returned torch.bool on cpu for scores of torch.float64"),
        (lambda s: sparsemap(s, SinglePrecision()), "SinglePrecision.maximize failed on torch.float64 scores"),
        (lambda s: sparsemap(s, Ring(), solver=SortedDecomposition()), "SortedDecomposition needs Ring.project"),
        (
            lambda s: sparsemap(s, Unfinished()),
            "an object with `dim` and `maximize`, e.g. BernoulliCube(8), not Unfinished(dim=?)",
        ),
        (lambda s: sparsemap(s, BernoulliCube(5)), "scores has 6 columns but BernoulliCube(dim=5) needs 5"),
        (lambda s: sparsemap(s.long(), Ring()), "scores must be a float tensor, not torch.int64"),
        (lambda s: sparsemap(s[0, 0], Ring()), "scores has no dimension but"),
        (lambda s: sparsemap(s, Ring(), coding="bit"), 'coding must be "bits" (paper eq. 4) or "pairs"'),
        (lambda s: SparseMAP(Ring(), coding="none"), 'coding must be "bits"'),  # pyright: ignore
        (lambda s: sparsemap(s, Ring(), solver=ActiveSet), "solver must be an instance of a solver, e.g. ActiveSet()"),  # pyright: ignore
        (lambda s: sparsemap(s, Ring(), solver="active"), "solver must be an instance of a solver"),  # pyright: ignore
        (lambda s: ActiveSet(max_iter=0), "ActiveSet: max_iter must be at least 1, not 0"),
        (lambda s: ActiveSet(max_iter=2.5), "ActiveSet: max_iter must be an int at least 1, not 2.5"),  # pyright: ignore
        (lambda s: ActiveSet(max_iter=True), "max_iter must be an int at least 1, not True"),
        (lambda s: ActiveSet(tol=-1), "tol must be at least 0, not -1"),
        (lambda s: PairwiseFrankWolfe(max_iter=0), "max_iter must be at least 1, not 0"),
        (lambda s: PairwiseFrankWolfe(tol=float("nan")), "tol must be at least 0, not nan"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(scores_for(Ring(), "normal"))
