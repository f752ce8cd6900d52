"""What a report needs of a run, from its folder or from the few small files that were kept of it."""

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError

# Options of a command that say where data lie and what is shown, not what is computed.
_ASIDE = ("root", "path", "download", "enable_progress_bar", "enable_model_summary", "verbose", "folder", "ckpt_path")
KEPT_ROWS = 500

Row = dict[str, float]
"""A row of a metrics file: what was logged, without empty cells."""


@dataclass(frozen=True)
class Run:
    """A run, as its folder tells it.

    Attributes:
        config: the configuration's name, such as `bit_vector_vae/sparsemap`.
        options: what the command set besides, as (name, value), sorted, but for the seed and where files lie.
        seed: of the run.
        starts: of the training, in order, each with step, seconds, git, started, torch, device, threads.
        metrics: rows of training and validation, in order.
        test: the test's metrics, without `test/`; empty where the run was not tested.
        path: where this was read.
    """

    config: str
    options: tuple[tuple[str, str], ...]
    seed: int
    starts: tuple[dict[str, Any], ...]
    metrics: tuple[Row, ...]
    test: Row
    path: Path

    @property
    def folder(self) -> str:
        """Of the configuration: `bit_vector_vae/d128` of `bit_vector_vae/d128/sparsemap`."""
        return self.config.rpartition("/")[0]

    @property
    def method(self) -> str:
        """The last part of the configuration's name."""
        return self.config.rpartition("/")[2]

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return int(self.metrics[-1]["step"]) + 1 if self.metrics else 0

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return int(max((row.get("epoch", 0) for row in self.metrics), default=-1)) + 1

    @property
    def seconds(self) -> float:
        """That training took, over all starts."""
        return sum(start.get("seconds") or 0 for start in self.starts)

    def rows(self, column: str) -> list[Row]:
        """The rows in which a column was logged."""
        return [row for row in self.metrics if column in row]


def find_runs(paths: list[Path]) -> list[Run]:
    """The runs in folders, at any depth, in the order of their names.

    Raises:
        UsageError: a folder does not exist or holds no run that has trained; a run's files are damaged.
    """
    runs = []
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"expected the folder of a run, or one that holds runs, but {path} is none")
        folders = sorted({file.parent for name in ("run.yaml", "versions.yaml") for file in path.rglob(name)})
        if not folders:
            raise UsageError(f"there is no run in {path}: a run's folder has a versions.yaml, a kept one a run.yaml")
        started = [run for run in map(_load, folders) if run.metrics or run.test]  # others stopped before their first row
        if not started:
            raise UsageError(f"no run in {path} has trained yet")
        runs += started
    return runs


def keep(run: Run, folder: Path) -> Path:
    """Write what a report needs of a run into a folder of its own, with at most `KEPT_ROWS` rows of metrics."""
    options = "".join(f",{name.rpartition('.')[2]}={value.replace('/', '_')}" for name, value in run.options)
    own = folder / run.config / f"seed={run.seed}{options}"
    own.mkdir(parents=True, exist_ok=True)
    facts = {"config": run.config, "options": dict(run.options), "seed": run.seed, "starts": list(run.starts)}
    (own / "run.yaml").write_text(yaml.safe_dump(facts, sort_keys=False))
    _write(own / "metrics.csv", _thinned(run.metrics))
    (own / "test.csv").unlink(missing_ok=True)  # of what was kept before
    if run.test:
        _write(own / "test.csv", [{f"test/{name}": value for name, value in run.test.items()}])
    return own


def _load(folder: Path) -> Run:
    try:
        kept = folder / "run.yaml"
        facts = yaml.safe_load(kept.read_text()) if kept.exists() else _facts(folder)
        test = _read(folder / "test.csv")
        return Run(
            config=facts["config"],
            options=tuple(sorted(facts["options"].items())),
            seed=facts["seed"],
            starts=tuple(facts["starts"]),
            metrics=tuple(_read(folder / "metrics.csv")),
            test={name.removeprefix("test/"): value for name, value in test[0].items()} if test else {},
            path=folder,
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"the run in {folder} cannot be read ({error!r}): take it out, or test or train it again") from error


def _facts(folder: Path) -> dict[str, Any]:
    """From a run's own record: its starts, and the last command that trained."""
    starts = yaml.safe_load((folder / "versions.yaml").read_text())
    seed = yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"]
    trained = [start for start in starts if start["step"]] or starts
    names, options = _parsed(trained[-1]["command"])
    if names and Path(names[0]).name == "config.yaml":  # a run's own: it was trained with what the first command says
        names, first = _parsed(starts[0]["command"])
        options = first | options
    kept = ("started", "step", "seconds", "device", "threads", "torch", "git")
    starts = [{name: start.get(name) for name in kept} for start in trained]
    return {"config": names[0] if names else folder.name, "options": options, "seed": seed, "starts": starts}


def _parsed(command: str) -> tuple[list[str], dict[str, str]]:
    """The configurations and the options of a command `sparsemarg fit ...`."""
    names: list[str] = []
    options: dict[str, str] = {}
    words = shlex.split(command)[2:]
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        name = name.removeprefix("--")
        if name in ("config", "-c", "c"):
            names.append(_config_name(value))
        elif name.rpartition(".")[2] not in _ASIDE and name != "seed_everything":
            options[name] = value
    for extra in names[1:]:
        options["config"] = extra
    return names, options


def _config_name(value: str) -> str:
    """A packaged configuration's name, also where the command gave its file; another file as it is."""
    path = Path(value)
    if path.suffix != ".yaml" or "configs" not in path.parts:
        return value
    return "/".join(path.with_suffix("").parts[path.parts.index("configs") + 1 :])


def _thinned(rows: tuple[Row, ...]) -> list[Row]:
    """All validation rows, and as many of training, evenly spaced with the first and the last, as make `KEPT_ROWS`."""
    validation = {i for i, row in enumerate(rows) if any(name.startswith("val/") for name in row)}
    training = [i for i in range(len(rows)) if i not in validation]
    room = max(KEPT_ROWS - len(validation), 2)
    if len(training) > room:
        # Half of them from the first tenth, where most changes.
        early = training[: len(training) // 10]
        training = _spread(early, room // 2) + _spread(training[len(early) :], room - room // 2)
    return [rows[i] for i in sorted(validation | set(training))]


def _spread(items: list[int], count: int) -> list[int]:
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _write(path: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{value:.7g}" for name, value in row.items()})
