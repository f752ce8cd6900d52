"""Training by two processes. Truth is the same training by one."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from experiment_cases import rows_of
from sparsemarg.experiments import cli
from sparsemarg.experiments.bit_vector_vae import BitVectorVAETask
from sparsemarg.experiments.records import Records
from sparsemarg.layers import SparseMAP
from sparsemarg.models.estimators import Marginalize
from sparsemarg.oracles import BernoulliCube

COMMON = [
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
]
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


def fit(folder: Path, config: str, *arguments: str) -> list[dict[str, str]]:
    """Here, by one process."""
    assert cli.main(["fit", "--config", config, "--folder", str(folder), *COMMON, *arguments]) == 0
    return rows_of(folder / "metrics.csv")


def fit_by_two(folder: Path, config: str, *arguments: str) -> list[dict[str, str]]:
    """By two others."""
    command = [sys.executable, "-m", "sparsemarg.experiments.cli", "fit", "--config", config, "--folder", str(folder)]
    done = subprocess.run([*command, *COMMON, *TWO, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return rows_of(folder / "metrics.csv")


def test_two_processes_train_as_one_at_the_same_global_batch(tmp_path: Path) -> None:
    """The third batch has 257 images, 129 for one process and 128 for the other: their weights must differ.

    In double precision and for one epoch of three steps: sums are taken in another order, and training multiplies the
    difference in rounding by about 30 a step.
    """
    config = "bit_vector_vae/digits/sparsemap_sorted"
    options = ["--trainer.precision", "64-true", "--data.init_args.batch_size", "500", "--trainer.max_steps", "3"]
    one, two = fit(tmp_path / "one", config, *options), fit_by_two(tmp_path / "two", config, *options)
    assert [row["step"] for row in one if row["train/negative_elbo"]] == ["0", "1", "2"]
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for alone, together in zip(one, two, strict=True):
        for name in (
            "train/negative_elbo",
            "train/support_q50",
            "train/decoder_calls",
            "train/encoder_grad_norm",
            "val/negative_elbo",
        ):
            assert (together[name] == "") == (alone[name] == "")
            if alone[name]:
                assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-9)


def test_processes_draw_their_own_samples_and_resume(tmp_path: Path) -> None:
    config = "semi_supervised_vae/digits/sfe"
    start = ["--model.init_args.warm_start", "null"]
    whole = fit_by_two(tmp_path / "whole", config, *start, "--trainer.max_steps", "12")
    fit_by_two(tmp_path / "parts", config, *start, "--trainer.max_steps", "7")
    parts = fit_by_two(tmp_path / "parts", config, *start, "--trainer.max_steps", "12", "--ckpt_path", "last")
    assert parts == whole
    checkpoint = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    first, second = checkpoint["callbacks"]["RandomState"]["processes"]
    assert not torch.equal(first["torch"], second["torch"])


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> BitVectorVAETask:
    """A task in the second of two processes."""
    trainer = SimpleNamespace(world_size=2, global_rank=1)
    monkeypatch.setattr(BitVectorVAETask, "trainer", trainer)
    monkeypatch.setattr(BitVectorVAETask, "global_rank", trainer.global_rank)
    estimator = Marginalize(SparseMAP(BernoulliCube(4)))
    return BitVectorVAETask(estimator, 4, 6, 5, normalize_scores=True, likelihood_samples=2, likelihood_images=9)


def test_the_likelihood_is_of_as_many_images_as_were_asked_for(second_of_two: BitVectorVAETask) -> None:
    """Nine: five in the first process, four in the second."""
    for batch in range(2):
        second_of_two.test_step(torch.zeros(3, 6, dtype=torch.long), batch)
    assert sum(map(len, second_of_two._likelihoods)) == 4


def test_scores_normalized_by_parts_are_warned_of(second_of_two: BitVectorVAETask) -> None:
    with pytest.warns(UserWarning, match="sync_batchnorm"):
        second_of_two.on_train_start()
    second_of_two.vae.encoder.normalize = torch.nn.SyncBatchNorm(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second_of_two.on_train_start()


def test_summaries_of_half_precision_are_not_rounded_to_it() -> None:
    values = torch.tensor([100.0, 100.5, 101.0], dtype=torch.bfloat16)
    records = Records({"cost": values}, torch.ones(3), torch.zeros(3, 2, dtype=torch.bool), 3)
    assert records.summarize()["cost"] == pytest.approx(values.double().mean().item())
