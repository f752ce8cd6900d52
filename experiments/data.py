"""Image data sets as integer grey levels, one flat row per image."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .batched_data import BatchedData, Sources
from .batches import Source
from .errors import UsageError


@dataclass(frozen=True)
class Splits:
    """Images [N, pixels] uint8 to train on, to select on, and to report on."""

    train: Tensor
    val: Tensor
    test: Tensor


class ImageData(BatchedData, ABC):
    """Gives batches [B, pixels] uint8 of the splits of a data set.

    Args:
        batch_size: images in a batch, over all processes; the last, smaller batch is kept.
    """

    pixels: int
    levels: int

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        self._splits: Splits | None = None

    @abstractmethod
    def read(self) -> Splits:
        """Read the data set."""

    @property
    def splits(self) -> Splits:
        """The data set, read at the first use."""
        if self._splits is None:
            self._splits = self.read()
        return self._splits

    def load(self) -> Sources:
        return Sources(Source.of(self.splits.train), Source.of(self.splits.val), Source.of(self.splits.test))


class MNIST(ImageData):
    """MNIST through torchvision: 28x28 bytes, train[0:55000], val = train[55000:60000], 10,000 test images.

    The split is that of the published bit-vector experiment. No binarisation, no augmentation.

    Args:
        root: the folder that holds (or will hold) torchvision's `MNIST` or `FashionMNIST` folder.
        download: fetch the files if they are not there.
        batch_size: images in a batch.
    """

    pixels = 784
    levels = 256
    dataset = "MNIST"

    def __init__(self, root: str = "data", download: bool = True, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        self.root = root
        self.download = download

    def read(self) -> Splits:
        train = self._images(train=True)
        return Splits(train[:55000], train[55000:], self._images(train=False))

    def _images(self, train: bool) -> Tensor:
        return read_torchvision(self.dataset, self.root, train, self.download)[0]


class FashionMNIST(MNIST):
    """Fashion-MNIST through torchvision, split as `MNIST`."""

    dataset = "FashionMNIST"


class Digits(ImageData):
    """The 1,797 digits of 8x8 pixels and 17 grey levels that ship with scikit-learn: 1,257 train, 180 val, 360 test.

    The split is a fixed permutation, the same for every run.
    """

    pixels = 64
    levels = 17

    def read(self) -> Splits:
        images, _ = read_digits()
        order = torch.randperm(images.shape[0], generator=torch.Generator().manual_seed(0))
        train, val, test = images[order].split([1257, 180, 360])
        return Splits(train, val, test)


def read_torchvision(dataset: str, root: str, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Read the images [N, pixels] uint8 and labels [N] int64 of torchvision's `MNIST` or `FashionMNIST`.

    Raises:
        UsageError: the files are missing or damaged.
    """
    from torchvision import datasets  # here, because it is slow to import and the digits do not need it

    try:
        data = getattr(datasets, dataset)(root, train=train, download=download)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        fix = (
            "Check the connection, or copy the files there"
            if download
            else "Give the right folder with --data.init_args.root, or allow the download with --data.init_args.download true"
        )
        raise UsageError(
            f"expected the {dataset} files in {Path(root) / dataset / 'raw'}, but they are missing or damaged and could "
            f"not be read ({cause}). {fix}."
        ) from error
    return data.data.flatten(1), data.targets


def read_digits() -> tuple[Tensor, Tensor]:
    """Read scikit-learn's digits: images [1797, 64] uint8 of grey levels 0..16, and labels [1797] int64."""
    from sklearn.datasets import load_digits  # slow to import

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels)
