"""A new polytope in ten lines, verified, then trained: which neighbouring rows of a digit does a classifier need?"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import SparseMAP
from ...oracles import Polytope
from .digits import ShuffledDigits

# Nats of classification loss that one more row must be worth.
ROW_COST = 0.05


class Windows(Polytope):
    """Runs of neighbouring rows: all first ... last of `dim` rows."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        first, last = torch.combinations(torch.arange(dim), 2, with_replacement=True)[..., None].unbind(1)
        self.runs = ((first <= torch.arange(dim)) & (torch.arange(dim) <= last)).double()  # [runs, dim]

    def maximize(self, scores: Tensor) -> Tensor:
        runs = self.runs.to(scores)
        return runs[(scores @ runs.T).argmax(-1)]


def run(steps: int) -> tuple[dict[str, float], Figure]:
    """Train a network that chooses a window of an 8x8 digit and another that classifies what is seen through it.

    Their loss is E_{window ~ SparseMAP(scores)}[cross-entropy + ROW_COST rows], summed exactly over the windows with mass.
    """
    from ...verification import verify  # needs the packages of the references

    verify(Windows(8), skip=["cvxpy"]).raise_if_failed()

    torch.manual_seed(0)
    digits = ShuffledDigits()
    chooser, layer = nn.Linear(64, 8), SparseMAP(Windows(8))
    classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam([*chooser.parameters(), *classifier.parameters()], lr=5e-3)
    for images, labels in digits.batches(steps, 64):
        windows = layer(chooser(images))

        def cost(window: Tensor, row: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            seen = images[row] * window.repeat_interleave(8, dim=-1)
            return F.cross_entropy(classifier(seen), labels[row], reduction="none") + ROW_COST * window.sum(-1)

        optimizer.zero_grad()
        windows.expectation(cost).mean().backward()
        optimizer.step()

    with torch.no_grad():
        windows = layer(chooser(digits.test_images))
        best = windows.mode()
        predicted = classifier(digits.test_images * best.repeat_interleave(8, dim=-1)).argmax(-1)
    results = {
        "test accuracy": (predicted == digits.test_labels).double().mean().item(),
        "rows seen, of 8": best.sum(-1).mean().item(),
        "windows with mass": windows.support_size().double().mean().item(),
    }
    return results, _draw(digits.test_images[:12], windows.mean()[:12], best[:12])


def _draw(images: Tensor, means: Tensor, windows: Tensor) -> Figure:
    figure = Figure(figsize=(11, 1.5), layout="constrained")
    figure.suptitle("Rows that a classifier looks at: shade, probability that a row is seen; frame, the most probable window")
    for axis, image, mean, window in zip(figure.subplots(1, len(images)), images, means, windows, strict=True):
        axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axis.imshow(mean[:, None].expand(8, 8), cmap="Oranges", alpha=0.45, vmin=0, vmax=1)
        rows = window.nonzero()[:, 0]
        axis.axhspan(float(rows.min()) - 0.5, float(rows.max()) + 0.5, fill=False, edgecolor="#D55E00", linewidth=2)
        axis.set(xticks=[], yticks=[])
    return figure
