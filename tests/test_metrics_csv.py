"""The table of metrics: it survives a kill and goes on without a seam. Truth is what was logged."""

from pathlib import Path

from experiment_cases import rows_of
from sparsemarg.experiments.metrics_csv import MetricsCSV


def test_metrics_csv_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    for step in range(4):
        first.log_metrics({"a": step / 3}, step)
    first.log_metrics({"b": 1.0}, 3)
    with path.open("a") as file:
        file.write("4,0.3")  # the process was killed in mid-write
    resumed = MetricsCSV(path, resume_step=3)
    resumed.log_metrics({"a": 7.0}, 3)
    rows = rows_of(path)
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        *((str(i), repr(i / 3), "") for i in range(3)),
        ("3", "7.0", ""),
    ]


def test_metrics_csv_makes_up_for_the_row_of_the_last_step_once(tmp_path: Path) -> None:
    """Whether it is missing, was cut off, or is there; a validation of the same step is another row."""
    path, step_row = tmp_path / "metrics.csv", {"step": 2, "a": 0.25, "epoch": 1}
    first = MetricsCSV(path)
    first.log_metrics({"a": 0.5, "epoch": 1}, 1)
    first.log_metrics({"b": 1.0}, 2)
    for cut_off in ("", "2,0.", "2,0.2,,1", ""):
        with path.open("a") as file:
            file.write(cut_off)
        resumed = MetricsCSV(path, resume_step=3, step_row=step_row)
        resumed.log_metrics({"a": 7.0, "epoch": 1}, 3)
        rows = [(row["step"], row["a"], row["b"]) for row in rows_of(path)]
        assert rows == [("1", "0.5", ""), ("2", "", "1.0"), ("2", "0.25", ""), ("3", "7.0", "")]


def test_metrics_csv_stays_as_it_is_until_there_is_something_to_write(tmp_path: Path) -> None:
    """Lightning calls `save` before it does anything: of a test, of a run that goes on from its best checkpoint."""
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    for step in range(5):
        first.log_metrics({"a": step / 3}, step)
    before = path.read_text()
    for idle in (MetricsCSV(path, fixed_step=5), MetricsCSV(path, 3, {"step": 2, "a": 2 / 3, "epoch": 0})):
        idle.save()
        assert path.read_text() == before
    MetricsCSV(path, 6, {"step": 5, "a": 5 / 3, "epoch": 0}).save()  # as after a run that died before its last step's row
    assert rows_of(path)[-1] == {"step": "5", "a": repr(5 / 3), "epoch": "0"}
    assert len(rows_of(path)) == 6
