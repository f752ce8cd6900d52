"""Batches of in-memory data in an order that a resumed run continues exactly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

# Large odd numbers keep the random streams of neighbouring seeds, epochs and batches apart.
_EPOCH_STRIDE = 0x9E3779B97F4A7C15
_BATCH_STRIDE = 0xD1B54A32D192ED03


@dataclass(frozen=True)
class Source:
    """Where the batches of a split come from.

    Attributes:
        load: load(index [b] int64, generator) -> a batch: a tensor, or a (named) tuple of tensors, of first dimension
            b. All that is random about the batch comes from the generator, so that it can be made again.
        size: how many examples an epoch has; indices are in [0, size).
    """

    load: Callable[[Tensor, torch.Generator], Any]
    size: int

    @classmethod
    def of(cls, images: Tensor) -> "Source":
        """The rows of a tensor [N, ...]."""
        return cls(lambda index, generator: images[index], images.shape[0])


@dataclass(frozen=True)
class Shard:
    """The part of each batch that one of several processes gets: the examples rank, rank + count, rank + 2 count, ..."""

    rank: int = 0
    count: int = 1


class Batches:
    """Iterates over a source in batches; the last, smaller batch is kept.

    The order of an epoch is a function of (seed, epoch), the randomness inside a batch one of (seed, epoch, batch), and the
    state is (seed, epoch, batches given out), so that saving it in mid-epoch and loading it continues with the very
    next batch. Lightning saves and loads it with its checkpoints because of the methods `state_dict` and `load_state_dict`.

    Args:
        source: what to give out.
        batch_size: examples in a batch, over all shards.
        seed: of the order and of the batches.
        fixed: keep the source's order and make every epoch the same, for validation and test.
        batches_per_epoch: where an epoch ends if the caller stops early, so that a state saved there begins the next
            epoch; None for all.
        shard: this process's part of each batch. A last batch with fewer examples than processes is left out.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        fixed: bool = False,
        batches_per_epoch: int | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.fixed = fixed
        self.shard = shard or Shard()
        self.batches_per_epoch = len(self) if batches_per_epoch is None else batches_per_epoch
        self.epoch = -1
        self.position = 0
        self._loaded = False

    def __len__(self) -> int:
        whole, rest = divmod(self.source.size, self.batch_size)
        return whole + (rest >= self.shard.count)

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing below runs before the first batch is asked for, that is, after a state was loaded.
        if not self._loaded or self.position >= self.batches_per_epoch:
            self.epoch = 0 if self.fixed else self.epoch + 1
            self.position = 0
        self._loaded = False
        order = torch.arange(self.source.size) if self.fixed else self._random_order()
        while self.position < len(self):
            start = self.position * self.batch_size
            generator = self._generator(self.position + 1)
            self.position += 1
            batch = self.source.load(order[start : start + self.batch_size], generator)
            yield batch if self.shard.count == 1 else self._own_part(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._loaded = True

    def _random_order(self) -> Tensor:
        return torch.randperm(self.source.size, generator=self._generator(0))

    def _generator(self, batch: int) -> torch.Generator:
        seed = self.seed + self.epoch * _EPOCH_STRIDE + batch * _BATCH_STRIDE
        return torch.Generator().manual_seed(seed % 2**63)

    def _own_part(self, batch: Any) -> Any:
        return apply_to_collection(batch, Tensor, lambda tensor: tensor[self.shard.rank :: self.shard.count])
