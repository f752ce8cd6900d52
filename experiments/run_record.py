"""What a run's folder says about how the run came about."""

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from .checkpoints import CONFIG_KEY


class RunRecord(Callback):
    """Saves the resolved configuration and the versions in the run's folder, and the former in every checkpoint.

    `config.yaml` reproduces the run; `versions.yaml` has one entry for each start: its command, its time, the last optimizer
    step and the seconds that training had taken until then, and the versions and revision, so that a run that was resumed
    with others shows it. A test run writes `test_config.yaml` and adds no entry.

    Args:
        config: the resolved configuration, nested, as it can be given to `--config` again.
        command: the command that the run was started by, or would have been.
        resumed_from: the checkpoint that the run starts from, if any.
    """

    def __init__(self, config: dict[str, Any], command: str, resumed_from: str | None) -> None:
        self.config = config
        self.command = command
        self.resumed_from = resumed_from
        self._starts: list[dict[str, Any]] = []
        self._began = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else "test_config.yaml"
        (folder / name).write_text(yaml.safe_dump(self.config, sort_keys=False))
        if stage == "fit":
            path = folder / "versions.yaml"
            resumed = self.resumed_from is not None and path.exists()
            self._starts = yaml.safe_load(path.read_text()) if resumed else []
            start = {"command": self.command, "resumed_from": self.resumed_from}
            start |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "step": None, "seconds": None}
            start |= {"device": str(trainer.strategy.root_device), "threads": torch.get_num_threads(), **versions()}
            self._starts.append(start)
            self._began = time.perf_counter()
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.config
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not self._starts:
            return
        self._starts[-1] |= {"step": trainer.global_step, "seconds": round(time.perf_counter() - self._began, 1)}
        path = Path(trainer.default_root_dir) / "versions.yaml"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(self._starts, sort_keys=False))
        os.replace(temporary, path)


def versions() -> dict[str, str | None]:
    """Name the versions of what a result depends on, and the revision of the source where it is a git checkout."""
    packages = {name: metadata.version(name) for name in ("sparsemarg", "lightning", "numpy")}
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # unlike the package's version it names the build
        **packages,
        "platform": platform.platform(),
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """Name the commit of the checkout that holds this file, with `-dirty` if files differ; None outside of git."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # Without --error-unmatch a virtual environment inside some other checkout would report that one's commit.
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
