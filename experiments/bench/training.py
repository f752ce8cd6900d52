"""One training step of each experiment with each estimator, at the published sizes, on random data."""

from collections.abc import Callable, Iterator
from typing import ParamSpec
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ...layers import SparseMAP, Sparsemax, TopKSparsemax
from ...layers.solvers import SortedDecomposition
from ...models import BitVectorVAE, Decoder, Encoder, Receiver, SemiSupervisedVAE, Sender, SignalGame, pixel_cross_entropy
from ...models import vae as vae_module
from ...models.estimators import (
    ConstantTemperature,
    DenseMarginalize,
    Estimator,
    GumbelSoftmax,
    Marginalize,
    ScoreFunction,
    SelfCritic,
)
from ...models.objective import plain
from ...oracles import BernoulliCube, Budget, Polytope, Simplex
from .case import Candidates, Case

Given = ParamSpec("Given")
BITS, BATCH = 32, 64
GUMBEL = "straight-through Gumbel"


def monte_carlo(polytope: Polytope) -> dict[str, Callable[[], Estimator]]:
    """The estimators that call the decoder once or twice."""
    return {
        GUMBEL: lambda: GumbelSoftmax(polytope, ConstantTemperature(1.0), straight_through=True),
        "SFE+": lambda: ScoreFunction(polytope, SelfCritic()),
    }


BIT_VECTOR: dict[str, Callable[[], Estimator]] = {
    "SparseMAP": lambda: Marginalize(SparseMAP(BernoulliCube(BITS), coding="pairs")),
    "SparseMAP, sorted": lambda: Marginalize(SparseMAP(BernoulliCube(BITS), coding="pairs", solver=SortedDecomposition())),
    "SparseMAP, budget": lambda: Marginalize(SparseMAP(Budget(BITS, BITS // 2), coding="pairs")),
    "top-k": lambda: Marginalize(TopKSparsemax(BernoulliCube(BITS), 10)),
    **monte_carlo(BernoulliCube(BITS)),
}
# Milliseconds of the published code at the start of training, one thread of a Xeon VM.
RECORDED_BITS = {"SparseMAP": 4266.0, "SparseMAP, budget": 4048.0, "top-k": 1550.0, GUMBEL: 147.0, "SFE+": 286.0}
RECORDED_GAME = {"sparsemax": 8800.0, "dense": 24_000.0}


def cases(device: torch.device) -> Iterator[Case]:
    """The training steps, and the pixel likelihood by itself."""
    for name in BIT_VECTOR:
        official = RECORDED_BITS.get(name)
        yield Case(
            "training step",
            f"bit-vector VAE at the start, {name}",
            {"B": BATCH, "D": BITS},
            lambda name=name: {"ours": _bit_vector(name, device, certain=False)},
            None if official is None else ("official step", official),
            quick=name == "top-k",
        )
    yield Case(
        "training step",
        "bit-vector VAE, SparseMAP of support 1",
        {"B": BATCH, "D": BITS},
        lambda: {
            "ours": _bit_vector("SparseMAP", device, certain=True),
            f"{GUMBEL} (ours)": _bit_vector(GUMBEL, device, False),
            f"{GUMBEL}, plain torch": in_plain_torch(_bit_vector(GUMBEL, device, False)),
        },
        quick=True,
    )
    yield Case(
        "training step",
        "bit-vector VAE at the start, SparseMAP, by decoder row",
        {"B": BATCH, "D": BITS},
        lambda: _by_decoder_row(device),
    )
    categories = Simplex(256)
    for name, make in {
        "sparsemax": lambda: Marginalize(Sparsemax()),
        "dense": lambda: DenseMarginalize(categories),
        **monte_carlo(categories),
    }.items():
        official = RECORDED_GAME.get(name)
        yield Case(
            "training step",
            f"signal game at the start, {name}",
            {"B": BATCH, "K": 256},
            lambda make=make: {"ours": _game(make(), device)},
            None if official is None else ("official step", official),
        )
    for name, make in {
        "sparsemax": lambda: Marginalize(Sparsemax()),
        "dense": lambda: DenseMarginalize(Simplex(10)),
        **monte_carlo(Simplex(10)),
    }.items():
        yield Case(
            "training step",
            f"semi-supervised VAE at the start, {name}",
            {"B": BATCH, "K": 10},
            lambda make=make: {"ours": _semi_supervised(make(), device)},
        )
    yield Case(
        "decoder",
        "pixel likelihood, 784 pixels, 256 levels, rank 5",
        {"pairs": 64},
        lambda: _likelihood(device, 64, 784, 256),
        ("hand-written, another machine", 29.0),
        quick=True,
    )
    yield Case(
        "decoder",
        "pixel likelihood, 784 pixels, 256 levels, rank 5, no derivatives",
        {"pairs": 64},
        lambda: _likelihood(device, 64, 784, 256, derivatives=False),
    )
    yield Case(
        "decoder",
        "pixel likelihood, 64 pixels, 17 levels, rank 5",
        {"pairs": 640},
        lambda: _likelihood(device, 640, 64, 17),
    )


def _by_decoder_row(device: torch.device) -> Candidates:
    """SparseMAP's step on a batch, and straight-through Gumbel's on as many images as that has pairs of an image and a code."""
    vae, images = bit_vector_vae("SparseMAP", device, certain=False)
    with torch.no_grad():
        pairs = int(vae(images).estimate.evaluations)
    gumbel, _ = bit_vector_vae(GUMBEL, device, certain=False)
    many = torch.randint(0, 256, (pairs, 784), dtype=torch.uint8, device=device)
    return {
        "ours": _step(vae, lambda: vae(images).loss),
        f"{GUMBEL} on as many decoder rows": _step(gumbel, lambda: gumbel(many).loss),
    }


def bit_vector_vae(name: str, device: torch.device, certain: bool) -> tuple[nn.Module, Tensor]:
    """A bit-vector VAE with random weights and a batch of random images; `certain`: every bit's score is beyond doubt."""
    torch.manual_seed(0)
    vae = BitVectorVAE(Encoder(784, 256, BITS), Decoder(BITS, 784, 256), BIT_VECTOR[name]()).to(device)
    if certain:
        with torch.no_grad():
            vae.encoder.output.bias.add_(10)
    return vae, torch.randint(0, 256, (BATCH, 784), dtype=torch.uint8, device=device)


def in_plain_torch(step: Callable[Given, object]) -> Callable[Given, object]:
    """A step with the likelihood of all pixels from all their logits, by torch's operations."""

    def likelihood(features: Tensor, head: nn.Linear, images: Tensor, **_: object) -> Tensor:
        return plain(features, head.weight, head.bias, images.long())

    def replaced(*given: Given.args, **options: Given.kwargs) -> object:
        with patch.object(vae_module, "pixel_cross_entropy", likelihood):
            return step(*given, **options)

    return replaced


def _bit_vector(name: str, device: torch.device, certain: bool) -> Callable[[], object]:
    vae, images = bit_vector_vae(name, device, certain)
    # A learning rate of zero keeps the support what it is; the optimizer's work is the same.
    return _step(vae, lambda: vae(images).loss)


def _game(estimator: Estimator, device: torch.device) -> Callable[[], object]:
    torch.manual_seed(0)
    game = SignalGame(estimator, Sender(4096), Receiver(4096), 0.1).to(device)
    images = nn.functional.normalize(torch.randn(BATCH, 16, 4096, device=device), dim=-1)
    position = torch.randint(0, 16, (BATCH,), device=device)
    target = images[torch.arange(BATCH, device=device), position]
    return _step(game, lambda: game(target, images, position).loss)


def _semi_supervised(estimator: Estimator, device: torch.device) -> Callable[[], object]:
    torch.manual_seed(0)
    vae = SemiSupervisedVAE(estimator).to(device)
    images = torch.rand(2 * BATCH, 784, device=device).bernoulli()
    labels = torch.randint(0, 10, (BATCH,), device=device)
    return _step(vae, lambda: vae(images[BATCH:]).loss * 9 + vae.labelled_cost(images[:BATCH], labels).mean())


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _likelihood(device: torch.device, pairs: int, pixels: int, levels: int, derivatives: bool = True) -> Candidates:
    torch.manual_seed(0)
    head, images = nn.Linear(5, levels).to(device), torch.randint(0, levels, (pairs, pixels), device=device)
    features = torch.randn(pairs, pixels, 5, device=device, requires_grad=True)
    inputs = [features, head.weight, head.bias]

    def finish(compute: Callable[[], Tensor]) -> object:
        with torch.set_grad_enabled(derivatives):
            costs = compute()
        return torch.autograd.grad(costs.sum(), inputs) if derivatives else costs

    return {
        "ours": lambda: finish(lambda: pixel_cross_entropy(features, head, images)),
        "plain torch": lambda: finish(lambda: plain(features, head.weight, head.bias, images)),
    }
