"""What must be the same on a GPU. Without one most of it runs all the same, on a device that is pretended."""

from itertools import pairwise

import pytest
import torch
from cases import KINDS, POLYTOPE_SOLVERS, POLYTOPES, SOLVERS, scores_for
from devices import STRUCTURED, Cube, assert_same, f, on_gpu
from devices import device as device
from sparsemarg.experiments.bench.waits import host_waits
from sparsemarg.kernels import in_triton
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import (
    lp_sparsemap,
    perturbed_loss,
    regret,
    sparsemap,
    sparsemap_loss,
    sparsemap_marginals,
    sparsemax,
    sparsemax_loss,
    spo_plus_loss,
    structured_hinge_loss,
    topk_sparsemax,
)
from sparsemarg.layers.solvers import ActiveSet, SortedDecomposition, recorded
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
    Factor,
    FactorGraph,
    LinearChain,
    Polytope,
    Simplex,
    SupportsGibbs,
    supports,
    topk,
)
from sparsemarg.oracles.simplex_projection import project_by_sorting
from torch import Tensor

# Operators


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("polytope", "solver"), POLYTOPE_SOLVERS)
def test_sparsemap_chooses_the_same_atoms(device: torch.device, polytope: str, solver: str, kind: str) -> None:
    chosen = POLYTOPES[polytope]
    there = scores_for(chosen, kind).to(device).requires_grad_()
    here = scores_for(chosen, kind).requires_grad_()
    gradients = []
    found = [sparsemap(scores, chosen, solver=SOLVERS[solver]) for scores in (here, there)]
    for scores, distribution in zip((here, there), found, strict=True):
        value = distribution.expectation(f) + distribution.entropy()
        gradients.append(torch.autograd.grad(value.sum(), scores)[0].cpu())
    assert found[1].atoms.device.type == device.type
    assert torch.equal(found[0].atoms, found[1].atoms.cpu())
    torch.testing.assert_close(found[0].probs, found[1].probs.cpu(), atol=1e-12, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", POLYTOPES)
def test_topk_sparsemax_chooses_the_same_atoms(device: torch.device, name: str) -> None:
    scores = scores_for(POLYTOPES[name], "normal")
    here, there = topk_sparsemax(scores, POLYTOPES[name], 5), topk_sparsemax(scores.to(device), POLYTOPES[name], 5)
    assert torch.equal(here.atoms, there.atoms.cpu())
    torch.testing.assert_close(here.probs, there.probs.cpu(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("polytope", STRUCTURED, ids=repr)
def test_structured_polytopes(device: torch.device, polytope: Polytope) -> None:
    scores = scores_for(polytope, "normal")
    here, there = sparsemap(scores, polytope), sparsemap(scores.to(device), polytope)
    assert torch.equal(here.atoms, there.atoms.cpu())
    torch.testing.assert_close(here.probs, there.probs.cpu(), atol=1e-12, rtol=0)
    for found, wanted in zip(topk(polytope, scores.to(device), 5), topk(polytope, scores, 5), strict=True):
        assert torch.equal(found.cpu(), wanted)
    if supports(polytope, SupportsGibbs):
        gibbs = polytope.gibbs(scores.to(device))
        torch.testing.assert_close(gibbs.entropy().cpu(), polytope.gibbs(scores).entropy(), atol=1e-12, rtol=0)
        assert bool((gibbs.log_prob(gibbs.sample((3,))) > -torch.inf).all())


@pytest.mark.parametrize("polytope", STRUCTURED, ids=repr)
def test_means_and_losses_of_structured_polytopes(device: torch.device, polytope: Polytope) -> None:
    def work(device: torch.device) -> list[Tensor]:
        scores = scores_for(polytope, "normal").to(device).requires_grad_()
        mean = sparsemap_marginals(scores, polytope)
        loss = sparsemap_loss(scores, polytope.maximize(scores_for(polytope, "normal", seed=1).to(device)), polytope)
        return [mean.detach(), loss.detach(), *torch.autograd.grad(f(mean, loss).sum(), scores)]

    assert_same(device, work)


@pytest.mark.parametrize("polytope", STRUCTURED, ids=repr)
def test_losses_that_ask_the_oracle(device: torch.device, polytope: Polytope) -> None:
    def work(device: torch.device) -> list[Tensor]:
        scores = scores_for(polytope, "normal").to(device).requires_grad_()
        values = scores_for(polytope, "normal", seed=1).to(device)
        loss, best = spo_plus_loss(scores, values, polytope), polytope.maximize(values)
        if best.max() <= 1:  # rankings are not 0/1
            loss = loss + structured_hinge_loss(scores, best, polytope)
        assert perturbed_loss(scores, best, polytope, samples=2).isfinite().all()
        return [loss.detach(), regret(scores, values, polytope), *torch.autograd.grad(loss.sum(), scores)]

    assert_same(device, work)


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.95), (0.5, 0.5)], ids=["large faces", "ties"])
def test_the_whole_derivative_of_means(device: torch.device, low: float, high: float) -> None:
    """A cube that has no closed form, with more fractional coordinates than a support spans."""

    class Corners(Polytope):
        dim = 80

        def maximize(self, scores: Tensor) -> Tensor:
            return (scores > 0).to(scores)

    def work(device: torch.device) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        scores = low + (high - low) * torch.rand(3, 80, generator=generator, dtype=torch.float64)
        vector = torch.randn(3, 80, generator=generator, dtype=torch.float64).to(device)
        leaf = scores.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(sparsemap_marginals(leaf, Corners()), leaf, vector)
        torch.testing.assert_close(gradient, vector, atol=1e-6, rtol=0)
        return [gradient]

    assert_same(device, work, tolerance=1e-6)


def test_a_factor_graph(device: torch.device) -> None:
    chain = LinearChain(2, 2, regularize_transitions=False)
    factors = [Factor(chain, range(4)), Factor(Budget(3, 1), [0, 2, 4]), Factor(Budget(2, 1), [1, 4])]

    def work(device: torch.device) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(3, 5, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        prices = torch.randn(3, chain.dim - 4, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        found = lp_sparsemap(scores, FactorGraph(5, factors), [prices, None, None])
        values = found.mean.tanh().sum(-1) + found.factor(0).expectation(f)
        return [found.mean.detach(), *torch.autograd.grad(values.sum(), [scores, prices])]

    assert_same(device, work, tolerance=1e-6)


def test_all_that_a_distribution_does(device: torch.device) -> None:
    def work(device: torch.device) -> list[Tensor]:
        scores = scores_for(BernoulliCube(6), "normal").to(device).requires_grad_()
        found = sparsemap(scores, BernoulliCube(6))
        again = SparseDistribution.from_padded(*found.padded())
        pieces = found.expectation(f, max_atoms=3) + found.expectation(f)
        (gradient,) = torch.autograd.grad(pieces.sum(), scores)
        told = [found.mean(), found.entropy(), found.mode(), found.log_prob(found.mode()), again.mean(), pieces]
        told += [found[2:].mean(), found[0].entropy(), found.to(torch.float32).mean()]
        return [*(tensor.detach() for tensor in told), found.support_size(), gradient]

    assert_same(device, work)
    drawn = sparsemap(scores_for(BernoulliCube(6), "normal").to(device), BernoulliCube(6)).sample((4,))
    assert drawn.device.type == device.type
    assert drawn.shape == (4, 8, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sparsemax(device: torch.device, dtype: torch.dtype) -> None:
    scores = scores_for(Simplex(1000), "small").to(dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(sparsemax(scores.to(device)).cpu(), sparsemax(scores), atol=eps, rtol=4 * eps)
    labels = torch.arange(len(scores))
    losses = sparsemax_loss(scores.to(device), labels.to(device)), sparsemax_loss(scores, labels)
    torch.testing.assert_close(losses[0].cpu(), losses[1], atol=eps, rtol=4 * eps)


@pytest.mark.parametrize("count", [1, 300, 32_768, 100_000])
def test_sparsemax_of_any_length(device: torch.device, count: int) -> None:
    scores = torch.randn(4, count, generator=torch.Generator().manual_seed(0))
    leaf = scores.to(device).requires_grad_()
    probs = sparsemax(leaf)
    torch.testing.assert_close(probs.detach().cpu(), project_by_sorting(scores), atol=1e-6, rtol=0)
    weights = torch.randn(4, count, generator=torch.Generator().manual_seed(1))
    other = scores.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(project_by_sorting(other), other, weights)
    (found,) = torch.autograd.grad(probs, leaf, weights.to(device))
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-5, rtol=0)


# On a GPU alone


@on_gpu
def test_kernels_are_launched() -> None:
    """Else all of this compares tensor operations with themselves. Triton needs a C compiler and Python's headers."""
    where = ("sparsemarg.oracles", "project_rows", torch.device("cuda"))
    assert in_triton(".kernels.triton_simplex", *where) is not None, "Triton cannot start kernels on this machine"


@on_gpu
def test_the_host_does_not_wait_for_iterations() -> None:
    """As often for problems of some ten iterations as for those of a hundred, which are solved in one kernel."""

    def counted(dim: int) -> int:
        scores = torch.rand(64, dim, generator=torch.Generator().manual_seed(0)).cuda()
        return host_waits(lambda: sparsemap(scores, BernoulliCube(dim)))

    assert counted(8) == counted(100)


@on_gpu
@pytest.mark.parametrize("polytope", [BernoulliCube(100), Budget(100, 40)], ids=repr)
def test_sorted_kernels_check_the_scores_by_the_way(polytope: Polytope) -> None:
    """The host waits once, for the number of structures, and is told with it that scores are finite and rows have converged."""
    scores = scores_for(polytope, "normal", batch=16).cuda()
    for check in (True, False):
        assert host_waits(lambda check=check: sparsemap(scores, polytope, solver=SortedDecomposition(), check=check)) == 1


@on_gpu
def test_the_host_waits_twice_for_the_active_set_in_one_kernel() -> None:
    """For what the scores are like, and for the number of structures."""
    scores = scores_for(BernoulliCube(100), "normal", batch=16).cuda()
    assert host_waits(lambda: sparsemap(scores, BernoulliCube(100))) == 2


@on_gpu
@pytest.mark.parametrize("polytope", [BernoulliCube(100), Cube(100), LinearChain(10, 4)], ids=repr)
def test_the_host_waits_once_in_eight_iterations(polytope: Polytope) -> None:
    """Beside an oracle in Python; and never for one that has a kernel. `test_waits` counts them without a GPU."""
    scores = scores_for(polytope, "small", batch=16).cuda()
    counted = [
        host_waits(lambda most=most: sparsemap(scores, polytope, solver=ActiveSet(max_iter=most), coding="pairs", check=False))
        for most in (8, 16, 24)
    ]
    assert all(0 <= more - fewer <= 2 for fewer, more in pairwise(counted))


@on_gpu
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


@on_gpu
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


@on_gpu
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


@on_gpu
def test_what_one_capture_breaks_another_does_not_find() -> None:
    """A capture that is invalid ends otherwise than one that raises: its pool of memory can be left in use."""

    class Synchronises(BernoulliCube):
        def maximize(self, scores: torch.Tensor) -> torch.Tensor:
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
            return super().maximize(scores)

    recorded.forget()
    broken, sound = Synchronises(20), Cube(20)
    scores = scores_for(sound, "normal", batch=30).cuda()
    with pytest.warns(UserWarning, match="cannot be recorded"):
        sparsemap(scores, broken, solver=ActiveSet(record=True))
    found, wanted = sparsemap(scores, sound, solver=ActiveSet(record=True)), sparsemap(scores, sound)
    assert torch.equal(found.atoms, wanted.atoms)
    assert all(isinstance(kept, recorded.Recording) for kept in recorded._kept.values() if kept is not broken)


@on_gpu
def test_recordings_share_their_memory() -> None:
    """The first takes room for its state and for what its iterations compute, each other one of the shape for its state."""
    recorded.forget()
    scores = scores_for(Cube(60), "normal", batch=256).cuda()
    sparsemap(scores, Cube(60), solver=ActiveSet())  # whatever is made once
    taken = []
    for _ in range(3):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        sparsemap(scores, Cube(60), solver=ActiveSet(record=True))  # a polytope of its own, and so are its recordings
        torch.cuda.empty_cache()
        taken.append(torch.cuda.memory_reserved() - before)
    assert max(taken[1:]) < taken[0]
