"""Predict, then decide: a linear model of costs that is wrong, trained by what is decided from it."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...layers.functional import perturbed_loss, regret, sparsemap_loss, spo_plus_loss
from ...oracles import ShortestPath

SIDE, FEATURES = 5, 5
TRAIN, TEST, TRIALS = 200, 1000, 4
DEGREES = (1, 2, 4, 6)  # of the polynomial that the costs are; the model takes them to be of degree 1
NOISE = 0.5  # costs are multiplied by a number up to so far from 1
PATHS = ShortestPath.grid(SIDE, SIDE)

# Each loss of predicted scores, true values and the structures that are best by these: scores are minus costs.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "SPO+, knows costs": lambda scores, values, best: spo_plus_loss(scores, values, PATHS, best=best),
    "perturbed, knows best paths": lambda scores, _, best: perturbed_loss(scores, best, PATHS, samples=4),
    "SparseMAP, knows best paths": lambda scores, _, best: sparsemap_loss(scores, best, PATHS),
}
STYLES = {
    "least squares, knows costs": ("#000000", "s"),
    **dict(zip(LOSSES, (("#0072B2", "o"), ("#009E73", "v"), ("#D55E00", "D")), strict=True)),
}


def run(steps: int) -> tuple[dict[str, float], Figure]:
    """Train a linear model of the arcs' costs by three losses of decisions and by least squares, and compare their regret.

    The data are as in Elmachtoub and Grigas (2022, section 6.1): the costs of 40 arcs are polynomials of random features. The
    higher their degree, the more wrong is a linear model of them. What counts is normalised regret on test data: how much more
    the paths that are best by the predictions cost than the best, all test cases together.
    """
    results, curves = {}, {name: [] for name in STYLES}
    for degree in DEGREES:
        found = [_trial(degree, steps, torch.Generator().manual_seed(seed)) for seed in range(TRIALS)]
        for name, curve in curves.items():
            curve.append([100 * trial[name] for trial in found])
            results[f"regret in %, costs of degree {degree}, {name}"] = sum(curve[-1]) / TRIALS
    return results, _draw(curves)


def _trial(degree: int, steps: int, generator: torch.Generator) -> dict[str, float]:
    """The normalised regret of each method on data of its own."""
    shares = (torch.rand(FEATURES, PATHS.dim, generator=generator) < 0.5).float()
    features, costs = _data(TRAIN, shares, degree, generator)
    tests, true = _data(TEST, shares, degree, generator)
    best, least = PATHS.maximize(-costs), PATHS.maximize(-true)
    fitted = torch.linalg.lstsq(_with_one(features), costs).solution
    predictions = {"least squares, knows costs": _with_one(tests) @ fitted}
    for name, loss in LOSSES.items():
        torch.manual_seed(0)
        model = nn.Linear(FEATURES, PATHS.dim)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(steps):
            some = torch.randint(TRAIN, (32,), generator=generator)
            optimizer.zero_grad()
            loss(-model(features[some]), -costs[some], best[some]).mean().backward()
            optimizer.step()
        predictions[name] = model(tests).detach()
    total = (least * true).sum()
    return {name: float(regret(-cost, -true, PATHS, best=least).sum() / total) for name, cost in predictions.items()}


def _data(count: int, shares: Tensor, degree: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features [count, p] and costs [count, arcs]: ((shares' x / sqrt(p) + 3)^degree + 1) / 3.5^degree, with noise."""
    features = torch.randn(count, FEATURES, generator=generator)
    costs = ((features @ shares / FEATURES**0.5 + 3) ** degree + 1) / 3.5**degree
    noise = 1 + NOISE * (2 * torch.rand(costs.shape, generator=generator) - 1)
    return features, costs * noise


def _with_one(features: Tensor) -> Tensor:
    return nn.functional.pad(features, (0, 1), value=1.0)


def _draw(curves: dict[str, list[list[float]]]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for (name, curve), shift in zip(curves.items(), torch.linspace(-0.12, 0.12, len(curves)).tolist(), strict=True):
        color, marker = STYLES[name]
        trials = torch.tensor(curve)
        places = torch.arange(len(DEGREES)) + shift
        axis.plot(places, trials.mean(1), color=color, marker=marker, label=name)
        axis.vlines(places, trials.amin(1), trials.amax(1), color=color, linewidth=1)
    axis.set(
        xticks=range(len(DEGREES)),
        xticklabels=DEGREES,
        xlabel="degree of the true costs (the model is linear)",
        ylabel="regret, % of the best paths' cost",
        title=f"Shortest paths by predicted costs: mean and range of {TRIALS} trials",
        ylim=(0, None),
    )
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
