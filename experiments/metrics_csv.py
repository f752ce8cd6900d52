"""A CSV file of metrics that survives kill -9 and continues without a seam."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsCSV(Logger):
    """Writes one row per step and split, at once, to `path`; cells of other splits stay empty.

    Lightning's own CSVLogger deletes the file of the run that it resumes. Here a resumed run removes the rows that come
    after its checkpoint and appends, so that the file ends up the same as if nothing had happened.

    Of several processes only the first writes.

    Args:
        path: the file.
        resume_step: number of optimizer steps behind the checkpoint that the run resumes from; rows from this
            step on are removed. None starts a new file.
        fixed_step: the step of every row, where Lightning does not know it: in a test run, the checkpoint's.
    """

    def __init__(self, path: Path, resume_step: int | None = None, fixed_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._fixed_step = fixed_step
        self._resume_step = resume_step
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
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. Numbers are written with all their digits."""
        self._start()
        row = {"step": step, **metrics}
        if self._fixed_step is not None:
            row = {"step": self._fixed_step, **{name: metrics[name] for name in metrics if name != "epoch"}}
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
