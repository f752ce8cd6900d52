"""Derivatives: against central differences, of every order and mode that the layers promise."""

import itertools

import pytest
import torch
from cases import POLYTOPE_SOLVERS, POLYTOPES, SOLVERS, scores_for
from sparsemarg.layers.functional import refit, sparsemap, sparsemap_marginals, sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, Solver, SortedDecomposition
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Simplex
from sparsemarg.verification.results import RingRuns
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap


def network(dim: int):
    """A small random MLP of an atom, [n, D] -> [n]: nonlinear, so that the distribution matters, not just its mean."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(dim, 7, generator=generator, dtype=torch.float64)
    second = torch.randn(7, generator=generator, dtype=torch.float64)
    return lambda atoms, row: (atoms @ first).tanh() @ second


# At a kink (two atoms tied, a weight that is just zero) the derivative does not exist; random normal scores are not at one,
# and central differences of step 1e-6 do not reach one for these seeds.
@pytest.mark.parametrize("kind", ["normal", "small", "large"])
@pytest.mark.parametrize(("polytope", "solver"), POLYTOPE_SOLVERS)
def test_sparsemap_expectation(polytope: str, solver: str, kind: str) -> None:
    chosen = POLYTOPES[polytope]
    leaf = scores_for(chosen, kind, batch=2, seed=1).requires_grad_()

    def value(scores: Tensor) -> Tensor:
        found = sparsemap(scores, chosen, solver=SOLVERS[solver])
        return found.expectation(network(chosen.dim)) + found.entropy()

    assert torch.autograd.gradcheck(value, leaf)
    assert torch.autograd.gradgradcheck(value, leaf)


def mean_jacobian(scores: Tensor, polytope: Polytope, solver: Solver) -> tuple[Tensor, Tensor]:
    """d mean / d scores of one row [D, D], and the differences of its atoms."""
    found = sparsemap(scores, polytope, solver=solver)
    jacobian = torch.autograd.functional.jacobian(lambda s: sparsemap(s, polytope, solver=solver).mean(), scores)
    return jacobian, found.atoms[1:] - found.atoms[:1]  # pyright: ignore


def interior(dim: int, seed: int) -> Tensor:
    """Scores of which no coordinate saturates on the cube: the hardest case for the rank of the support."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * torch.randn(dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dim", [8, 32, 128])
def test_sorted_decomposition_has_the_whole_jacobian(dim: int) -> None:
    for polytope in (BernoulliCube(dim), Budget(dim, dim // 3)):
        scores = interior(dim, 0)
        wanted = torch.autograd.functional.jacobian(lambda s, p=polytope: p.project(s), scores)
        jacobian, _ = mean_jacobian(scores, polytope, SortedDecomposition())
        torch.testing.assert_close(jacobian, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dim", [8, 16, 24, 32, 128])
def test_active_set_has_the_jacobian_projected_on_its_atoms(dim: int) -> None:
    """Paper eq. 17: the orthogonal projector on the span of the atoms' differences; all of it where `stats` says so."""
    complete = 0
    for seed in range(5):
        polytope, scores = BernoulliCube(dim), interior(dim, seed)
        jacobian, differences = mean_jacobian(scores, polytope, ActiveSet())
        basis = torch.linalg.qr(differences.T).Q
        torch.testing.assert_close(jacobian, basis @ basis.T, atol=1e-8, rtol=0)
        stats = sparsemap(scores, polytope).stats
        gap, margin = float(stats.gap), float(stats.margin)  # pyright: ignore
        if gap < 1e-13 and margin > 1e-9:
            complete += 1
            torch.testing.assert_close(jacobian, torch.eye(dim, dtype=torch.float64), atol=1e-6, rtol=0)
        lost = (dim - float(torch.trace(jacobian))) / dim
        print(f"D={dim}: support {len(differences) + 1}, gap {gap:.0e}, margin {margin:.0e}, {lost:.0%} of directions lost")
    assert complete == 5 or dim > 16


@pytest.mark.parametrize("name", POLYTOPES)
def test_topk_sparsemax_expectation(name: str) -> None:
    polytope = POLYTOPES[name]
    leaf = scores_for(polytope, "normal", batch=4, seed=1).requires_grad_()

    def value(scores: Tensor) -> Tensor:
        found = topk_sparsemax(scores, polytope, 3)
        return found.expectation(network(polytope.dim)) + found.entropy()

    assert torch.autograd.gradcheck(value, leaf)
    assert torch.autograd.gradgradcheck(value, leaf)


@pytest.mark.parametrize("name", POLYTOPES)
def test_marginals(name: str) -> None:
    polytope = POLYTOPES[name]
    leaf = scores_for(polytope, "normal", batch=4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: sparsemap_marginals(scores, polytope), leaf)
    assert torch.autograd.gradgradcheck(lambda scores: sparsemap_marginals(scores, polytope), leaf)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_sparsemax(dim: int) -> None:
    leaf = scores_for(Simplex(6), "normal", batch=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: sparsemax(scores, dim), leaf, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda scores: sparsemax(scores, dim), leaf, check_fwd_over_rev=True)


def test_sparsemax_jacobian_is_equation_10() -> None:
    scores = scores_for(Simplex(6), "small", batch=1)[0]
    support = (sparsemax(scores) > 0).double()
    wanted = torch.diag(support) - torch.outer(support, support) / support.sum()
    torch.testing.assert_close(torch.autograd.functional.jacobian(sparsemax, scores), wanted)


def test_sparsemax_under_function_transforms() -> None:
    scores = scores_for(Simplex(6), "small", batch=5)
    wanted = torch.stack([torch.autograd.functional.jacobian(sparsemax, row) for row in scores])  # pyright: ignore
    torch.testing.assert_close(vmap(sparsemax)(scores), sparsemax(scores), atol=0, rtol=0)
    torch.testing.assert_close(vmap(jacrev(sparsemax))(scores), wanted)
    torch.testing.assert_close(vmap(jacfwd(sparsemax))(scores), wanted)
    tangent = scores_for(Simplex(6), "normal", batch=5, seed=1)
    moved = jvp(sparsemax, (scores,), (tangent,))[1]
    torch.testing.assert_close(moved, (wanted @ tangent[..., None])[..., 0])


@pytest.mark.parametrize("polytope", [BernoulliCube(5), Budget(6, 3, exactly=True)], ids=repr)
def test_refit_under_function_transforms(polytope: Polytope) -> None:
    scores = scores_for(polytope, "small", batch=5)
    support = ActiveSet().solve(scores, polytope)

    def alone(scores: Tensor, atoms: Tensor, probs: Tensor) -> Tensor:
        return refit(scores[None], atoms[None], probs[None])[0]

    rows = list(zip(scores, support.atoms, support.probs, strict=True))
    wanted = torch.stack([torch.autograd.functional.jacobian(lambda s, a=a, p=p: alone(s, a, p), s) for s, a, p in rows])  # pyright: ignore
    inputs = (scores, support.atoms, support.probs)
    torch.testing.assert_close(vmap(alone)(*inputs), refit(*inputs))
    torch.testing.assert_close(vmap(jacrev(alone))(*inputs), wanted)
    torch.testing.assert_close(vmap(jacfwd(alone))(*inputs), wanted)
    tangent = scores_for(polytope, "normal", batch=5, seed=1)
    moved = jvp(lambda s: refit(s, support.atoms, support.probs), (scores,), (tangent,))[1]
    torch.testing.assert_close(moved, (wanted @ tangent[..., None])[..., 0])


def test_refit_is_the_kkt_system() -> None:
    """Equation 13, solved densely by NumPy's least squares, and its Jacobian, equation 17."""
    polytope = Budget(6, 3)
    scores = scores_for(polytope, "small", batch=8, seed=2)
    support = ActiveSet().solve(scores, polytope)
    found = refit(scores, support.atoms, support.probs)
    for row in range(8):
        used = support.probs[row] > 0
        atoms = support.atoms[row][used]
        count = len(atoms)
        system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        system[:count, :count] = atoms @ atoms.T
        system[:count, count] = system[count, :count] = 1
        inverse = torch.from_numpy(__import__("numpy").linalg.pinv(system.numpy()))
        right = torch.cat([atoms @ scores[row], torch.ones(1, dtype=torch.float64)])
        torch.testing.assert_close(found[row][used], (inverse @ right)[:count], atol=1e-10, rtol=0)
        jacobian = torch.autograd.functional.jacobian(lambda s, row=row: refit(s, support.atoms, support.probs)[row], scores)
        torch.testing.assert_close(jacobian[used][:, row], inverse[:count, :count] @ atoms, atol=1e-10, rtol=0)  # pyright: ignore


def test_refit_refuses_dependent_atoms() -> None:
    corners = torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"support of row 0 are affinely dependent.*at most dim \+ 1"):
        refit(torch.full((1, 2), 0.5, dtype=torch.float64), corners, torch.full((1, 4), 0.25, dtype=torch.float64))


def test_one_atom_gives_no_gradient() -> None:
    """Collapse: where every coordinate saturates the distribution is one atom and the scores' gradient exactly zero."""
    leaf = torch.tensor([[5.0, -5.0, 7.0]], requires_grad=True)
    found = sparsemap(leaf, BernoulliCube(3))
    assert found.support_size().tolist() == [1]
    (gradient,) = torch.autograd.grad(found.expectation(lambda atoms, row: atoms.square().sum(-1)).sum(), leaf)
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_compile_without_graph_breaks() -> None:
    scores = scores_for(BernoulliCube(6), "small", batch=5)
    compiled = torch.compile(sparsemax, fullgraph=True)
    torch.testing.assert_close(compiled(scores), sparsemax(scores))
    # How many atoms have mass is known only at run time: dynamo must be allowed to trace that.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        decoder = network(6)
        for polytope, k in itertools.product((BernoulliCube(6), Budget(6, 2)), (None, 3)):

            def value(scores: Tensor, polytope: Polytope = polytope, k: int | None = k) -> Tensor:
                if k is None:
                    found = sparsemap(scores, polytope, solver=SortedDecomposition())
                else:
                    found = topk_sparsemax(scores, polytope, k)
                return found.expectation(decoder) + found.entropy()

            plain, traced = scores.clone().requires_grad_(), scores.clone().requires_grad_()
            result = torch.compile(value, fullgraph=True)(traced)
            torch.testing.assert_close(result, value(plain))
            result.sum().backward()
            value(plain).sum().backward()
            torch.testing.assert_close(traced.grad, plain.grad)


@pytest.mark.parametrize("solver", [ActiveSet(), SortedDecomposition()], ids=["active set", "sorted"])
@pytest.mark.parametrize("polytope", [BernoulliCube(6), Budget(6, 3)], ids=repr)
def test_transforms_that_begin_after_the_forward_pass(polytope: Polytope, solver: Solver) -> None:
    """Kernels cannot take part in these, and give way: batched gradients, `vmap` of a backward pass, forward over reverse."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    mean = sparsemap(scores, polytope, solver=solver).mean()

    def pulled(gradient: Tensor, **options: bool) -> Tensor:
        return torch.autograd.grad(mean, scores, gradient, retain_graph=True, **options)[0]

    units = torch.eye(24, dtype=torch.float64).view(24, 4, 6)
    jacobian = torch.stack([pulled(unit) for unit in units])
    torch.testing.assert_close(pulled(units, is_grads_batched=True), jacobian)
    torch.testing.assert_close(torch.func.vmap(pulled)(units), jacobian)
    with torch.autograd.forward_ad.dual_level():
        pair = torch.autograd.forward_ad.make_dual(units[0], units[1])
        found = torch.autograd.forward_ad.unpack_dual(pulled(pair))
        torch.testing.assert_close(found.primal, jacobian[0])
        assert found.tangent is not None
        torch.testing.assert_close(found.tangent, jacobian[1])
    whole = torch.func.jacrev(lambda t: sparsemap(t, polytope, solver=solver).mean())(scores.detach())
    torch.testing.assert_close(whole.view(24, 4, 6), jacobian)
    # The distribution from outside of the transform, what is transformed from inside.
    fixed, weights = sparsemap(scores.detach(), polytope, solver=solver), torch.rand(3, 6, generator=generator).double()
    values = torch.func.vmap(lambda w: fixed.expectation(lambda atoms, row: atoms @ w))(weights)
    torch.testing.assert_close(values, weights @ fixed.mean().T)
    torch.testing.assert_close(torch.func.grad(lambda w: (fixed.mean() @ w).sum())(weights[0]), fixed.mean().sum(0))


class Plain(BernoulliCube):
    """The cube, as a user may write it."""


@pytest.mark.parametrize("solver", [ActiveSet(), SortedDecomposition()], ids=["active set", "sorted"])
@pytest.mark.parametrize("polytope", [BernoulliCube(6), Budget(6, 3), Plain(6)], ids=lambda p: type(p).__name__)
def test_scores_lie_in_memory_as_they_like(polytope: Polytope, solver: Solver) -> None:
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.arange(1.0, 25.0, dtype=torch.float64).view(4, 6)
    wide = torch.zeros(4, 12, dtype=torch.float64)
    wide[:, ::2] = scores
    found = []
    for given in (scores, scores.T.contiguous().T, wide[:, ::2]):
        leaf = given.detach().requires_grad_()
        mean = sparsemap(leaf, polytope, solver=solver).mean()
        found.append((mean.detach(), torch.autograd.grad((weights * mean).sum(), leaf)[0]))
    for mean, gradient in found[1:]:
        assert torch.equal(mean, found[0][0])
        torch.testing.assert_close(gradient, found[0][1], atol=1e-13, rtol=0)


def test_batched_gradients_of_topk_and_sparsemax() -> None:
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    units = torch.eye(24, dtype=torch.float64).view(24, 4, 6)
    for value in (topk_sparsemax(scores, BernoulliCube(6), 4).mean(), sparsemax(scores)):
        wanted = [torch.autograd.grad(value, scores, unit, retain_graph=True)[0] for unit in units]
        found = torch.autograd.grad(value, scores, units, is_grads_batched=True)[0]
        torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("solver", [ActiveSet(), SortedDecomposition()], ids=["active set", "sorted"])
@pytest.mark.parametrize("polytope", [BernoulliCube(6), Budget(6, 3)], ids=repr)
def test_the_derivative_is_settled_in_the_forward_pass(
    polytope: Polytope, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done to the atoms and weights, and to the switch of the kernels, between forward and backward."""
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    found = sparsemap(scores, polytope, solver=solver)
    weights = torch.arange(1.0, len(found.probs) + 1, dtype=torch.float64)
    value = (found.probs * weights).sum()
    (wanted,) = torch.autograd.grad(value, scores, retain_graph=True)
    found.atoms.mul_(2).sub_(1)
    found.probs.mul_(2)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert torch.equal(torch.autograd.grad(value, scores)[0], wanted)


def test_the_active_set_says_that_it_takes_whole_batches() -> None:
    scores, slope = torch.rand(3, 6, dtype=torch.float64), torch.func.grad(lambda t: sparsemap(t, RingRuns()).entropy())
    for function in (slope, lambda t: sparsemap(t, BernoulliCube(6)).mean()):
        with pytest.raises(ValueError, match=r"sparsemap cannot run under torch\.func\.vmap: pass the whole batch \[B, D\]"):
            vmap(function)(scores)
