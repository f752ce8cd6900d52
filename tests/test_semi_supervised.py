"""The semi-supervised VAE. Truth is torch.distributions, a sum over all classes, and the data themselves."""

import os
from pathlib import Path

import pytest
import torch
from experiment_cases import real_data
from sparsemarg.experiments import cli
from sparsemarg.experiments.batches import Batches
from sparsemarg.experiments.semi_supervised import SemiSupervisedVAETask
from sparsemarg.experiments.semi_supervised_data import (
    SemiSupervisedBatch,
    SemiSupervisedDigits,
    SemiSupervisedMNIST,
    published_split,
)
from sparsemarg.layers import Sparsemax, SparsemaxLoss
from sparsemarg.models import SemiSupervisedVAE
from sparsemarg.models.estimators import DenseMarginalize, Learned, Marginalize, ScoreFunction
from sparsemarg.oracles import Simplex
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F

SIZES = {"pixels": 12, "classes": 4, "style": 3, "hidden": 7, "classifier_hidden": 5}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors


def images_of(count: int, seed: int = 0) -> Tensor:
    return torch.randint(2, (count, 12), generator=torch.Generator().manual_seed(seed)).double()


def vae_with(estimator: nn.Module, **sizes: int) -> SemiSupervisedVAE:
    torch.manual_seed(0)
    return SemiSupervisedVAE(estimator, **{**SIZES, **sizes}).double()  # pyright: ignore[reportArgumentType]


# The model


@pytest.mark.parametrize("layers", [1, 2])
def test_cost_of_a_labelled_image(layers: int) -> None:
    """The inference network as one map of the image beside its class; the bound's halves by torch.distributions."""
    vae, images, labels = vae_with(DenseMarginalize(Simplex(4)), layers=layers), images_of(6), torch.arange(6) % 4
    torch.manual_seed(1)
    cost = vae.labelled_cost(images, labels)

    torch.manual_seed(1)
    classes = F.one_hot(labels, 4).double()
    weight = torch.cat([vae.inference_image.weight, vae.inference_class.weight], 1)
    hidden = F.relu(torch.cat([images, classes], 1) @ weight.T + vae.inference_image.bias)
    mean, log_deviation = vae.inference(hidden).split(3, 1)
    posterior = Independent(Normal(mean, log_deviation.exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    style = mean + log_deviation.exp() * torch.randn_like(mean)
    pixels = Independent(Bernoulli(logits=vae.decoder(torch.cat([style, classes], 1))), 1)
    torch.testing.assert_close(cost, kl_divergence(posterior, prior) - pixels.log_prob(images))


def test_number_of_layers_and_sizes() -> None:
    vae = SemiSupervisedVAE(DenseMarginalize(Simplex(10)))
    linear = [
        [tuple(m.weight.shape) for m in part if isinstance(m, nn.Linear)]
        for part in (vae.classifier, vae.inference, vae.decoder)
    ]
    assert linear == [
        [(256, 784), (256, 256), (256, 256), (10, 256)],
        [(128, 128), (16, 128)],  # after the first layer of 784 + 10 inputs
        [(128, 18), (128, 128), (784, 128)],
    ]
    assert vae.inference_image.weight.shape == (128, 784)
    assert vae.inference_class.weight.shape == (128, 10)
    bound = (784 + 10) ** -0.5
    assert 0.99 * bound < vae.inference_image.weight.abs().max() <= bound
    assert 0.9 * bound < vae.inference_class.weight.abs().max() <= bound


def test_dense_bound_is_the_sum_over_classes() -> None:
    vae, images = vae_with(DenseMarginalize(Simplex(4))), images_of(5)
    # Without the noise of h, which would be drawn in another order.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        bound = vae(images)
        probs = vae.classifier(images).softmax(1)
        costs = torch.stack([vae.labelled_cost(images, torch.full((5,), z)) for z in range(4)], 1)
    cost, divergence = (probs * costs).sum(1), (probs * (probs * 4).log()).sum(1)
    torch.testing.assert_close(bound.cost, cost.detach())
    torch.testing.assert_close(bound.divergence, divergence.detach())
    torch.testing.assert_close(bound.negative_elbo, (cost + divergence).detach())
    parameters = list(vae.parameters())
    gradient = torch.autograd.grad(bound.loss, parameters)
    expected = torch.autograd.grad((cost + divergence).mean(), parameters)
    torch.testing.assert_close(gradient, expected)


def test_sparse_bound_calls_the_decoder_on_the_support() -> None:
    vae, images = vae_with(Marginalize(Sparsemax())), images_of(50)
    vae.classifier = nn.Sequential(nn.Linear(12, 4)).double()
    nn.init.normal_(vae.classifier[0].weight, std=0.3)  # pyright: ignore[reportArgumentType]
    estimate = vae(images).estimate
    scores = vae.classifier(images)
    # Sparsemax's support by its definition: 1 + k t_(k) > sum of the k largest.
    ordered = scores.sort(1, descending=True).values
    support = (1 + torch.arange(1, 5) * ordered > ordered.cumsum(1)).sum(1)
    assert estimate.support.tolist() == support.tolist()
    assert estimate.evaluations == int(support.sum())
    assert 1 < int(support.sum()) / 50 < 4


def test_learned_baseline_sees_the_image() -> None:
    vae = vae_with(ScoreFunction(Simplex(4), Learned()))
    vae(images_of(3)).loss.backward()
    (baseline,) = (module for module in vae.modules() if isinstance(module, Learned))
    assert next(p for p in baseline.parameters() if p.ndim == 2).shape[1] == 12


def test_model_refuses_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match="scores of 10 classes but the estimator's structures have 4"):
        SemiSupervisedVAE(DenseMarginalize(Simplex(4)))


# The task


def test_loss_adds_nine_unlabelled_to_one_labelled() -> None:
    torch.manual_seed(0)
    task = SemiSupervisedVAETask(DenseMarginalize(Simplex(4)), nn.CrossEntropyLoss(), **SIZES).double()  # pyright: ignore[reportArgumentType]
    labelled, labels, unlabelled = images_of(5), torch.arange(5) % 4, images_of(5, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        outcome = task.train_outcome(SemiSupervisedBatch(labelled, labels, unlabelled))
        scores = task.vae.classifier(labelled)
        supervised = task.vae.labelled_cost(labelled, labels).mean() - scores.log_softmax(1)[torch.arange(5), labels].mean()
        unsupervised = task.vae(unlabelled).loss
        warm = task.train_outcome(SemiSupervisedBatch(labelled, labels, None))
    torch.testing.assert_close(outcome.loss, supervised + 9 * unsupervised)
    torch.testing.assert_close(warm.loss, supervised)
    assert warm.estimate.evaluations == 5


# The data


def test_epoch_of_pairs() -> None:
    sources = SemiSupervisedDigits().load()
    batches = list(Batches(sources.train, 64, seed=1))
    assert sum(len(batch.unlabelled) for batch in batches) == 1131
    for batch in batches:
        assert set(batch.unlabelled.unique().tolist()) == set(batch.labelled.unique().tolist()) == {0.0, 1.0}
        assert len(batch.labelled) == len(batch.labels) == len(batch.unlabelled)
    warm = list(Batches(SemiSupervisedDigits(labelled_only=True).load().train, 64, seed=1))
    assert [len(batch.labels) for batch in warm] == [64, 62]
    assert all(batch.unlabelled is None for batch in warm)


def test_training_pixels_are_drawn_anew_and_evaluation_pixels_once() -> None:
    first, second = SemiSupervisedDigits().load(), SemiSupervisedDigits().load()
    every = torch.arange(100)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(first.test.load(every, generator).images, second.test.load(every, generator).images)
    assert torch.equal(first.val.load(every, generator).images, first.val.load(every, generator).images)
    draws = torch.stack([first.train.load(every, generator).unlabelled for _ in range(400)]).double()
    grey = SemiSupervisedDigits().read().unlabelled.pixels[every].double()
    # 6,400 pixels within five standard errors, as happens but for 1 in 270 times; the seed is fixed.
    assert ((draws.mean(0) - grey).abs() <= 5 * (grey * (1 - grey) / 400).sqrt() + 1e-12).all()
    assert not draws.mean(0)[grey == 0].any()


def test_published_split_is_a_partition() -> None:
    labelled, unlabelled, val = published_split()
    assert [len(part) for part in (labelled, unlabelled, val)] == [5000, 45000, 10000]
    assert sorted([*labelled, *unlabelled, *val]) == list(range(60000))


@real_data
def test_mnist_splits() -> None:
    splits = SemiSupervisedMNIST(os.environ["SPARSEMARG_DATA"], download=False).read()
    assert [len(part.labels) for part in (splits.labelled, splits.unlabelled, splits.val, splits.test)] == [
        5000,
        45000,
        10000,
        10000,
    ]
    assert splits.labelled.pixels.shape == (5000, 784)
    assert 0 == splits.labelled.pixels.min() < splits.labelled.pixels.max() == 1
    assert len(splits.labelled.labels.unique()) == 10


# The warm start


FIT = [
    *("fit", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.limit_val_batches", "2", "--trainer.max_steps"),
]
SPARSEMAX = "semi_supervised_vae/digits/sparsemax"


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_training_starts_from_the_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*FIT, "2", "--config", "semi_supervised_vae/digits/warm_start_sparsemax"]) == 0
    still = ["--model.init_args.learning_rate", "1e-30"]  # a step too small to change any weight
    assert cli.main([*FIT, "1", "--config", SPARSEMAX, *still]) == 0
    runs = Path("runs/semi_supervised_vae/digits")
    warm = weights(runs / "warm_start_sparsemax/checkpoints/best.ckpt")
    started = weights(runs / "sparsemax/checkpoints/last.ckpt")
    assert {name: value for name, value in started.items() if "estimator" not in name}.keys() <= warm.keys()
    for name, value in started.items():
        assert torch.equal(value, warm[name])


def test_warm_start_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*FIT, "1", "--config", SPARSEMAX]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        "there is no such file. Train it first with the configuration semi_supervised_vae/digits/warm_start_sparsemax" in error
    )
    smaller = ["--config", "semi_supervised_vae/digits/warm_start_sparsemax", "--model.init_args.hidden", "64"]
    assert cli.main([*FIT, "2", *smaller]) == 0
    capsys.readouterr()
    assert cli.main([*FIT, "1", "--config", SPARSEMAX]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "vae.inference_image.weight should be [128, 64], but is [64, 64] there" in error
    assert not Path("runs/semi_supervised_vae/digits/sparsemax/checkpoints").exists()


def test_where_the_weights_began_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test, and a run that goes on, read no warm start, and so do not mind which."""
    monkeypatch.chdir(tmp_path)
    options = ["--config", SPARSEMAX, "--folder", "run"]
    assert cli.main([*FIT, "2", *options, "--model.init_args.warm_start", "null"]) == 0
    assert cli.main([*FIT, "4", *options, "--ckpt_path", "last"]) == 0
    assert cli.main(["test", *options, "--trainer.limit_test_batches", "2"]) == 0
    capsys.readouterr()
    assert cli.main([*FIT, "1", "--config", SPARSEMAX, "--data", "Digits", "--model.init_args.warm_start", "null"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "SemiSupervisedVAETask takes data of the kind SemiSupervisedData, and Digits is none: choose other data" in error


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), r"labels must be classes 0..2, not 0..3"),
        (torch.tensor([0, 1, -1]), r"labels must be classes 0..2, not -1..1"),
        (torch.zeros(3), r"labels must be \[3\] int64, one an image, not \[3\] torch.float32"),
        (torch.zeros(3, 1, dtype=torch.int64), r"not \[3, 1\] torch.int64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemiSupervisedVAE(Marginalize(Sparsemax()), 6, 3, 2, 8).labelled_cost(torch.rand(3, 6), labels)


def test_sparsemax_classifier_loss_is_exactly_zero_when_confident() -> None:
    """Why a warm start with this loss stops moving: scores a margin of 1 apart cost nothing."""
    scores = torch.tensor([[2.0, 1.0, 0.5]], requires_grad=True)
    loss = SparsemaxLoss()(scores, torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()
