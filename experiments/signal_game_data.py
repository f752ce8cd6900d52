"""The signal game's images: where their features come from, and what is done to them before games are drawn."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .batched_data import BatchedData, Sources
from .batches import Source
from .data import read_digits
from .errors import UsageError
from .feature_files import read_npz, read_published
from .games import ConceptImages, GameBatch, Games


class SignalGameData(BatchedData, ABC):
    """Gives batches of games (`GameBatch`), new ones in every training step.

    Validation games show images held out of the training games (the published code validated on training images); a test
    has the test images. Both are drawn once, from their own seeds, and are the same for every run and method.
    Features are divided by their l2 norm.

    Args:
        images: in a game, one of each of as many concepts.
        batch_size: games in a batch, over all processes.
        batches_per_epoch: of training games.
        center: subtract the training images' mean first. Needed where features are non-negative, as those after a rectifier:
            normalised, they all point the same way, and the game stays at chance. The published code does not.
        val_fraction: of each concept's training images, held out for validation; at least one image is.
        val_games: how many games to validate on.
        test_games: how many games to test on.
    """

    def __init__(
        self,
        images: int = 16,
        batch_size: int = 64,
        batches_per_epoch: int = 100,
        center: bool = False,
        val_fraction: float = 0.2,
        val_games: int = 1024,
        test_games: int = 9984,
    ) -> None:
        super().__init__(batch_size, val_seed=20200724, test_seed=20200725)  # the published ones
        if not 0 < val_fraction < 1:
            raise ValueError(f"data: val_fraction must be between 0 and 1, not {val_fraction}")
        if min(batches_per_epoch, val_games, test_games) < 1:
            raise ValueError(
                "data: batches_per_epoch, val_games and test_games must be at least 1, not "
                f"{batches_per_epoch}, {val_games} and {test_games}"
            )
        self.images = images
        self.batches_per_epoch = batches_per_epoch
        self.center = center
        self.val_fraction = val_fraction
        self.val_games = val_games
        self.test_games = test_games
        self._feature_size: int | None = None

    @abstractmethod
    def read(self) -> tuple[ConceptImages, ConceptImages]:
        """Read the training and the test images."""

    @property
    def feature_size(self) -> int:
        """How many features an image has."""
        if self._feature_size is None:
            _ = self.sources
        assert self._feature_size is not None
        return self._feature_size

    def load(self) -> Sources:
        images, test = self.read()
        train, val = images.hold_out(self.val_fraction, torch.Generator().manual_seed(self.val_seed))
        mean = train.features.mean(0) if self.center else torch.zeros_like(train.features[0])
        games = [
            Games(replace(pool, features=F.normalize(pool.features - mean, dim=-1)), self.images, split)
            for pool, split in [(train, "training"), (val, "validation"), (test, "test")]
        ]
        self._feature_size = train.features.shape[1]

        def new_games(index: Tensor, generator: torch.Generator) -> GameBatch:
            return games[0].batch(games[0].draw(len(index), generator))

        return Sources(
            Source(new_games, self.batch_size * self.batches_per_epoch),
            _fixed(games[1], self.val_games, self.val_seed),
            _fixed(games[2], self.test_games, self.test_seed),
        )


class FeatureFile(SignalGameData):
    """Features from an `.npz` file, such as `sparsemarg extract-features` writes.

    The file has `features` [N, features] (any real type), `labels` [N] integers, `split` [N] (0 train, 1 test), and, if it
    likes, `classes`: the names that the labels index.

    Args:
        path: of the file.
        center: on by default, see `SignalGameData`, as are the other options.
    """

    def __init__(
        self,
        path: str = "data/signal_game/features.npz",
        images: int = 16,
        batch_size: int = 64,
        batches_per_epoch: int = 100,
        center: bool = True,
        val_fraction: float = 0.2,
        val_games: int = 1024,
        test_games: int = 9984,
    ) -> None:
        super().__init__(images, batch_size, batches_per_epoch, center, val_fraction, val_games, test_games)
        self.path = path

    def read(self) -> tuple[ConceptImages, ConceptImages]:
        return read_npz(Path(self.path))


class PublishedFeatures(SignalGameData):
    """Features in the layout of Bouchacourt and Baroni (2018), which the paper's game reads.

    `train/` and `test/` of the folder each have `ours_images_single_sm0.h5`, an HDF5 file of one data set [N, features], and
    `ours_images_single_sm0.objects`, a pickled array of N concept names. The pickle is read without running anything:
    it may hold NumPy arrays and nothing else. Needs h5py: `pip install 'sparsemarg[hdf5]'`.

    Args:
        root: the folder of `train/` and `test/`.
        images, batch_size, batches_per_epoch, center, val_fraction, val_games, test_games: see `SignalGameData`.
    """

    def __init__(
        self,
        root: str = "data/signal_game",
        images: int = 16,
        batch_size: int = 64,
        batches_per_epoch: int = 100,
        center: bool = False,
        val_fraction: float = 0.2,
        val_games: int = 1024,
        test_games: int = 9984,
    ) -> None:
        super().__init__(images, batch_size, batches_per_epoch, center, val_fraction, val_games, test_games)
        self.root = root

    def read(self) -> tuple[ConceptImages, ConceptImages]:
        train, test = (read_published(Path(self.root) / split) for split in ("train", "test"))
        if train.features.shape[1] != test.features.shape[1]:
            raise UsageError(
                f"{self.root}: training and test images must have equally many features, but have "
                f"{train.features.shape[1]} and {test.features.shape[1]}: extract both with the same network"
            )
        return train, test


class DigitsGame(SignalGameData):
    """The 1,797 digits of 8x8 pixels that ship with scikit-learn as 10 concepts, pixels as features: 1,437 train, 360 test.

    Args:
        images: in a game, at most 10.
        batch_size, batches_per_epoch, center, val_fraction, val_games, test_games: see `SignalGameData`.
    """

    def __init__(
        self,
        images: int = 8,
        batch_size: int = 64,
        batches_per_epoch: int = 100,
        center: bool = True,
        val_fraction: float = 0.2,
        val_games: int = 1024,
        test_games: int = 1024,
    ) -> None:
        super().__init__(images, batch_size, batches_per_epoch, center, val_fraction, val_games, test_games)

    def read(self) -> tuple[ConceptImages, ConceptImages]:
        pixels, labels = read_digits()
        digits = ConceptImages(pixels.float(), labels, tuple("0123456789"))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        return digits[order[:-360]], digits[order[-360:]]


def _fixed(games: Games, count: int, seed: int) -> Source:
    drawn = games.draw(count, torch.Generator().manual_seed(seed))
    return Source(lambda index, _: games.batch(drawn[index]), count)
