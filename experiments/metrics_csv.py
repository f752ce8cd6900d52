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
        """Add the checkpoint's row if it alone is missing: called before the first step, because there may be none left."""
        if self._step_row is not None and not self._started and self._lacks_step_row(self._whole_rows()):
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
            return
        rows = self._whole_rows()
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), [])
            self._rewrite([row for row in rows if int(row["step"]) < self._resume_step])
        if self._step_row is not None and self._lacks_step_row(rows):
            self._append(self._step_row)

    def _lacks_step_row(self, rows: list[dict[str, str]]) -> bool:
        """Whether the last step's row is missing, as after a process that died between its checkpoint and its row."""
        assert self._step_row is not None
        step, columns = self._step_row["step"], self._step_row.keys() - {"step", "epoch"}
        same = (row for row in rows if int(row["step"]) == step and any(map(row.get, columns)))
        return not any(same) and all(int(row["step"]) <= step for row in rows)

    def _whole_rows(self) -> list[dict[str, str]]:
        """The rows of the file, but for one that was cut off by the kill; none where there is no file."""
        if not self.path.exists():
            return []
        rows, whole = self._read(), self.path.read_bytes().endswith(b"\n")
        return rows if whole else rows[:-1]

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
