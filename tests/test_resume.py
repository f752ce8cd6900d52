"""Checkpoints, and runs that go on where they were stopped, bit for bit. Small runs on the embedded digits."""

import errno
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment_cases import DIGITS, QUIET, complaint, fit
from experiment_cases import in_temporary_folder as in_temporary_folder
from lightning.pytorch import LightningModule, Trainer
from sparsemarg.experiments.bit_vector_vae import BitVectorVAETask
from sparsemarg.experiments.checkpoints import AtomicCheckpointIO, Checkpoints
from sparsemarg.experiments.cli import main
from sparsemarg.experiments.data import ImageData
from sparsemarg.experiments.errors import UsageError
from sparsemarg.experiments.folders import alone_in
from sparsemarg.experiments.random_state import RandomState
from sparsemarg.experiments.step_limit import StepLimit
from torch import Tensor

# Checkpoints


class Unwritable:
    """An object whose pickling fails after part of the file was written."""

    def __reduce__(self) -> Any:
        raise OSError("no space left on device")


def test_failed_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(1000)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(1000), "bad": Unwritable()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_full_disk_leaves_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's own error, from a device that is always full."""
    fit("--folder", "here", steps=3)
    before = Path("here/checkpoints/last.ckpt").read_bytes()
    plain_open = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        target = Path("/dev/full") if self.name.endswith(".ckpt.tmp") and "w" in mode else self
        return plain_open(target, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    message = complaint(
        capsys, "fit", "--config", DIGITS, "--folder", "here", "--ckpt_path", "last", "--trainer.max_steps", "5"
    )
    assert "cannot write its files: [Errno 28] No space left on device" in message
    assert "--ckpt_path last" in message
    assert Path("here/checkpoints/last.ckpt").read_bytes() == before


def test_folder_without_write_access(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def forbidden(**options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), options["dir"])

    # Rights do not stop the superuser, who may be the one that runs the tests.
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    message = complaint(capsys, "fit", "--config", DIGITS, "--folder", "here")
    assert "--folder takes a folder to write to, but nothing can be written to here (Permission denied)" in message
    assert os.listdir("here") == []


def test_two_processes_cannot_train_in_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").mkdir()
    with alone_in(Path("here")):
        assert "another process trains in here: wait for it" in complaint(capsys, "fit", "--config", DIGITS, "--folder", "here")
        assert os.listdir("here") == []
    fit("--folder", "here")
    fit("--folder", "here", "--ckpt_path", "last", steps=3)  # given back
    complaint(capsys, "fit", "--config", DIGITS, "--folder", "here", "--ckpt_path", "last", "--seed_everything", "7")
    with alone_in(Path("here")):  # and after a mistake
        pass


def test_failing_run_leaves_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    fit("--folder", "here", steps=3)
    before = Path("here/checkpoints/last.ckpt").read_bytes()

    def fail(self: BitVectorVAETask, images: Tensor) -> Tensor:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(BitVectorVAETask, "training_step", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit("--folder", "here", "--ckpt_path", "last", steps=5)
    assert Path("here/checkpoints/last.ckpt").read_bytes() == before


# Exact resume


class Dice(LightningModule):
    """Keeps the epoch, the batch, and a number drawn from every global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.drawn: list[tuple[Any, ...]] = []

    def training_step(self, images: Tensor) -> Tensor:
        numbers = (torch.rand(()).item(), np.random.rand(), random.random())  # noqa: NPY002
        self.drawn.append((self.current_epoch, images.flatten().tolist(), *numbers))
        return self.weight * images.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Few(ImageData):
    pixels, levels = 1, 9

    def read(self) -> Any:
        images = torch.arange(8, dtype=torch.uint8)[:, None]
        return type("Splits", (), {"train": images, "val": images, "test": images})()


def roll(folder: Path, steps: int, resume: bool = False, **options: Any) -> list[tuple[Any, ...]]:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    dice = Dice()
    trainer = Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RandomState(), Checkpoints(), StepLimit(steps)],
        **options,
    )
    trainer.fit(dice, datamodule=Few(2), ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
    return dice.drawn


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_epochs_batches_and_random_generators_continue(tmp_path: Path, stop: int) -> None:
    """Epochs have 4 steps: stopped within an epoch, at its end, and after it."""
    whole = roll(tmp_path / "whole", 10)
    first = roll(tmp_path / "parts", stop)
    second = roll(tmp_path / "parts", 10, resume=True)
    assert first + second == whole
    assert [epoch for epoch, *_ in whole] == [0] * 4 + [1] * 4 + [2] * 2


def test_batches_that_are_made_anew_between_epochs_go_on(tmp_path: Path) -> None:
    whole = roll(tmp_path / "whole", 14)
    anew: dict[str, Any] = {"reload_dataloaders_every_n_epochs": 1}
    assert roll(tmp_path / "anew", 14, **anew) == whole
    assert roll(tmp_path / "parts", 6, **anew) + roll(tmp_path / "parts", 14, resume=True, **anew) == whole


def same_state(ours: Any, theirs: Any) -> bool:
    """Whether nested dictionaries, lists and tensors are equal bit for bit."""
    if isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_state(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same_state, ours, theirs))
    return ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert (ours / "metrics.csv").read_text() == (theirs / "metrics.csv").read_text()
    for name in ("last", "best"):
        one, two = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for run in (ours, theirs))
        for key in ("global_step", "epoch", "state_dict", "optimizer_states", "callbacks", "Digits"):
            assert same_state(one[key], two[key]), f"{name}.ckpt: {key}"


def test_stopped_run_resumes_bit_for_bit() -> None:
    """Stopped within an epoch of 5 steps, at its end, just after it; with a limit on steps and with one on epochs."""

    def fit_to(folder: str, steps: int, epochs: int, *more: str) -> None:
        limits = ["--trainer.limit_train_batches", "5", "--trainer.max_epochs", str(epochs)]
        fit("--folder", folder, *limits, *more, config="bit_vector_vae/digits/topk", steps=steps)

    fit_to("whole", -1, 3)
    for stop in (2, 5, 6, 10):
        fit_to(f"steps{stop}", stop, 100)
        fit_to(f"steps{stop}", 15, 100, "--ckpt_path", "last")
        assert_same_run(Path(f"steps{stop}"), Path("whole"))
    fit_to("epochs", -1, 2)
    fit_to("epochs", -1, 3, "--ckpt_path", "last")
    assert_same_run(Path("epochs"), Path("whole"))


def test_validations_within_an_epoch_are_checkpoints_too() -> None:
    """Stopped at one of them, and between two."""

    def fit_to(folder: str, steps: int, *more: str) -> None:
        fit("--folder", folder, "--trainer.val_check_interval", "4", *more, config="bit_vector_vae/digits/topk", steps=steps)

    fit_to("whole", 12)
    for stop, best in ((4, 4), (6, 4), (8, 8)):
        fit_to(f"steps{stop}", stop)
        found = [torch.load(f"steps{stop}/checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")]
        assert [checkpoint["global_step"] for checkpoint in found] == [stop, best]
        fit_to(f"steps{stop}", 12, "--ckpt_path", "last")
        assert_same_run(Path(f"steps{stop}"), Path("whole"))


def in_short_epochs(folder: str, steps: int, *more: str) -> None:
    """With three batches in an epoch."""
    fit("--folder", folder, "--data.init_args.batch_size", "500", *more, config="bit_vector_vae/digits/topk", steps=steps)


def test_a_limit_above_what_an_epoch_has_resumes_bit_for_bit() -> None:
    limit = ["--trainer.limit_train_batches", "100", "--trainer.max_epochs"]
    in_short_epochs("whole", -1, *limit, "3")
    in_short_epochs("parts", -1, *limit, "1")
    in_short_epochs("parts", -1, *limit, "3", "--ckpt_path", "last")
    assert_same_run(Path("parts"), Path("whole"))


WAYS_TO_VALIDATE = [("2", "2"), ("null", "5")]


@pytest.mark.parametrize(("epochs", "interval"), WAYS_TO_VALIDATE)
def test_a_run_ends_with_a_checkpoint_however_it_validates(epochs: str, interval: str) -> None:
    for stop in (2, 5):
        options = ["--trainer.check_val_every_n_epoch", epochs, "--trainer.val_check_interval", interval]
        in_short_epochs(f"steps{stop}", stop, *options)
        assert torch.load(f"steps{stop}/checkpoints/last.ckpt", weights_only=True)["global_step"] == stop


@pytest.mark.parametrize(("epochs", "interval"), WAYS_TO_VALIDATE)
def test_a_run_that_dies_in_a_validation_makes_it_up(epochs: str, interval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.check_val_every_n_epoch", epochs, "--trainer.val_check_interval", interval]
    options += ["--checkpoint.every_n_steps", "1", "--trainer.max_epochs", "4"]
    in_short_epochs("whole", -1, *options)
    step = BitVectorVAETask.validation_step

    def die(self: BitVectorVAETask, batch: Tensor) -> None:
        if self.global_step > 1:
            raise RuntimeError("the device is gone")
        step(self, batch)

    monkeypatch.setattr(BitVectorVAETask, "validation_step", die)
    with pytest.raises(RuntimeError, match="the device is gone"):
        in_short_epochs("parts", -1, *options)
    monkeypatch.setattr(BitVectorVAETask, "validation_step", step)
    in_short_epochs("parts", -1, *options, "--ckpt_path", "last")
    assert_same_run(Path("parts"), Path("whole"))


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.log_every_n_steps", "1"],
        ["--trainer.log_every_n_steps", "2"],  # as often as there are checkpoints: the first comes before the first row
        ["--trainer.log_every_n_steps", "3"],
        ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "1"],  # validations in the middle of a step
    ],
    ids=" ".join,
)
def test_a_run_that_dies_after_any_of_its_checkpoints_loses_nothing(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning logs a step only after the moment in which its checkpoint is saved; the last is in mid-epoch."""
    options = ["--checkpoint.every_n_steps", "2", "--trainer.limit_val_batches", "1", *options]
    in_short_epochs("whole", 7, *options)
    save, saves, deadly = AtomicCheckpointIO.save_checkpoint, 0, 1

    def die(self: AtomicCheckpointIO, *arguments: Any, **more: Any) -> None:
        nonlocal saves
        save(self, *arguments, **more)
        saves += 1
        if saves == deadly:
            raise RuntimeError("the power is gone")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", die)
    for deadly in range(1, 100):
        folder, saves = f"after{deadly}", 0
        try:
            in_short_epochs(folder, 7, *options)
        except RuntimeError:
            resume = ["--ckpt_path", "last"] if Path(folder, "checkpoints/last.ckpt").exists() else []
            in_short_epochs(folder, 7, *options, *resume)
        assert_same_run(Path(folder), Path("whole"))
        if saves < deadly:
            break
    assert deadly > 5


def test_run_that_is_asked_to_end_saves_its_last_step_and_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that `fit && test` does not go on with half a run. No other checkpoint is due before the end of the epoch."""

    def ask(self: Checkpoints, trainer: Trainer, *others: Any) -> None:
        if trainer.global_step == 3:
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)

    in_short_epochs("whole", 7)
    with monkeypatch.context() as asked:
        asked.setattr(Checkpoints, "on_train_batch_start", ask)
        with pytest.raises(SystemExit) as stopped:
            in_short_epochs("parts", 7)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    in_short_epochs("parts", 7, "--ckpt_path", "last")
    assert_same_run(Path("parts"), Path("whole"))


def test_the_step_that_a_validation_fell_into_ends_with_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten batches in an epoch, three in a step, a validation after four of them: the next step's end is two batches later."""
    written: list[tuple[str, int]] = []

    def save(self: Checkpoints, trainer: Trainer, name: str) -> None:
        plain(self, trainer, name)
        written.append((name, trainer.global_step))

    plain = Checkpoints._save
    monkeypatch.setattr(Checkpoints, "_save", save)
    often = ["--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "4"]
    fit("--folder", "here", "--data.init_args.batch_size", "128", *often, config="bit_vector_vae/digits/topk", steps=4)
    assert written[:2] == [("best", 1), ("last", 2)]
    assert written[-1] == ("last", 4)


def test_a_metric_that_is_not_logged_decides_on_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    once = ["fit", "--config", DIGITS, "--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1", "--folder"]
    message = complaint(capsys, *once, "here", "--checkpoint.monitor", "val/succes")
    assert "--checkpoint.monitor val/succes was not logged" in message
    assert "val/negative_elbo" in message
    assert os.listdir("here/checkpoints") == ["last.ckpt"]
    assert "every_n_steps must be at least 1, not 0" in complaint(capsys, *once, "there", "--checkpoint.every_n_steps", "0")
    assert "max_steps must be at least 0, or -1" in complaint(capsys, *once, "there", "--trainer.max_steps", "-5")


def test_nan_is_no_improvement() -> None:
    checkpoints = Checkpoints()
    assert not checkpoints._improves(float("nan"))
    assert checkpoints._improves(3.0)


def command(arguments: list[str]) -> None:
    """The command line, as the target of a process."""
    sys.exit(main(arguments))


def launch(folder: str, *arguments: str) -> BaseProcess:
    """A run in a process of its own, forked from one that has imported everything: to import takes longer than to train."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["sparsemarg.experiments.training"])
    options = ["--trainer.max_epochs", "10", "--checkpoint.every_n_steps", "6", *QUIET, *arguments]
    process = processes.Process(target=command, args=(["fit", "--config", DIGITS, "--folder", folder, *options],))
    process.start()
    return process


@pytest.mark.slow
def test_run_killed_ten_times_resumes_bit_for_bit() -> None:
    """SIGKILL at ten random moments of ten epochs of 20 steps; then all is as after an undisturbed run.

    Some moments come before the first checkpoint, some before anything new was saved, some while a checkpoint is written. They
    are drawn in steps, plus a moment within a step: in seconds, a busy machine would never get to a checkpoint.
    """
    undisturbed = launch("whole")
    draw = random.Random(0)
    metrics, checkpoint = Path("parts/metrics.csv"), Path("parts/checkpoints/last.ckpt")
    saved = []
    for _ in range(10):
        resume = ["--ckpt_path", "last"] if checkpoint.exists() else []
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        killed = launch("parts", *resume)
        start = (saved[-1] if saved else 0) + 1  # a row a step below the header, once a resumed run has cut the file back
        rows, deadline = start + draw.randrange(14), time.monotonic() + 120
        while not metrics.exists() or metrics.stat().st_mtime_ns == before or len(metrics.read_text().splitlines()) < rows:
            assert killed.exitcode is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        saved.append(torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0)
    assert saved == sorted(saved)
    assert saved[-1] > 0
    undisturbed.join()
    resumed = launch("parts", "--ckpt_path", "last")
    resumed.join()
    assert (undisturbed.exitcode, resumed.exitcode) == (0, 0)
    assert_same_run(Path("parts"), Path("whole"))


def test_resume_refuses_another_seed(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--folder", "here")
    with pytest.raises(UsageError, match="seed_everything is 7, the checkpoint has 42"):
        fit("--folder", "here", "--ckpt_path", "last", "--seed_everything", "7")
