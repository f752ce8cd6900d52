"""Latent alignments in a classifier: each digit is compared to a template of each class, row by row, stretched as fits best."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ...layers.functional import sparsemap_marginals
from ...oracles import ShortestPath
from .digits import ShuffledDigits

ROWS = 8


class AlignedTemplates(torch.nn.Module):
    """Scores of classes: how similar the rows of an image are to those of a template, under a latent monotone alignment.

    An alignment is a path through the grid of (image row, template row) pairs, right, down or both at once, and collects
    the similarity of every pair that it enters. SparseMAP gives the distribution over alignments, a class's score is the
    expected similarity under it: a smooth form of dynamic time warping.
    """

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.templates = torch.nn.Parameter(templates)  # [classes, rows, columns]
        self.sharpness = torch.nn.Parameter(torch.tensor(2.0))
        self.paths = ShortestPath.grid(ROWS, ROWS, diagonal=True)
        self.entered = torch.tensor([head for _, head in self.paths.arcs])

    def similarities(self, images: Tensor) -> Tensor:
        """Of every row of images [B, 64] to every row of every template, [B, classes, rows, rows]."""
        rows = images.reshape(len(images), 1, ROWS, 1, -1)
        return -self.sharpness * (rows - self.templates[:, None]).square().sum(-1)

    def alignments(self, similarities: Tensor) -> Tensor:
        """The probability that an alignment takes each arc of the grid, [B, classes, arcs]."""
        return sparsemap_marginals(similarities.flatten(-2)[..., self.entered], self.paths)

    def forward(self, images: Tensor) -> Tensor:
        similarities = self.similarities(images)
        gained = self.alignments(similarities) * similarities.flatten(-2)[..., self.entered]
        return similarities[..., 0, 0] + gained.sum(-1)

    def rigid(self, images: Tensor) -> Tensor:
        """The scores without alignment: row to row."""
        return self.similarities(images).diagonal(dim1=-2, dim2=-1).sum(-1)


def run(steps: int) -> tuple[dict[str, float], Figure]:
    """Train templates through the alignments, and others row to row; test both on digits as they are and one row lower."""
    digits = ShuffledDigits()
    start = torch.stack([digits.train_images[digits.train_labels == label].mean(0) for label in range(10)])
    models = {name: AlignedTemplates(start.reshape(10, ROWS, ROWS).clone()) for name in ("aligned", "rigid")}
    results: dict[str, float] = {}
    lower = digits.test_images.reshape(-1, ROWS, ROWS).roll(1, dims=1).reshape(len(digits.test_images), -1)
    for name, model in models.items():
        scores = model.forward if name == "aligned" else model.rigid
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for images, labels in digits.batches(steps, 32):
            optimizer.zero_grad()
            F.cross_entropy(scores(images), labels).backward()
            optimizer.step()
        with torch.no_grad():
            for where, images in (("", digits.test_images), (", digits one row lower", lower)):
                right = scores(images).argmax(-1) == digits.test_labels
                results[f"test accuracy, {name}{where}"] = right.double().mean().item()
    return results, _draw(models["aligned"], lower[:4], digits.test_labels[:4])


@torch.no_grad()
def _draw(model: AlignedTemplates, images: Tensor, labels: Tensor) -> Figure:
    arcs = model.alignments(model.similarities(images))
    figure = Figure(figsize=(8, 5), layout="constrained")
    figure.suptitle("Digits one row lower, and how their rows are aligned with those of their class's template")
    axes = figure.subplots(2, 3 * len(images) // 2).flatten()
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        cells = torch.zeros(ROWS**2).index_add(0, model.entered, arcs[place, label])
        cells[0] = 1
        pictures = {
            f"digit {int(label)}": (image.reshape(ROWS, ROWS), "gray_r"),
            "alignment": (cells.reshape(ROWS, ROWS), "Oranges"),
            "template": (model.templates[label], "gray_r"),
        }
        for axis, (title, (picture, colours)) in zip(axes[3 * place : 3 * place + 3], pictures.items(), strict=True):
            axis.imshow(picture, cmap=colours, vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=title)
        axes[3 * place + 1].set(xlabel="template row", ylabel="digit row")
    return figure
