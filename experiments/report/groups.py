"""Runs that differ by their seed only, and the means over them."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from ..errors import UsageError
from .runs import Run


@dataclass(frozen=True)
class Mean:
    """A mean over runs.

    Attributes:
        value: the mean.
        error: its standard error; None for one run.
    """

    value: float
    error: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Mean | None":
        """The mean of one or more values; None of none."""
        if not values:
            return None
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(mean(values), error)


@dataclass(frozen=True)
class Group:
    """Runs of the same configuration and options, in the order of their seeds.

    Attributes:
        runs: at least one.
        apart: the options that not all groups of its configuration have; None where it is the only one.
        place: how many groups of its configuration come before it.
    """

    runs: tuple[Run, ...]
    apart: tuple[tuple[str, str], ...] | None = None
    place: int = 0

    @property
    def config(self) -> str:
        return self.runs[0].config

    @property
    def folder(self) -> str:
        return self.runs[0].folder

    @property
    def label(self) -> str:
        """The method's name, with the options where they are what tells groups apart."""
        name = style(self.runs[0].method)["label"]
        if self.apart is None:
            return name
        options = ", ".join(f"{option.rpartition('.')[2]} {value}" for option, value in self.apart)
        return f"{name} ({options or 'no further options'})"

    @property
    def colour(self) -> str:
        return style(self.runs[0].method)["colour"]

    @property
    def marker(self) -> str:
        return style(self.runs[0].method)["marker"]

    @property
    def line(self) -> str:
        """Matplotlib's name for the line's style: groups of one configuration have the same colour."""
        return ("-", "--", ":", "-.")[self.place % 4]

    @property
    def drawn(self) -> bool:
        """Whether figures show it."""
        return bool(style(self.runs[0].method).get("drawn", True))

    def test(self, metric: str) -> Mean | None:
        """A test metric's mean over the runs that have it."""
        return Mean.of([run.test[metric] for run in self.runs if metric in run.test])

    def published(self, metric: str) -> tuple[Mean, str] | None:
        """What was published of a metric for this method, and where it is not on the same data, a note."""
        data, note, config = constants(), "", self.config
        if stand := data["stands_for"].get(self.folder):
            config, note = f"{stand['folder']}/{self.runs[0].method}", stand["note"]
        values = data["published"].get(config, {}).get(metric)
        return (Mean(values[0], values[1] if len(values) > 1 else None), note) if values else None

    def curve(self, column: str) -> tuple[list[float], list[Mean]]:
        """A column over epochs: the mean over the runs that logged it, at each step at which all of these did.

        NaN counts as not logged.
        """
        logged = [{row["step"]: row[column] for row in run.rows(column) if not math.isnan(row[column])} for run in self.runs]
        seen = [values for values in logged if values]
        steps = sorted(set.intersection(*map(set, seen))) if seen else []
        means = [Mean.of([values[step] for values in seen]) for step in steps]
        return [self.epoch(step + 1) for step in steps], [m for m in means if m]

    def epoch(self, step: float) -> float:
        """How many epochs so many steps are."""
        run = self.runs[0]
        ends = {row["epoch"] + 1: row["step"] + 1 for row in run.metrics if "val/support_mean" in row and "epoch" in row}
        if len(ends) > 1:  # the last may not be over
            del ends[max(ends)]
        return step * (max(ends) / ends[max(ends)] if ends else 1 / max(run.steps, 1))

    def calls(self) -> tuple[list[float], list[float]]:
        """Epochs of validation, and the decoder calls for each training example until then: the first run's integral."""
        run = self.runs[0]
        training = run.rows("train/decoder_calls")
        total, at, done = 0.0, [], []
        place, last = 0, 0.0
        for row in run.rows("val/support_mean"):
            while place < len(training) and training[place]["step"] <= row["step"]:
                now = self.epoch(training[place]["step"] + 1)
                total += (now - last) * training[place]["train/decoder_calls"]
                last, place = now, place + 1
            at.append(self.epoch(row["step"] + 1))
            done.append(total)
        return at, done


def group(runs: list[Run]) -> list[Group]:
    """Runs by configuration and options, in the order of `published.yaml`.

    Raises:
        UsageError: two runs are the same but for their folder: they would count twice.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        for other in found.get((run.config, run.options), []):
            if other.seed == run.seed:
                raise UsageError(
                    f"{other.path} and {run.path} have the same configuration, options and seed ({run.config}, "
                    f"{dict(run.options)}, {run.seed}) and would count twice: give one of them"
                )
        found.setdefault((run.config, run.options), []).append(run)
    order = list(constants()["methods"])

    def rank(key: tuple[Any, ...]) -> tuple[Any, ...]:
        folder, _, method = key[0].rpartition("/")
        return folder, order.index(method) if method in order else len(order), method, key[1]

    groups = []
    for config, keys in groupby(sorted(found, key=rank), key=lambda key: key[0]):
        alike = [options for _, options in keys]
        shared = set.intersection(*map(set, alike))
        for place, options in enumerate(alike):
            apart = None if len(alike) == 1 else tuple(option for option in options if option not in shared)
            groups.append(Group(tuple(sorted(found[config, options], key=lambda run: run.seed)), apart, place))
    return groups


def title(folder: str) -> str:
    """What a folder of configurations is called."""
    return constants()["titles"].get(folder, folder)


def style(method: str) -> dict[str, Any]:
    """Label, colour and marker of a method, and whether figures show it."""
    return constants()["methods"].get(method, {"label": method, "colour": "#777777", "marker": "."})


@cache
def constants() -> dict[str, Any]:
    """`published.yaml`."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
