"""Checkpoints: when they are written, how (atomically), and how one is found and checked before a run starts."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from .errors import UsageError

CONFIG_KEY = "sparsemarg_config"


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every few steps, after each validation and epoch, and `best.ckpt` when validation improves.

    Any of them can be resumed bit for bit, but for a `best.ckpt` of a validation in the middle of a step. Where a validation is
    about to run, the step checkpoint waits, because a run resumed from a checkpoint written just before a validation leaves
    that validation out. Where gradients are accumulated, `last.ckpt` waits for the end of the step, because a checkpoint has
    none. A process that is asked to end (SIGTERM) writes it first, where it may: not if it is one of several, nor in the middle
    of a step, nor just before or in a validation.

    What `Task` itself logs is as complete as that. Of other metrics, what Lightning logs just after a checkpoint is written is
    lost if the process dies in between; and what it averages over an epoch of training, it averages from the last start on.

    Args:
        every_n_steps: at most so many optimizer steps are lost when the process is killed.
        monitor: the metric that decides on `best.ckpt`; null for none.
        maximize: whether higher values of it are better, rather than lower ones. NaN is no improvement.

    Raises:
        ValueError: every_n_steps is below 1.
        UsageError: when validation has run and not logged the metric; `last.ckpt` is written first.
    """

    def __init__(self, every_n_steps: int = 200, monitor: str | None = "val/negative_elbo", maximize: bool = False) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint: every_n_steps must be at least 1, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.maximize = maximize
        self.best: float | None = None
        self._saved_step = 0
        self._owed = False  # whether a validation in the middle of a step waits for its `last.ckpt`

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self._owed or trainer.global_step - self._saved_step >= self.every_n_steps
        stopping = trainer.global_step == trainer.max_steps or _told_to_end(trainer)
        if (due or stopping) and not _in_mid_step(trainer) and not _validation_follows(trainer, batch_idx):
            self._save(trainer, "last")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _in_mid_epoch(trainer):  # else max_steps is reached: the checkpoint of that step resumes inside the epoch
            self._save_validated(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and _in_mid_epoch(trainer):
            self._save_validated(trainer)

    def _save_validated(self, trainer: Trainer) -> None:
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if isinstance(value, Tensor) and self._improves(value.item()):
            self.best = value.item()
            self._save(trainer, "best")
        self._owed = _in_mid_step(trainer) and not trainer.should_stop
        if not self._owed:
            self._save(trainer, "last")
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if logged and self.monitor and value is None:
            raise UsageError(
                f"--checkpoint.monitor {self.monitor} was not logged, so there is no best checkpoint; validation logs "
                f"{', '.join(logged)}. Choose one of these, and go on with --ckpt_path last."
            )

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return self.best is None or (value > self.best if self.maximize else value < self.best)

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(checkpoint_path(Path(trainer.default_root_dir), name), weights_only=False)
        if name == "last":
            self._saved_step, self._owed = trainer.global_step, False


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it: a killed or failed write leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def checkpoint_path(folder: Path, name: str) -> Path:
    """Name the file of the checkpoint `last` or `best` of a run's folder."""
    return folder / "checkpoints" / f"{name}.ckpt"


def find_checkpoint(folder: Path, ckpt_path: str) -> Path:
    """Find the file that `--ckpt_path` means: `last` or `best` of the run's folder, or a path.

    Raises:
        UsageError: it does not exist.
    """
    if ckpt_path in ("last", "best"):
        path = checkpoint_path(folder, ckpt_path)
        fix = "Train first (`sparsemarg fit` without --ckpt_path), or give the folder of the run with --folder"
    else:
        path = Path(ckpt_path)
        fix = "Give an existing file, or `last` or `best` for the checkpoints of the run's folder"
    if not path.is_file():
        raise UsageError(f"--ckpt_path {ckpt_path} expects the checkpoint {path}, but there is no such file. {fix}.")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UsageError: the file is damaged, or is no checkpoint of this command line.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way a file can be damaged
        raise UsageError(
            f"expected a checkpoint in {path}, but the file ({path.stat().st_size:,} bytes) is truncated, damaged "
            "or of another kind and cannot be read. Use another checkpoint (`last` and `best` lie in the run's "
            "folder), or start the run afresh."
        ) from error
    if not isinstance(checkpoint, dict) or CONFIG_KEY not in checkpoint:
        raise UsageError(
            f"expected a checkpoint written by `sparsemarg fit` in {path}, but the file holds something else. "
            "Give a file from the folder `checkpoints` of a run."
        )
    return checkpoint


def check_same_config(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to load a checkpoint into a model or onto data that it was not trained with.

    Args:
        path: the checkpoint, for the message.
        saved: nested configuration in the checkpoint.
        wanted: the part of this run's configuration that must agree with it.

    Raises:
        UsageError: some values differ; the message names them.
    """
    before, now = _flatten({key: saved.get(key) for key in wanted}), _flatten(wanted)
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        shown = "; ".join(f"{key} is {now.get(key)!r}, the checkpoint has {before.get(key)!r}" for key in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UsageError(
            f"the checkpoint {path} belongs to another configuration: {shown}{more}. Use the configuration that it "
            "was trained with (config.yaml in its run's folder), or another checkpoint."
        )


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _told_to_end(trainer: Trainer) -> bool:
    """Of several processes one may not know yet, and they write together."""
    return trainer.received_sigterm and trainer.world_size == 1


def _in_mid_step(trainer: Trainer) -> bool:
    """Whether gradients are accumulated that no optimizer step has taken yet."""
    return (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0 and _in_mid_epoch(trainer)


def _in_mid_epoch(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_idx + 1 < trainer.num_training_batches


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch: in every n-th epoch, or every so many batches whatever the epoch."""
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
        return False
    if isinstance(trainer.val_check_batch, int):
        batch = trainer.fit_loop.epoch_loop.total_batch_idx if epochs is None else batch_idx
        return (batch + 1) % trainer.val_check_batch == 0
    return batch_idx + 1 == trainer.num_training_batches
