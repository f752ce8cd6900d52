"""Models and estimators on a GPU, or on a device that is pretended."""

import pytest
import torch
from devices import assert_same
from devices import device as device
from sparsemarg.layers import SparseMAP, Sparsemax, TopKSparsemax
from sparsemarg.layers.functional import (
    sparsemap,
)
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.models import BitVectorVAE, Decoder, Encoder, Receiver, SemiSupervisedVAE, Sender, SignalGame
from sparsemarg.models.estimators import Marginalize
from sparsemarg.models.likelihood import mixture_importance, posterior_and_prior, posterior_importance
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
)
from test_estimators import EVERY
from torch import Tensor, nn


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
