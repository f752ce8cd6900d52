"""Markdown tables: what was measured beside what was published, and how each number came about."""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UsageError
from ..named_configs import config_names, config_path
from .groups import Group, Mean


@dataclass(frozen=True)
class Column:
    """A column of a table of results.

    Attributes:
        title: with its unit.
        metric: of the test.
        scale: of the number shown.
        digits: after the point.
        published: whether a column of what was published stands beside it.
    """

    title: str
    metric: str
    scale: float = 1
    digits: int = 2
    published: bool = False


_MONTE_CARLO = ("bits_per_dim_importance_error", "bits_per_dim_appendix_d_error")
_CALLS = Column("decoder calls", "decoder_calls", published=True)

# The first part of a configuration's name -> the columns.
COLUMNS = {
    "semi_supervised_vae": [
        Column("test accuracy (%)", "accuracy", 100, published=True),
        _CALLS,
        Column("negative ELBO (nats)", "negative_elbo"),
    ],
    "signal_game": [
        Column("success, own messages (%)", "success_expected", 100, published=True),
        Column("success, argmax message (%)", "success_argmax", 100),
        _CALLS,
        Column("symbols in use", "distinct_codes", digits=0),
    ],
    "bit_vector_vae": [
        Column("-log p(x), same estimate for all (bits/dim)", "bits_per_dim_importance", digits=3),
        Column("effective samples", "effective_samples_mean", digits=0),
        Column("-log p(x), Appendix D (bits/dim)", "bits_per_dim_appendix_d", digits=3, published=True),
        Column("negative ELBO (bits/dim)", "bits_per_dim", digits=3),
        Column("rate (nats)", "rate", digits=1),
        Column("distortion (nats)", "distortion", digits=0),
        Column("decoder calls", "decoder_calls", digits=1),
        Column("codes in use", "distinct_codes", digits=0),
    ],
}


def results(groups: list[Group]) -> str:
    """The test's means over seeds with their standard errors, one row a method, of groups of one task."""
    task = groups[0].config.partition("/")[0]
    if task not in COLUMNS:
        raise UsageError(f"report knows no table for {task}, but for {', '.join(COLUMNS)}")
    head, makers = ["method", "runs"], [lambda g: g.label, _runs]
    for column in COLUMNS[task]:
        head.append(column.title)
        makers.append(_measured(column))
        if column.published:
            head.append("published")
            makers.append(_published(column))
    notes = {found[1] for g in groups for c in COLUMNS[task] if (found := g.published(c.metric)) and found[1]}
    lines = [_markdown(head, [[make(g) for make in makers] for g in groups])]
    lines += [f"Published: {note}." for note in sorted(notes)]
    errors = [run.test[name] for g in groups for run in g.runs for name in _MONTE_CARLO if name in run.test]
    images = sorted({int(run.test["likelihood_images"]) for g in groups for run in g.runs if "likelihood_images" in run.test})
    if errors:
        counts = ", ".join(f"{count:,}" for count in images)
        lines.append(f"log p(x): of the first {counts} test images; Monte Carlo error at most {max(errors):.1g} bits/dim.")
    if any(len(g.runs) > 1 for g in groups):
        lines.append("Means over runs of different seeds ± the standard error of the mean.")
    if missing := [g.label for g in groups if not g.test("decoder_calls")]:
        lines.append(f"Not tested yet: {', '.join(missing)} (`sparsemarg test`).")
    earlier = [(g, run) for g in groups for run in g.runs if run.test.get("step", run.steps) < run.steps]
    if earlier:
        named = "; ".join(f"{g.label}, seed {run.seed}: {int(run.test['step']):,} of {run.steps:,}" for g, run in earlier)
        lines.append(f"Tested after fewer steps than were trained, at the best checkpoint or before training went on: {named}.")
    return "\n\n".join(lines)


def _runs(group: Group) -> str:
    """How many there are, and how many of these the numbers are of."""
    count, tested = len(group.runs), sum(bool(run.test) for run in group.runs)
    text = "one run" if count == 1 else f"{count}"
    return text if tested in (0, count) else f"{text}, {tested} tested"


def origins(groups: list[Group]) -> str:
    """The command, length, time and revision of the runs, and how far they are from the published number of epochs."""
    head = ["method", "command", "seeds", "epochs", "steps", "training time", "device", "torch", "date", "revision"]
    return _markdown(head, [_origin(g) for g in groups])


def _origin(group: Group) -> list[str]:
    runs, last = group.runs, [run.starts[-1] for run in group.runs]
    command = " ".join(["sparsemarg fit --config", group.config, *(f"--{name} {value}" for name, value in runs[0].options)])
    planned = _planned_epochs(group.config)
    return [
        group.label,
        f"`{command}`",
        ", ".join(str(run.seed) for run in runs),
        f"{_range([run.epochs for run in runs])}" + (f" of {planned}" if planned else ""),
        _range([run.steps for run in runs]),
        _range([round(run.seconds / 60) for run in runs]) + " min",
        ", ".join(sorted({f"{start.get('device')}, {start.get('threads')} thread(s)" for start in last})),
        ", ".join(sorted({str(start.get("torch")).partition("+")[0] for start in last})),
        ", ".join(sorted({str(start.get("started"))[:10] for start in last})),
        ", ".join(sorted({f"`{str(start.get('git'))[:9]}`" for run in runs for start in run.starts})),
    ]


def _planned_epochs(config: str) -> int | None:
    """The epochs of the packaged configuration, which are the published ones where it is not one on digits."""
    if config not in config_names():
        return None
    lines = [line.strip() for line in config_path(config).read_text().splitlines()]
    found = [line.partition(":")[2] for line in lines if line.startswith("max_epochs:")]
    return int(found[0]) if found else None


def _measured(column: Column) -> Callable[[Group], str]:
    return lambda group: _shown(group.test(column.metric), column)


def _published(column: Column) -> Callable[[Group], str]:
    def cell(group: Group) -> str:
        found = group.published(column.metric)
        return _shown(found[0], column) if found else ""

    return cell


def _shown(number: Mean | None, column: Column) -> str:
    if number is None:
        return "—"
    text = f"{number.value * column.scale:.{column.digits}f}"
    return text if number.error is None else f"{text} ± {number.error * column.scale:.{column.digits}f}"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
