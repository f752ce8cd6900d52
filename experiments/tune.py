"""`sparsemarg tune`: successive halving over a grid of options."""

import argparse
import csv
import itertools
import math
import shlex
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from . import training
from .checkpoints import checkpoint_path
from .command_parser import CommandParser, check_left_out
from .errors import Diverged, UsageError
from .folders import check_writable_folder
from .named_configs import config_path, resolve_configs

Values = dict[str, str]
"""Option -> value, as on the command line. Options that share a value are one key, joined by +."""

DESCRIPTION = """Choose hyper-parameters by successive halving (Jamieson and Talwalkar 2016): every point of the grid trains for
--steps steps; the best 1 / --factor of them go on, to --factor times as many, and so on for --rounds rounds. What is not named
here is passed to `fit`. Each point is a run of its own folder and goes on where it stopped, so that no step is trained twice,
and a search that was interrupted goes on when it is started again, with the same options for `fit` and any grid, steps and
rounds. The choice is by --metric, never by a test metric."""


@dataclass(frozen=True)
class Trial:
    """A point of the grid and the run that trains it.

    Attributes:
        values: the point.
        folder: of its run.
    """

    values: Values
    folder: Path

    def score(self, metric: str, step: int) -> float | None:
        """The metric after so many optimizer steps, or None if it was not logged then."""
        path = self.folder / "metrics.csv"
        if not path.exists():
            return None
        with path.open(newline="") as file:
            found = [row[metric] for row in csv.DictReader(file) if int(row["step"]) == step - 1 and row.get(metric)]
        return float(found[-1]) if found else None

    @property
    def options(self) -> list[str]:
        """The point, as options of fit."""
        return [f"--{name}={value}" for names, value in self.values.items() for name in names.split("+")]

    def check(self, arguments: list[str]) -> None:
        """Raises UsageError if an option or a value is not one that fit takes: found before others have trained for hours."""
        with redirect_stdout(StringIO()), suppress(SystemExit):
            training.run(["fit", *arguments, *self.options, "--folder", str(self.folder), "--print_config"])

    def train(self, arguments: list[str], step: int) -> None:
        """Train until so many optimizer steps are done, from the start or from the run's last checkpoint."""
        resume = ["--ckpt_path", "last"] if checkpoint_path(self.folder, "last").exists() else []
        common = ["--folder", str(self.folder), "--trainer.max_steps", str(step)]
        training.run(["fit", *arguments, *self.options, *common, *resume])


def run(arguments: list[str]) -> None:
    """Search the grid, write `trials.csv` and `best.yaml` into the search's folder and print the best."""
    known, fit_arguments = _parse(arguments[1:])
    sign = 1 if known.goal == "max" else -1
    trials = [Trial(point, known.folder / _name(point)) for point in _points(known.grid)]
    for trial in trials:
        trial.check(fit_arguments)
    _claim(known.folder, known.passed)
    history: list[dict[str, str | int | float]] = []
    best = trials[0]
    for number in range(known.rounds):
        step = known.steps * known.factor**number
        scores = [_trained(trial, known.metric, fit_arguments, step) for trial in trials]
        history += [{**t.values, "steps": step, known.metric: score} for t, score in zip(trials, scores, strict=True)]
        _write_table(known.folder / "trials.csv", history)
        # A run that diverged comes last. Ties keep the order of the grid.
        ranked = sorted(zip(trials, scores, strict=True), key=lambda pair: (math.isnan(pair[1]), -sign * pair[1]))
        trials = [trial for trial, _ in ranked[: math.ceil(len(ranked) / known.factor)]]
        best, score = ranked[0]
        chosen = ", ".join(f"{name} {value}" for name, value in best.values.items())
        print(f"round {number + 1}: {len(ranked)} runs of {step} steps; best {known.metric} {score:.6g} with {chosen}")
        if len(ranked) == 1:
            break
    (known.folder / "best.yaml").write_text(yaml.safe_dump(_nested(best.values), sort_keys=False))
    print(f"All rounds: {known.folder / 'trials.csv'}. To train with the best: fit ... --config {known.folder / 'best.yaml'}")


def _claim(folder: Path, arguments: list[str]) -> None:
    """Makes the folder that of a search which passes these arguments to `fit`.

    Raises:
        UsageError: it holds runs of a search that passes others, which are not to be compared with its own.
    """
    record = folder / "search.yaml"
    if any(folder.glob("*/metrics.csv")):  # else nothing has been trained, such as after a mistake in the arguments
        if not record.exists():
            raise UsageError(f"{folder} holds runs, but no search.yaml that says how: give another --folder, or delete it.")
        before = yaml.safe_load(record.read_text())
        if before != arguments:
            raise UsageError(
                f"the search in {folder} passes `{shlex.join(before)}` to fit, not `{shlex.join(arguments)}`: give another "
                "--folder, or delete that one."
            )
    check_writable_folder("--folder", folder)
    record.write_text(yaml.safe_dump(arguments))


def _trained(trial: Trial, metric: str, arguments: list[str], step: int) -> float:
    if trial.score(metric, step) is None:
        try:
            trial.train(arguments, step)
        except Diverged as error:
            print(f"{trial.folder} diverged: {error.__cause__}")
            return math.nan
    score = trial.score(metric, step)
    if score is None:
        raise UsageError(
            f"the run {trial.folder} logged no {metric} after {step} steps: --metric takes a column of its metrics.csv, and "
            "--steps a multiple of the steps between two validations."
        )
    return score


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser("tune", DESCRIPTION)
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        help="a named configuration or a file; again for what is to be changed in it",
    )
    parser.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="OPTION=V1,V2",
        help="an option of fit and its values; again for more options. OPTION+OPTION are two with the same value",
    )
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of the first round")
    parser.add_argument("--rounds", type=int, default=3, help="by default 3")
    parser.add_argument("--factor", type=int, default=3, help="by default 3")
    parser.add_argument("--metric", default="val/negative_elbo", help="by default val/negative_elbo")
    parser.add_argument("--goal", choices=["min", "max"], default="min", help="by default min")
    parser.add_argument("--folder", type=Path, help="of the search; by default tuning/<name of the configuration>")
    known, rest = parser.parse_known_args(arguments)
    if known.steps < 1 or known.rounds < 1 or known.factor < 2:
        raise UsageError(
            "--steps and --rounds must be at least 1 and --factor at least 2, not "
            f"{known.steps}, {known.rounds} and {known.factor}."
        )
    if known.metric.startswith("test/"):
        raise UsageError(f"--metric must be one of validation or training, not {known.metric}: test data choose nothing.")
    check_left_out("tune", ("--trainer.max_steps", "--ckpt_path"), rest)
    known.passed = [*(word for config in known.config for word in ("--config", config)), *rest]
    fit_arguments, name = resolve_configs(known.passed)
    known.folder = known.folder or Path("tuning") / (name or config_path(known.config[0]).stem)
    return known, fit_arguments


def _points(grid: list[str]) -> list[Values]:
    axes: dict[str, list[str]] = {}
    for text in grid:
        names, equals, values = text.partition("=")
        name = names.removeprefix("--")
        if name in axes:
            raise UsageError(f"--grid names {name} twice: give all of its values in one, separated by commas.")
        axes[name] = [value for value in values.split(",") if value]
        if not equals or not all(name.split("+")) or not axes[name]:
            raise UsageError(
                f"--grid expects OPTION=VALUE,VALUE, such as model.init_args.learning_rate=0.001,0.01, not {text!r}."
            )
        if len(set(axes[name])) < len(axes[name]):
            raise UsageError(f"--grid {text} names a value twice: give each once.")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _name(values: Values) -> str:
    return ",".join(f"{name.rpartition('.')[2]}={value.replace('/', '_')}" for name, value in values.items())


def _nested(values: Values) -> dict[str, Any]:
    """{"a.b": "1"} -> {"a": {"b": 1}}, the form of a configuration."""
    tree: dict[str, Any] = {}
    for names, value in values.items():
        for name in names.split("+"):
            *folders, last = name.split(".")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[last] = yaml.safe_load(value)
    return tree


def _write_table(path: Path, history: list[dict[str, str | int | float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
