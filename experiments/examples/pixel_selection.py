"""Feature selection with a budget: which ten pixels of a digit tell the ten classes apart?"""

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.functional import sparsemap
from ...oracles import Budget
from .digits import ShuffledDigits

PIXELS = 10
NOISE = 2.0  # standard deviation at the start, in units of the scores


def run(steps: int) -> tuple[dict[str, float], Figure]:
    """Learn one score a pixel; the loss is the classifier's expected one over k-subsets of pixels, summed exactly.

    Noise on the scores, which fades, lets the classifier see other pixels than those that happen to be on top at first. The
    subset of highest probability is compared with scikit-learn's choice by F-tests and with chance, each by the test
    accuracy of a logistic regression on those pixels alone.
    """
    torch.manual_seed(0)
    digits, subsets = ShuffledDigits(), Budget(64, PIXELS, exactly=True)
    scores = nn.Parameter(0.1 * torch.randn(64))
    classifier = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam([{"params": [scores], "lr": 3e-2}, {"params": classifier.parameters(), "lr": 5e-3}])
    for step, (images, labels) in enumerate(digits.batches(steps, 64)):
        noise = NOISE * (1 - step / steps) * torch.randn(64)

        def cost(subset: Tensor, _: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            logits = classifier(images * subset[:, None])  # [subsets, images, classes]
            losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(subset)), reduction="none")
            return losses.reshape(len(subset), -1).mean(-1)

        optimizer.zero_grad()
        sparsemap((scores + noise)[None], subsets).expectation(cost).sum().backward()
        optimizer.step()

    found = sparsemap(scores.detach()[None], subsets)
    fitted = SelectKBest(f_classif, k=PIXELS).fit(digits.train_images.numpy() + _speck(), digits.train_labels.numpy())
    choices = {"k-subset SparseMAP": found.mode()[0].bool(), "F-tests": torch.from_numpy(fitted.get_support())}
    random = [torch.randperm(64, generator=torch.Generator().manual_seed(seed)) < PIXELS for seed in range(20)]
    results = {f"test accuracy, {PIXELS} pixels by {name}": _accuracy(digits, mask) for name, mask in choices.items()}
    results[f"test accuracy, {PIXELS} pixels by chance (mean of 20)"] = float(np.mean([_accuracy(digits, m) for m in random]))
    results["subsets with mass"] = float(found.support_size())
    return results, _draw(digits, choices, results)


def _speck() -> np.ndarray:
    """Variance for pixels that are always white, by which an F-test would divide."""
    return 1e-6 * np.random.default_rng(0).standard_normal((1, 64)) * np.linspace(-1, 1, 1300)[:, None]


def _accuracy(digits: ShuffledDigits, mask: Tensor) -> float:
    model = LogisticRegression(max_iter=1000).fit(digits.train_images[:, mask].numpy(), digits.train_labels.numpy())
    return float(model.score(digits.test_images[:, mask].numpy(), digits.test_labels.numpy()))


def _draw(digits: ShuffledDigits, choices: dict[str, Tensor], results: dict[str, float]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    figure.suptitle(f"The {PIXELS} of 64 pixels chosen, on the mean digit")
    for axis, (name, mask) in zip(figure.subplots(1, len(choices)), choices.items(), strict=True):
        axis.imshow(digits.train_images.mean(0).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        rows, columns = mask.reshape(8, 8).nonzero().unbind(1)
        axis.scatter(columns, rows, s=130, marker="s", facecolors="none", edgecolors="#D55E00", linewidths=2)
        accuracy = results[f"test accuracy, {PIXELS} pixels by {name}"]
        axis.set(xticks=[], yticks=[], title=f"{name}: {100 * accuracy:.1f} % right")
    return figure
