"""The 8x8 digits of scikit-learn, split into training and test."""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TEST = 497


class ShuffledDigits:
    """1,797 images, in a fixed random order, the last 497 for testing.

    Attributes:
        train_images, test_images: [n, 64] float in [0, 1].
        train_labels, test_labels: [n] int64.
    """

    def __init__(self) -> None:
        pixels, classes = (torch.from_numpy(np.asarray(array)) for array in load_digits(return_X_y=True))
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
        images, labels = pixels.float()[order] / 16, classes.long()[order]
        self.train_images, self.test_images = images[:-TEST], images[-TEST:]
        self.train_labels, self.test_labels = labels[:-TEST], labels[-TEST:]

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many batches of training images [size, 64] and labels [size], drawn with replacement."""
        generator = torch.Generator().manual_seed(1)
        for _ in range(count):
            chosen = torch.randint(len(self.train_labels), (size,), generator=generator)
            yield self.train_images[chosen], self.train_labels[chosen]
