"""Binarised images of which few have labels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batched_data import BatchedData, Sources
from .batches import Source
from .data import read_digits, read_torchvision


class SemiSupervisedBatch(NamedTuple):
    """Training images, in {0, 1}.

    Attributes:
        labelled: [B, pixels] float.
        labels: [B] int64.
        unlabelled: [B, pixels] float; None in a warm start.
    """

    labelled: Tensor
    labels: Tensor
    unlabelled: Tensor | None


class LabelledBatch(NamedTuple):
    """Images [B, pixels] float in {0, 1} to validate or test on, and their labels [B] int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelledImages:
    """Pixels [N, pixels] float, the probability of a 1, and labels [N] int64."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> "LabelledImages":
        return LabelledImages(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class SemiSupervisedSplits:
    """Images to train on with and without labels, to select on, and to report on."""

    labelled: LabelledImages
    unlabelled: LabelledImages
    val: LabelledImages
    test: LabelledImages


class SemiSupervisedData(BatchedData, ABC):
    """Pairs labelled with unlabelled images: example i is (labelled[i mod L], unlabelled[i]).

    An epoch goes once through the unlabelled images. Each pixel of a training image is drawn anew, as a Bernoulli variable
    whose probability is its grey level, every time that the image comes up; validation and test images are drawn once, the
    same for every run and method, so that their bounds can be compared.

    Args:
        batch_size: pairs in a batch, over all processes; the last, smaller batch is kept.
        labelled_only: give only the labelled images, once each an epoch, for a warm start.
        eval_binarization_seed: of the validation's and the test's pixels.
    """

    pixels: int
    classes: int

    def __init__(self, batch_size: int = 64, labelled_only: bool = False, eval_binarization_seed: int = 0) -> None:
        super().__init__(batch_size)
        self.labelled_only = labelled_only
        self.eval_binarization_seed = eval_binarization_seed

    @abstractmethod
    def read(self) -> SemiSupervisedSplits:
        """Read the data set."""

    def load(self) -> Sources:
        splits = self.read()
        generator = torch.Generator().manual_seed(self.eval_binarization_seed)
        val, test = _binarized(splits.val, generator), _binarized(splits.test, generator)
        count = len(splits.labelled.labels)

        def warm_start(index: Tensor, generator: torch.Generator) -> SemiSupervisedBatch:
            labelled = splits.labelled[index]
            return SemiSupervisedBatch(_draw(labelled.pixels, generator), labelled.labels, None)

        def pairs(index: Tensor, generator: torch.Generator) -> SemiSupervisedBatch:
            labelled = splits.labelled[index % count]
            unlabelled = splits.unlabelled.pixels[index]
            return SemiSupervisedBatch(_draw(labelled.pixels, generator), labelled.labels, _draw(unlabelled, generator))

        train = Source(warm_start, count) if self.labelled_only else Source(pairs, len(splits.unlabelled.labels))
        return Sources(train, val, test)


class SemiSupervisedMNIST(SemiSupervisedData):
    """MNIST through torchvision: of the 60,000 training images 10,000 validate, 5,000 are labelled, 45,000 are not.

    The three are random, disjoint and those of the authors' published code, made again from its seed.

    Args:
        root: the folder that holds (or will hold) torchvision's `MNIST` folder.
        download: fetch the files if they are not there.
        batch_size, labelled_only, eval_binarization_seed: see `SemiSupervisedData`.
    """

    pixels = 784
    classes = 10

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 64,
        labelled_only: bool = False,
        eval_binarization_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, labelled_only, eval_binarization_seed)
        self.root = root
        self.download = download

    def read(self) -> SemiSupervisedSplits:
        train = self._images(train=True)
        labelled, unlabelled, val = (torch.from_numpy(index) for index in published_split())
        return SemiSupervisedSplits(train[labelled], train[unlabelled], train[val], self._images(train=False))

    def _images(self, train: bool) -> LabelledImages:
        images, labels = read_torchvision("MNIST", self.root, train, self.download)
        return LabelledImages(images / 255, labels)


class SemiSupervisedDigits(SemiSupervisedData):
    """The 1,797 digits of 8x8 pixels that ship with scikit-learn: 126 labelled, 1,131 unlabelled, 180 val, 360 test.

    The split is a fixed permutation, the same for every run.
    """

    pixels = 64
    classes = 10

    def read(self) -> SemiSupervisedSplits:
        images, labels = read_digits()
        parts = LabelledImages(images / 16, labels)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, val, test = order.split([1257, 180, 360])
        return SemiSupervisedSplits(parts[train[:126]], parts[train[126:]], parts[val], parts[test])


def published_split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of MNIST's training images that are labelled [5000], unlabelled [45000] and for validation [10000]."""
    draw = np.random.RandomState(351245)  # the generator that the published split was drawn with
    val = draw.choice(np.arange(60000), 10000, replace=False)
    rest = np.setdiff1d(np.arange(60000), val)
    labelled = draw.choice(rest, 5000, replace=False)
    return labelled, np.setdiff1d(rest, labelled), val


def _binarized(images: LabelledImages, generator: torch.Generator) -> Source:
    pixels = _draw(images.pixels, generator)
    return Source(lambda index, _: LabelledBatch(pixels[index], images.labels[index]), len(pixels))


def _draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(probs, generator=generator)
