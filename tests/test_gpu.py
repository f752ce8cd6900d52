"""What must be the same on a GPU. Without one most of it runs all the same, on a device that is pretended."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from cases import KINDS, POLYTOPE_SOLVERS, POLYTOPES, SOLVERS, scores_for
from sparsemarg.experiments.bench.waits import host_waits
from sparsemarg.layers import SparseDistribution, SparseMAP, Sparsemax, TopKSparsemax
from sparsemarg.layers.functional import (
    lp_sparsemap,
    sparsemap,
    sparsemap_loss,
    sparsemap_marginals,
    sparsemax,
    sparsemax_loss,
    topk_sparsemax,
)
from sparsemarg.layers.solvers import ActiveSet, SortedDecomposition, recorded
from sparsemarg.models import BitVectorVAE, Decoder, Encoder, Receiver, SemiSupervisedVAE, Sender, SignalGame
from sparsemarg.models.estimators import Marginalize
from sparsemarg.models.likelihood import mixture_importance, posterior_and_prior, posterior_importance
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.oracles import (
    Arborescence,
    AtLeastOne,
    BernoulliCube,
    Budget,
    ExactlyOne,
    Factor,
    FactorGraph,
    Knapsack,
    LinearChain,
    Matching,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
    SupportsGibbs,
    placed,
    supports,
    topk,
)
from sparsemarg.oracles.simplex import project_simplex
from sparsemarg.verification.pretended_device import THERE, PretendedDevice
from test_estimators import EVERY
from torch import Tensor, nn

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_gpu:
        test = mark(test)
    return test


@pytest.fixture(params=[pytest.param("cuda", marks=needs_gpu), "pretended"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with PretendedDevice():
        yield THERE


Work = Callable[[torch.device], list[Tensor]]


def assert_same(device: torch.device, work: Work, tolerance: float = 1e-9) -> None:
    """That the work ends there, with what it gives on the CPU."""
    found, wanted = work(device), work(torch.device("cpu"))
    assert {tensor.device.type for tensor in found} == {device.type}
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=tolerance, rtol=0)


def f(atoms: Tensor, row: Tensor) -> Tensor:
    """A function of structures that is not linear."""
    return atoms.cumsum(-1).tanh().sum(-1) + row / 10


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


TRIANGLE = [(0, 1), (1, 2), (0, 2), (2, 3)]
STRUCTURED: list[Polytope] = [
    Arborescence(4),
    Arborescence(4, single_root=True),
    AtLeastOne(4, [True, False, False, False]),
    ExactlyOne(4),
    Knapsack([3, 2, 1, 2], 4),
    LinearChain(4, 3),
    LinearChain(4, 3, regularize_transitions=False),
    Matching(3, 4),
    Permutahedron([3, 2, 1, 0]),
    Product(Simplex(2), Budget(3, 1), Simplex(2)),
    ProjectiveTree(3),
    Segmentation(5, 3),
    ShortestPath([(0, 1), (1, 3), (0, 2), (2, 3)]),
    SpanningTree(TRIANGLE),
]


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
    torch.testing.assert_close(probs.detach().cpu(), project_simplex(scores), atol=1e-6, rtol=0)
    weights = torch.randn(4, count, generator=torch.Generator().manual_seed(1))
    other = scores.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(project_simplex(other), other, weights)
    (found,) = torch.autograd.grad(probs, leaf, weights.to(device))
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-5, rtol=0)


# Models


@pytest.mark.parametrize("name", EVERY)
def test_estimators_stay_on_the_device(device: torch.device, name: str) -> None:
    torch.manual_seed(0)
    estimator = EVERY[name]().to(device)
    scores = torch.randn(5, 3).to(device).requires_grad_()
    weights = torch.rand(5, 3).to(device).requires_grad_()
    for mode in (True, False):
        estimator.train(mode)
        estimate = estimator(
            scores, lambda atoms, row: (atoms * weights[row]).sum(-1) ** 2, context=torch.zeros(5, 2).to(device)
        )
        gradients = torch.autograd.grad((estimate.surrogate - estimate.entropy).sum(), [scores, weights])
        for tensor in (estimate.value, estimate.entropy, estimate.support, estimate.mode, *gradients):
            assert tensor.device.type == device.type
            assert bool(tensor.isfinite().all())


VAE_LAYERS = {
    "active set": lambda: SparseMAP(BernoulliCube(4), coding="pairs"),
    "sorted": lambda: SparseMAP(Budget(4, 2), coding="pairs", solver=SortedDecomposition()),
    "top-k": lambda: TopKSparsemax(BernoulliCube(4), k=5),
}


@pytest.mark.parametrize("name", VAE_LAYERS)
def test_the_bit_vector_vae(device: torch.device, name: str) -> None:
    images = torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(1))

    def work(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        encoder, decoder = Encoder(6, 5, 4, hidden=8), Decoder(4, 6, 5, hidden=8, rank=3)
        model = BitVectorVAE(encoder, decoder, Marginalize(VAE_LAYERS[name]())).double().to(device)
        bound = model(images.to(device))
        return [bound.negative_elbo.detach(), *torch.autograd.grad(bound.loss, list(model.parameters()))]

    assert_same(device, work)


def test_estimates_of_the_likelihood_stay_on_the_device(device: torch.device) -> None:
    torch.manual_seed(0)
    scores, pixels = torch.randn(3, 4).double().to(device), torch.randn(3, 4).double().to(device)

    def log_likelihood(codes: Tensor, images: Tensor) -> Tensor:
        return -((codes - pixels[images]) ** 2).sum(-1)

    sparse = sparsemap(scores, BernoulliCube(4), coding="pairs")
    for estimate in (
        posterior_and_prior(sparse, log_likelihood, 64),
        mixture_importance(sparse, log_likelihood, 64),
        posterior_importance(BernoulliCube(4).gibbs(scores), log_likelihood, 64),
    ):
        assert estimate.value.device.type == device.type
        assert bool(estimate.value.isfinite().all())


def test_the_semi_supervised_vae_and_the_signal_game(device: torch.device) -> None:
    torch.manual_seed(0)
    vae = SemiSupervisedVAE(Marginalize(Sparsemax()), pixels=6, classes=3, style=2, hidden=8, classifier_hidden=8).to(device)
    images, labels = torch.rand(5, 6).round().to(device), torch.tensor([0, 1, 2, 0, 1]).to(device)
    loss = vae(images).loss + vae.labelled_cost(images, labels).mean()
    gradients = list(torch.autograd.grad(loss, list(vae.parameters())))
    game = SignalGame(Marginalize(Sparsemax()), Sender(8, 5, 4, 6), Receiver(8, 5, 4), entropy_coefficient=0.1).to(device)
    features, position = torch.randn(5, 3, 8).to(device), torch.tensor([0, 1, 2, 0, 1]).to(device)
    target = features[torch.arange(5, device=device), position]
    play = game(target, features, position)
    gradients += torch.autograd.grad(play.loss, list(game.parameters()))
    assert game.success_expected(target, features, position).device.type == device.type
    for gradient in gradients:
        assert gradient.device.type == device.type
        assert bool(gradient.isfinite().all())


def test_pixel_likelihood(device: torch.device) -> None:
    torch.manual_seed(0)
    features, head, images = torch.randn(64, 784, 5), nn.Linear(5, 256), torch.randint(0, 256, (64, 784))
    on_device = nn.Linear(5, 256)
    on_device.load_state_dict(head.state_dict())
    on_device.to(device)
    there = [features.to(device).requires_grad_(), on_device.weight, on_device.bias]
    exact = [tensor.detach().double().requires_grad_() for tensor in (features, head.weight, head.bias)]
    costs, wanted = pixel_cross_entropy(there[0], on_device, images.to(device)), plain(*exact, images)
    torch.testing.assert_close(costs.detach().cpu().double(), wanted.detach(), rtol=1e-5, atol=0)
    found = torch.autograd.grad(costs.sum(), there)
    for ours, theirs in zip(found, torch.autograd.grad(wanted.sum(), exact), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-5, atol=1e-3)


# How often the host waits


class Cube(BernoulliCube):
    """Without kernels, as a user would write it."""


def waits(polytope: Polytope, max_iter: int) -> int:
    """Of one solve on a device, for the first of which constants may have been copied."""
    with PretendedDevice() as pretended:
        scores = scores_for(polytope, "small", batch=16).to(THERE)
        for _ in range(2):
            pretended.waits.clear()
            sparsemap(scores, polytope, solver=ActiveSet(max_iter=max_iter), coding="pairs", check=False)
    return pretended.waits.total()


# Not those whose oracle itself is on the CPU (assignments, by SciPy), or looks whether it is done (arborescences).
WAIT_FREE = [*(each for each in STRUCTURED if not isinstance(each, Arborescence | Matching)), Cube(40), *POLYTOPES.values()]


@pytest.mark.parametrize("polytope", WAIT_FREE, ids=repr)
def test_the_host_waits_once_in_eight_iterations(polytope: Polytope) -> None:
    """To look whether rows have converged; and once more where it puts these aside."""
    counted = [waits(polytope, max_iter) for max_iter in (8, 16, 24)]
    assert all(0 <= more - fewer <= 2 for fewer, more in pairwise(counted))
    assert counted[0] <= 14


def test_closed_forms_wait_as_often_in_any_dimension() -> None:
    with PretendedDevice() as pretended:
        counted = []
        for dim in (8, 100):
            scores = scores_for(BernoulliCube(dim), "normal").to(THERE).requires_grad_()
            pretended.waits.clear()
            found = sparsemap(scores, BernoulliCube(dim), solver=SortedDecomposition(), coding="pairs")
            torch.autograd.grad(found.mean().tanh().sum() + found.entropy().sum(), scores)
            counted.append(pretended.waits.total())
    assert counted[0] == counted[1] <= 5


def test_a_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with PretendedDevice() as pretended:
        there = torch.zeros(3).to(THERE)
        with pytest.raises(RuntimeError, match="found \\[3\\] on cpu"):
            there.add(torch.zeros(3))
        with pytest.raises(RuntimeError, match="found one of the CPU"):
            torch.rand(3, device=THERE).uniform_(generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert (there + torch.tensor(2.0)).cpu().tolist() == [2.0, 2.0, 2.0]  # single numbers may be anywhere
        pretended.waits.clear()
        assert bool((there == 0).all())
        assert len(there[there == 0]) == 3
        assert pretended.waits.total() == 2


def test_constants_are_copied_once_and_again_when_they_change() -> None:
    with PretendedDevice() as pretended:
        constant = torch.arange(3.0)
        first = placed(constant, THERE, torch.float64)
        pretended.waits.clear()
        assert placed(constant, THERE, torch.float64) is first
        assert placed(constant, constant.device) is constant
        assert pretended.waits.total() == 0
        constant[0] = 7
        assert placed(constant, THERE, torch.float64).tolist() == [7, 1, 2]
        with torch.inference_mode():
            made = placed(constant, THERE)
        assert not made.is_inference()


# On a GPU alone


@on_gpu
def test_the_host_does_not_wait_for_iterations() -> None:
    """As often for problems of some ten iterations as for those of a hundred, which are solved in one kernel."""

    def counted(dim: int) -> int:
        scores = torch.rand(64, dim, generator=torch.Generator().manual_seed(0)).cuda()
        return host_waits(lambda: sparsemap(scores, BernoulliCube(dim)))

    assert counted(8) == counted(100)


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
