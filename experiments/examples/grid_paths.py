"""Shortest paths through maps whose terrain has unknown costs, learned from the paths that others took."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ...layers import SparseMAPLoss
from ...layers.functional import regret, sparsemap_marginals
from ...oracles import ShortestPath

SIDE = 10
COSTS = torch.tensor([0.5, 1.0, 3.0, 8.0])  # of entering a cell of each terrain; unknown to the learner
TERRAINS = ("road", "grass", "forest", "rock")


def run(steps: int) -> tuple[dict[str, float], Figure]:
    """Learn the terrains' costs by the SparseMAP loss between observed paths and the learner's own, and test on new maps.

    What counts is regret: how much more than the best path the path that is best by the learned costs really costs.
    """
    paths = ShortestPath.grid(SIDE, SIDE, diagonal=True)
    entered = torch.tensor([head for _, head in paths.arcs])
    generator = torch.Generator().manual_seed(0)
    train, test = (_maps(count, generator) for count in (200, 100))
    lengths = [COSTS[maps][:, entered] for maps in (train, test)]  # [maps, arcs]
    taken, best = (paths.maximize(-length) for length in lengths)
    loss, raw = SparseMAPLoss(paths), torch.zeros(len(COSTS), requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)

    def relative_regret() -> float:
        lost = regret(-F.softplus(raw.detach())[test][:, entered], -lengths[1], paths, best=best)
        return float((lost / (best * lengths[1]).sum(-1)).mean())

    before = relative_regret()
    for _ in range(steps):
        batch = torch.randint(len(train), (16,), generator=generator)
        optimizer.zero_grad()
        loss(-F.softplus(raw)[train[batch]][:, entered], taken[batch]).backward()
        optimizer.step()
    costs = F.softplus(raw.detach())
    results = {"regret before training": before, "regret after training": relative_regret()}
    for name, cost, true in zip(TERRAINS[1:], costs[1:] / costs[0], COSTS[1:] / COSTS[0], strict=True):
        results[f"learned cost of {name} in roads (true: {true:.0f})"] = float(cost)
    marginals = sparsemap_marginals(-costs[test[:4]][:, entered], paths)
    return results, _draw(test[:4], best[:4], marginals, entered)


def _maps(count: int, generator: torch.Generator) -> Tensor:
    """Terrain of every cell, [count, cells]: smooth random hills, cut into as many levels as there are terrains."""
    noise = torch.rand(count, 1, SIDE + 2, SIDE + 2, generator=generator)
    hills = F.avg_pool2d(noise, 3, stride=1).flatten(1)
    return (hills.argsort(-1).argsort(-1) * len(COSTS)).div(SIDE**2, rounding_mode="floor")


def _draw(maps: Tensor, best: Tensor, marginals: Tensor, entered: Tensor) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(
        "New maps (dark: costly). Squares: the probability that a path by the learned costs enters a cell; line: the best path"
    )
    for axis, terrain, path, arcs in zip(figure.subplots(1, len(maps)), maps, best, marginals, strict=True):
        axis.imshow(terrain.reshape(SIDE, SIDE), cmap="YlGn", vmin=0, vmax=len(COSTS) - 1)
        cells = torch.zeros(SIDE**2).index_add(0, entered, arcs)
        cells[0] = 1
        rows, columns = torch.arange(SIDE**2) // SIDE, torch.arange(SIDE**2) % SIDE
        axis.scatter(columns, rows, s=90 * cells, marker="s", color="#0072B2")
        visited = torch.cat([torch.zeros(1, dtype=torch.int64), entered[path.bool()].sort().values])
        axis.plot(visited % SIDE, visited // SIDE, color="#D55E00", linewidth=2)
        axis.set(xticks=[], yticks=[])
    return figure
