"""Time against dimension, batch, k and support, as plots."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from ...layers.functional import sparsemap, sparsemax, topk_sparsemax
from ...layers.solvers import ActiveSet, SortedDecomposition
from ...oracles import BernoulliCube
from .operators import gradient_of
from .timing import interleave

SLOW = 0.1  # seconds: what takes less is timed more often
Maker = Callable[[int], Callable[[], object]]


def draw(path: Path, device: torch.device, quick: bool) -> None:
    """Write a picture of five panels. Sizes grow until one call takes a second, or to their end."""

    def scores(batch: int, dim: int) -> torch.Tensor:
        return torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).to(device)

    def softmax_like(function: Callable[[torch.Tensor], torch.Tensor], batch: int, dim: int) -> Callable[[], object]:
        leaf = scores(batch, dim).requires_grad_()
        return lambda: torch.autograd.grad(function(leaf).square().sum(), leaf)

    def cube(batch: int, dim: int, solver: ActiveSet | SortedDecomposition) -> Callable[[], object]:
        return gradient_of(scores(batch, dim), lambda t: sparsemap(t, BernoulliCube(dim), coding="pairs", solver=solver))

    def topk(batch: int, dim: int, k: int) -> Callable[[], object]:
        return gradient_of(scores(batch, dim), lambda t: topk_sparsemax(t, BernoulliCube(dim), k))

    def fractional(count: int) -> torch.Tensor:
        """[64, 256] scores of which so many have means between 0 and 1: the sorted decomposition has one atom more."""
        drawn = scores(64, 256)
        return torch.where(torch.arange(256, device=device) < count, drawn.tanh() * 0.9, 3 * drawn.sign())

    def solved(count: int, solver: ActiveSet | SortedDecomposition) -> Callable[[], object]:
        return gradient_of(fractional(count), lambda t: sparsemap(t, BernoulliCube(256), coding="pairs", solver=solver))

    def decoded(count: int) -> Callable[[], object]:
        q = sparsemap(fractional(count), BernoulliCube(256), coding="pairs", solver=SortedDecomposition())
        decoder = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 784)).to(device)
        weights = list(decoder.parameters())
        return lambda: torch.autograd.grad(q.expectation(lambda codes, _: decoder(codes).square().mean(-1)).sum(), weights)

    powers = [2**p for p in range(3, 7 if quick else 15)]
    panels: list[tuple[str, str, Sequence[int], dict[str, Maker]]] = [
        (
            "categories K, 64 rows",
            "sparsemax",
            powers,
            {
                "sparsemax": lambda n: softmax_like(sparsemax, 64, n),
                "softmax": lambda n: softmax_like(lambda t: t.softmax(-1), 64, n),
            },
        ),
        (
            "bits D, 64 rows",
            "SparseMAP and top-k on the cube",
            powers,
            {
                "ActiveSet": lambda n: cube(64, n, ActiveSet()),
                "sorted": lambda n: cube(64, n, SortedDecomposition()),
                "top-k, k = 10": lambda n: topk(64, n, 10),
            },
        ),
        (
            "rows B, 32 bits",
            "the batch",
            [4**p for p in range(1, 4 if quick else 9)],
            {
                "ActiveSet": lambda n: cube(n, 32, ActiveSet()),
                "sorted": lambda n: cube(n, 32, SortedDecomposition()),
                "top-k, k = 10": lambda n: topk(n, 32, 10),
            },
        ),
        ("k, 64 rows of 32 bits", "top-k", [2**p for p in range(0, 4 if quick else 9)], {"top-k": lambda n: topk(64, 32, n)}),
        (
            "fractional bits of 256: atoms less one, 64 rows",
            "the support, by scores with so many fractional bits",
            [2**p for p in range(0, 4 if quick else 9)],
            {
                "ActiveSet": lambda n: solved(n, ActiveSet()),
                "sorted": lambda n: solved(n, SortedDecomposition()),
                "two-layer decoder": decoded,
            },
        ),
    ]
    figure = Figure(figsize=(15, 7), layout="constrained")
    figure.suptitle("Forward and backward, scores N(0, 1): median of 15, of 3 from 0.1 s on")
    *axes, spare = figure.subplots(2, 3).flatten()
    spare.set_axis_off()
    for axis, (label, title, sizes, makers) in zip(axes, panels, strict=True):
        for name, make in makers.items():
            points = []
            for size in sizes:
                timed = {name: make(size)}
                taken = interleave(timed, 3)[name].median
                if taken < SLOW:
                    taken = interleave(timed, 15)[name].median
                points.append((size, 1e3 * taken))
                if taken > (0.02 if quick else 1.0):
                    break
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
