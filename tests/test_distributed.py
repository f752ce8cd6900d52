"""Training by two processes. Truth is the same training by one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from experiment_cases import rows_of
from sparsemarg.experiments import cli

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
