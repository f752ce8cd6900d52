"""What every data module has in common: batches of three splits, and a training order that is saved with the run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from .batches import Batches, Shard, Source


@dataclass(frozen=True)
class Sources:
    """Examples to train on, to select on, and to report on."""

    train: Source
    val: Source
    test: Source


class BatchedData(LightningDataModule, ABC):
    """Gives batches of three splits, the training split shuffled by the run's seed; see `Batches`.

    Trained by several processes, each gets its part of every batch, of all three splits.

    Args:
        batch_size: examples in a batch, over all processes; the last, smaller batch is kept.
        val_seed: of what is random in validation, the same in every epoch and run.
        test_seed: likewise for the test.
    """

    def __init__(self, batch_size: int = 64, val_seed: int = 0, test_seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data: batch_size must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self.val_seed = val_seed
        self.test_seed = test_seed
        self._sources: Sources | None = None
        self._train: Batches | None = None
        self._train_state: dict[str, Any] | None = None

    @abstractmethod
    def load(self) -> Sources:
        """Read the data set."""

    @property
    def sources(self) -> Sources:
        """The data set, read at the first use."""
        if self._sources is None:
            self._sources = self.load()
        return self._sources

    def setup(self, stage: str) -> None:
        _ = self.sources

    def train_dataloader(self) -> Batches:
        """Shuffled by the run's seed; see `Batches` for how a resumed run continues."""
        if self._train is not None and self.trainer is not None and self.trainer.current_epoch > 0:
            self._train_state = self._train.state_dict()  # asked for anew between epochs
        self._train = Batches(self.sources.train, self.batch_size, seed=torch.initial_seed(), shard=self._shard())
        limit = self.trainer.limit_train_batches if self.trainer is not None else None
        if limit is not None:
            whole = len(self._train)
            self._train.batches_per_epoch = int(whole * limit) if isinstance(limit, float) else min(limit, whole)
        if self._train_state is not None:
            self._train.load_state_dict(self._train_state)
        return self._train

    def state_dict(self) -> dict[str, Any]:
        """The state of the training batches.

        Lightning saves it too, but does not load it from a checkpoint of the end of an epoch: the next epoch would then
        repeat the order of the first.
        """
        return {} if self._train is None else {"train": self._train.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_state = state_dict.get("train")

    def val_dataloader(self) -> Batches:
        return Batches(self.sources.val, self.batch_size, seed=self.val_seed, fixed=True, shard=self._shard())

    def test_dataloader(self) -> Batches:
        return Batches(self.sources.test, self.batch_size, seed=self.test_seed, fixed=True, shard=self._shard())

    def _shard(self) -> Shard:
        return Shard() if self.trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)
