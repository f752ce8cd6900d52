"""What must be the same on a GPU."""

import pytest
import torch
from cases import KINDS, POLYTOPE_SOLVERS, POLYTOPES, SOLVERS, scores_for
from sparsemarg.experiments.bench.waits import host_waits
from sparsemarg.layers.functional import sparsemap, sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, recorded
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.oracles import (
    Arborescence,
    AtLeastOne,
    BernoulliCube,
    Budget,
    Matching,
    Permutahedron,
    Polytope,
    Product,
    Simplex,
    SpanningTree,
    SupportsGibbs,
    supports,
    topk,
)
from sparsemarg.oracles.simplex import project_simplex
from torch import nn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("polytope", "solver"), POLYTOPE_SOLVERS)
def test_sparsemap_chooses_the_same_atoms(polytope: str, solver: str, kind: str) -> None:
    chosen = POLYTOPES[polytope]
    there = scores_for(chosen, kind).cuda().requires_grad_()
    here = scores_for(chosen, kind).requires_grad_()
    gradients = []
    found = [sparsemap(scores, chosen, solver=SOLVERS[solver]) for scores in (here, there)]
    for scores, distribution in zip((here, there), found, strict=True):
        value = distribution.expectation(lambda atoms, row: atoms.cumsum(-1).tanh().sum(-1)) + distribution.entropy()
        gradients.append(torch.autograd.grad(value.sum(), scores)[0].cpu())
    assert found[1].atoms.is_cuda
    assert torch.equal(found[0].atoms, found[1].atoms.cpu())
    torch.testing.assert_close(found[0].probs, found[1].probs.cpu(), atol=1e-12, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", POLYTOPES)
def test_topk_sparsemax_chooses_the_same_atoms(name: str) -> None:
    scores = scores_for(POLYTOPES[name], "normal")
    here, there = topk_sparsemax(scores, POLYTOPES[name], 5), topk_sparsemax(scores.cuda(), POLYTOPES[name], 5)
    assert torch.equal(here.atoms, there.atoms.cpu())
    torch.testing.assert_close(here.probs, there.probs.cpu(), atol=1e-12, rtol=0)


STRUCTURED: list[Polytope] = [
    Arborescence(4),
    Arborescence(4, single_root=True),
    AtLeastOne(4, [True, False, False, False]),
    Matching(3, 4),
    Permutahedron([3, 2, 1, 0]),
    Product(Simplex(2), Budget(3, 1), Simplex(2)),
    SpanningTree([(0, 1), (1, 2), (0, 2), (2, 3)]),
]


@pytest.mark.parametrize("polytope", STRUCTURED, ids=repr)
def test_structured_polytopes(polytope: Polytope) -> None:
    scores = scores_for(polytope, "normal")
    here, there = sparsemap(scores, polytope), sparsemap(scores.cuda(), polytope)
    assert torch.equal(here.atoms, there.atoms.cpu())
    torch.testing.assert_close(here.probs, there.probs.cpu(), atol=1e-12, rtol=0)
    for found, wanted in zip(topk(polytope, scores.cuda(), 5), topk(polytope, scores, 5), strict=True):
        assert torch.equal(found.cpu(), wanted)
    if supports(polytope, SupportsGibbs):
        gibbs = polytope.gibbs(scores.cuda())
        torch.testing.assert_close(gibbs.entropy().cpu(), polytope.gibbs(scores).entropy(), atol=1e-12, rtol=0)
        assert bool((gibbs.log_prob(gibbs.sample((3,))) > -torch.inf).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sparsemax(dtype: torch.dtype) -> None:
    scores = scores_for(Simplex(1000), "small").to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(sparsemax(scores.cuda()).cpu(), sparsemax(scores), atol=eps, rtol=4 * eps)


@pytest.mark.parametrize("count", [1, 300, 32_768, 100_000])
def test_sparsemax_of_any_length(count: int) -> None:
    scores = torch.randn(4, count, generator=torch.Generator().manual_seed(0))
    leaf = scores.cuda().requires_grad_()
    probs = sparsemax(leaf)
    torch.testing.assert_close(probs.cpu(), project_simplex(scores), atol=1e-6, rtol=0)
    weights = torch.randn(4, count, generator=torch.Generator().manual_seed(1))
    other = scores.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(project_simplex(other), other, weights)
    (found,) = torch.autograd.grad(probs, leaf, weights.cuda())
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-5, rtol=0)


def test_pixel_likelihood() -> None:
    torch.manual_seed(0)
    features, head, images = torch.randn(64, 784, 5), nn.Linear(5, 256), torch.randint(0, 256, (64, 784))
    on_device = nn.Linear(5, 256).cuda()
    on_device.load_state_dict(head.state_dict())
    there = [features.cuda().requires_grad_(), on_device.weight, on_device.bias]
    exact = [tensor.detach().double().requires_grad_() for tensor in (features, head.weight, head.bias)]
    costs, wanted = pixel_cross_entropy(there[0], on_device, images.cuda()), plain(*exact, images)
    torch.testing.assert_close(costs.cpu().double(), wanted, rtol=1e-5, atol=0)
    found = torch.autograd.grad(costs.sum(), there)
    for ours, theirs in zip(found, torch.autograd.grad(wanted.sum(), exact), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-5, atol=1e-3)


def test_the_host_does_not_wait_for_iterations() -> None:
    """As often for problems of some ten iterations as for those of a hundred."""

    def waits(dim: int) -> int:
        scores = torch.rand(64, dim, generator=torch.Generator().manual_seed(0)).cuda()
        return host_waits(lambda: sparsemap(scores, BernoulliCube(dim)))

    assert waits(8) == waits(100)


class Cube(BernoulliCube):
    """Without kernels, as a user would write it."""


def test_recorded_iterations_are_those_one_by_one() -> None:
    """The first batch of a shape is recorded, the next replay it; what autograd makes of them is the same."""
    polytope = Cube(40)
    for seed in range(4):
        scores = scores_for(polytope, "normal", batch=50, seed=seed).cuda().requires_grad_()
        found = [sparsemap(scores, polytope, solver=ActiveSet(record=record)) for record in (True, False)]
        assert torch.equal(found[0].atoms, found[1].atoms)
        torch.testing.assert_close(found[0].probs, found[1].probs, atol=1e-12, rtol=0)
        values = [(distribution.mean().cumsum(-1).tanh()).sum() for distribution in found]
        gradients = [torch.autograd.grad(value, scores)[0] for value in values]
        torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)
    assert any(isinstance(kept, recorded.Recording) for kept in recorded._kept.values())


def test_an_oracle_that_waits_runs_one_by_one_and_leaves_the_device_sound() -> None:
    class Waits(BernoulliCube):
        def maximize(self, scores: torch.Tensor) -> torch.Tensor:
            return super().maximize(scores) if scores.amax() > -1e9 else scores

    polytope = Waits(20)
    scores = scores_for(polytope, "normal", batch=30).cuda()
    with pytest.warns(UserWarning, match="cannot be recorded"):
        found = sparsemap(scores, polytope, solver=ActiveSet(record=True))
    wanted = sparsemap(scores, polytope)
    assert torch.equal(found.atoms, wanted.atoms)
    assert torch.randn(3, device="cuda").isfinite().all()  # the generator was not left in a capture


def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    class Shy(BernoulliCube):
        def maximize(self, scores: torch.Tensor) -> torch.Tensor:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("not while capturing")
            return super().maximize(scores)

    stream = torch.cuda.current_stream()
    scores = scores_for(Shy(20), "normal", batch=30).cuda()
    with pytest.warns(UserWarning, match="cannot be recorded"):
        sparsemap(scores, Shy(20), solver=ActiveSet(record=True))
    assert torch.cuda.current_stream() == stream
    assert torch.randn(3, device="cuda").isfinite().all()
