"""A CSV file of metrics that survives kill -9 and continues without a seam."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

STEP_ROW = "sparsemarg_step_row"


class StepRow(Callback):
    """Keeps the row of a step in the step's checkpoint: Lightning logs it later, and the process may die in between."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if not trainer.should_stop and (every < 1 or trainer.global_step % every):
            return
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        row = {name: value for name, value in logged.items() if not name.startswith("val/")}  # the last validation's
        if row:
            checkpoint[STEP_ROW] = {"step": trainer.global_step - 1, **row, "epoch": trainer.current_epoch}


class MetricsCSV(Logger):
    """Writes one row per step and split, at once, to `path`; cells of other splits stay empty.

    Lightning's own CSVLogger deletes the file of the run that it resumes. Here a resumed run removes the rows that come
    after its checkpoint and appends, so that the file ends up the same as if nothing had happened.

    Of several processes only the first writes.

    Args:
        path: the file.
        resume_step: number of optimizer steps behind the checkpoint that the run resumes from; rows from this
            step on are removed. None starts a new file.
        step_row: the row of the checkpoint's last step, if that step was to be logged; added where the file lacks it.
        fixed_step: the step of every row, where Lightning does not know it: in a test run, the checkpoint's.
    """

    def __init__(
        self,
        path: Path,
        resume_step: int | None = None,
        step_row: dict[str, float] | None = None,
        fixed_step: int | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self._fixed_step = fixed_step
        self._resume_step = resume_step
        self._step_row = step_row
        self._columns: list[str] = []
        self._started = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the resolved configuration is saved beside the metrics."""

    @rank_zero_only
    def save(self) -> None:
        """Bring the file of a resumed run in order. Called before the first step: there may be no step left to take."""
        self._start()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. Numbers are written with all their digits."""
        self._start()
        if self._fixed_step is None:
            self._append({"step": step, **metrics})
        else:
            self._append({"step": self._fixed_step, **{name: metrics[name] for name in metrics if name != "epoch"}})

    def _append(self, row: dict[str, Any]) -> None:
        new_columns = [name for name in row if name not in self._columns]
        if new_columns:
            rows = self._read() if self.path.exists() else []
            self._columns += new_columns
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._resume_step is None:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            rows = [row for row in self._read() if None not in row.values()]  # else cut off by the kill
            kept = [row for row in rows if int(row["step"]) < self._resume_step]
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
            self._rewrite(kept)
            if self._step_row and not any(_of_same_split(row, self._step_row) for row in kept):
                self._append(self._step_row)

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


def _of_same_split(row: dict[str, str], step_row: dict[str, float]) -> bool:
    """Whether a row of the file is that of the same step and split: both have a number in a column."""
    columns = step_row.keys() - {"step", "epoch"}
    return row["step"] == str(step_row["step"]) and any(row.get(name) for name in columns)
