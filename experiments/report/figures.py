"""The paper's figures, and the game's learning curves, from runs."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from .groups import Group, title

Panels = dict[str, list[Group]]
"""The groups of each folder of configurations."""

_BINS = 60
_LONG = 30  # letters of a legend's label, of which no four stand in a line


def learning_curves(panels: Panels) -> Figure:
    """Figure 1: accuracy and negative ELBO over epochs; test accuracy beside the published."""
    figure, axes = _grid(len(panels), 3)
    for (folder, groups), (left, middle, right) in zip(panels.items(), axes, strict=True):
        for group in groups:
            _line(left, group, "val/accuracy", 100)
            _line(middle, group, "val/negative_elbo")
        _finish(left, "accuracy (%), validation", "epoch")
        _finish(middle, "negative ELBO (nats), validation", "epoch")
        middle.set_title(title(folder))
        _dots(right, groups, {"accuracy": "test accuracy (%)"}, 100)
        _close(left, groups, "val/accuracy", 100, top=True)
        _close(middle, groups, "val/negative_elbo")
    _legend(figure, [group for groups in panels.values() for group in groups])
    return figure


def rate_distortion(panels: Panels) -> Figure:
    """Figure 2: each method's rate and distortion; -log p(x) beside the published."""
    figure, axes = _grid(len(panels), 2, "on the test set")
    for (folder, groups), (left, right) in zip(panels.items(), axes, strict=True):
        for group in groups:
            rate, distortion = group.test("rate"), group.test("distortion")
            if rate and distortion:
                left.errorbar(
                    rate.value,
                    distortion.value,
                    xerr=rate.error,
                    yerr=distortion.error,
                    marker=group.marker,
                    color=group.colour,
                    markersize=9,
                )
        _finish(left, "distortion (nats)", "rate (nats); lower right is better")
        left.set_title(title(folder))
        _dots(
            right,
            groups,
            {
                "bits_per_dim_importance": "-log p(x) (bits/dim)\nfilled: same estimate for all",
                "bits_per_dim_appendix_d": "open: Appendix D",
            },
        )
    _legend(figure, [group for groups in panels.values() for group in groups])
    return figure


def decoder_calls(panels: Panels) -> Figure:
    """Figure 3: median decoder calls over training, with quartiles."""
    return _support(panels, 25, 75)


def message_support(panels: Panels) -> Figure:
    """Figure 4: median decoder calls over training, with the 10th and 90th percentile."""
    return _support(panels, 10, 90)


def bound_by_cost(panels: Panels) -> Figure:
    """Figure 5: the negative ELBO over epochs, and over the decoder calls that it took."""
    figure, axes = _grid(len(panels), 2, "on the validation set")
    for (folder, groups), (left, right) in zip(panels.items(), axes, strict=True):
        for group in groups:
            _line(left, group, "val/bits_per_dim")
            epochs, means = group.curve("val/bits_per_dim")
            at, calls = group.calls()
            spent = [calls[at.index(epoch)] for epoch in epochs if epoch in at]
            if len(spent) == len(means) and spent and spent[0] > 0:
                right.plot(spent, [m.value for m in means], **_look(group))
        _finish(left, "negative ELBO (bits/dim)", "epoch")
        left.set_title(title(folder))
        _finish(right, "negative ELBO (bits/dim)", "decoder calls for each training image until then")
        right.set_xscale("log")
        _label_plainly(right.xaxis)
        _close(left, groups, "val/bits_per_dim")
        right.set_ylim(left.get_ylim())
    _legend(figure, [group for groups in panels.values() for group in groups])
    return figure


def game_curves(panels: Panels) -> Figure:
    """Not in the paper: the game's success by both measures, and the symbols in use, over epochs."""
    columns = {
        "val/success_expected": ("success, own messages (%)", 100),
        "val/success_argmax": ("success, argmax message (%)", 100),
        "val/distinct_codes": ("symbols in use", 1),
    }
    figure, axes = _grid(len(panels), len(columns), "on the validation set")
    for (folder, groups), line in zip(panels.items(), axes, strict=True):
        for axis, (column, (name, scale)) in zip(line, columns.items(), strict=True):
            for group in groups:
                _line(axis, group, column, scale)
            _finish(axis, name, "epoch")
        line[1].set_title(title(folder))
    _legend(figure, [group for groups in panels.values() for group in groups])
    return figure


# File name -> first part of the configurations' names, and what draws it.
FIGURES: dict[str, tuple[str, Callable[[Panels], Figure]]] = {
    "figure1_semi_supervised_vae": ("semi_supervised_vae", learning_curves),
    "figure2_rate_distortion": ("bit_vector_vae", rate_distortion),
    "figure3_decoder_calls": ("bit_vector_vae", decoder_calls),
    "figure4_message_support": ("signal_game", message_support),
    "figure5_bound_by_cost": ("bit_vector_vae", bound_by_cost),
    "signal_game_curves": ("signal_game", game_curves),
}


def draw(groups: list[Group], folder: Path) -> dict[str, list[Path]]:
    """Draw the figures that the groups have data for, as PNG and PDF; the PNGs by task."""
    rcParams.update(
        {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "pdf.fonttype": 42}
    )
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[Path]] = {}
    for name, (task, figure_of) in FIGURES.items():
        panels: Panels = {}
        for group in groups:
            if group.config.startswith(f"{task}/") and group.drawn:
                panels.setdefault(group.folder, []).append(group)
        if panels:
            figure = figure_of(panels)
            for suffix in ("png", "pdf"):
                figure.savefig(folder / f"{name}.{suffix}", dpi=130, metadata={} if suffix == "png" else {"CreationDate": None})
            drawn.setdefault(task, []).append(folder / f"{name}.png")
    return drawn


def _grid(rows: int, columns: int, heading: str = "") -> tuple[Figure, list[list[Axes]]]:
    """A line of axes for each experiment, which their titles name; the heading says what all of them show."""
    figure = Figure(figsize=(max(4.7 * columns, 10), 3.7 * rows + 1.2), layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize="medium")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(line) for line in axes]


def _line(axis: Axes, group: Group, column: str, scale: float = 1) -> None:
    """A curve over epochs; a band of one standard error where there are several runs."""
    epochs, means = group.curve(column)
    values = [m.value * scale for m in means]
    axis.plot(epochs, values, **_look(group), markevery=max(1, len(epochs) // 8))
    if any(m.error for m in means):
        errors = [(m.error or 0) * scale for m in means]
        low, high = zip(*((v - e, v + e) for v, e in zip(values, errors, strict=True)), strict=True)
        axis.fill_between(epochs, low, high, color=group.colour, alpha=0.2, linewidth=0)


def _look(group: Group) -> dict[str, Any]:
    return {"color": group.colour, "marker": group.marker, "linestyle": group.line, "markersize": 5}


def _close(axis: Axes, groups: list[Group], column: str, scale: float = 1, *, top: bool = False) -> None:
    """Show the second half of every curve and all that is better; of what is worse, as much again."""
    curves = [[m.value * scale for m in group.curve(column)[1] if math.isfinite(m.value)] for group in groups]
    every = [value for curve in curves for value in curve]
    settled = [value for curve in curves for value in curve[len(curve) // 2 :]]
    if not every:
        return
    low, high = (min(settled), max(every)) if top else (min(every), max(settled))
    span = high - low or 1
    if top:
        axis.set_ylim(max(min(every), low - span) - 0.05 * span, high + 0.1 * span)
    else:
        axis.set_ylim(low - 0.1 * span, min(max(every), high + span) + 0.05 * span)


def _dots(axis: Axes, groups: list[Group], metrics: dict[str, str], scale: float = 1) -> None:
    """One line a method: the first metric as a filled marker, a second as an open one, what was published as a grey bar."""
    for place, group in enumerate(reversed(groups)):
        for open_marker, metric in enumerate(metrics):
            if found := group.test(metric):
                axis.errorbar(
                    found.value * scale,
                    place,
                    xerr=None if found.error is None else found.error * scale,
                    marker=group.marker,
                    color=group.colour,
                    markerfacecolor="none" if open_marker else group.colour,
                    markersize=8,
                )
            if published := group.published(metric):
                axis.plot(published[0].value * scale, place, marker="|", color="#555555", markersize=16, markeredgewidth=2)
    axis.set_yticks(range(len(groups)), [group.label for group in reversed(groups)])
    axis.set_ylim(-0.6, len(groups) - 0.4)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("\n".join([*metrics.values(), "grey bar: published"]))


def _support(panels: Panels, low: int, high: int) -> Figure:
    """Medians over bins of steps of the batches' median and percentiles; each group's first run."""
    figure, axes = _grid(1, len(panels), f"decoder calls of a training example: median, {low}th and {high}th percentile")
    for (folder, groups), axis in zip(panels.items(), axes[0], strict=True):
        for group in groups:
            rows = group.runs[0].rows("train/support_q50")
            if not rows:
                continue
            size = max(1, len(rows) // _BINS)
            bins = [rows[i : i + size] for i in range(0, len(rows), size)]
            at = [group.epoch(median(row["step"] for row in part) + 1) for part in bins]
            middle, lower, upper = (
                [median(row[f"train/support_q{q}"] for row in part) for part in bins] for q in (50, low, high)
            )
            axis.plot(at, middle, **_look(group), markevery=max(1, len(at) // 8))
            axis.fill_between(at, lower, upper, color=group.colour, alpha=0.2, linewidth=0)
        if axis.lines:
            axis.set_yscale("log")
            _label_plainly(axis.yaxis)
        _finish(axis, "decoder calls", "epoch")
        axis.set_title(title(folder))
    _legend(figure, [group for groups in panels.values() for group in groups])
    return figure


def _label_plainly(axis: Axis) -> None:
    """A logarithmic axis: 20, not 2 x 10^1; between the powers of ten where there is room."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # decades: of more no label, of fewer all


def _finish(axis: Axes, y: str, x: str) -> None:
    axis.set_ylabel(y)
    axis.set_xlabel(x)
    axis.grid(alpha=0.3)


def _legend(figure: Figure, groups: list[Group]) -> None:
    """Each method once, below the panels, with its number of runs."""
    counts: dict[str, set[int]] = {}
    styles: dict[str, Group] = {}
    for group in groups:
        counts.setdefault(group.label, set()).add(len(group.runs))
        styles.setdefault(group.label, group)
    handles = [Line2D([], [], **_look(g), label=f"{label} ({_runs(counts[label])})") for label, g in styles.items()]
    long = any(len(str(handle.get_label())) > _LONG for handle in handles)
    columns = min(3 if long else 4, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)


def _runs(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    if high == 1:
        return "one run"
    return f"{high} runs" if low == high else f"{low} to {high} runs"
