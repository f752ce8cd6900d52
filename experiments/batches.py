"""Batches of in-memory images in an order that a resumed run continues exactly."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Batches:
    """Iterates over images in batches; the last, smaller batch is kept.

    The order of an epoch is a function of (seed, epoch) alone, and the state is (seed, epoch, batches given
    out), so that saving it in mid-epoch and loading it continues with the very next batch. Lightning saves and
    loads it with its checkpoints because of the methods `state_dict` and `load_state_dict`.

    Args:
        images: [N, ...].
        batch_size: images in a batch.
        seed: shuffles each epoch; None keeps the order of the images.
        batches_per_epoch: where an epoch ends if the caller stops early, so that a state saved there begins the next
            epoch; None for all.
    """

    def __init__(
        self, images: Tensor, batch_size: int, *, seed: int | None = None, batches_per_epoch: int | None = None
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = len(self) if batches_per_epoch is None else batches_per_epoch
        self.epoch = -1
        self.position = 0
        self._loaded = False

    def __len__(self) -> int:
        return -(-self.images.shape[0] // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        # A generator: nothing below runs before the first batch is asked for, that is, after a state was loaded.
        if not self._loaded or self.position >= self.batches_per_epoch:
            self.epoch += 1
            self.position = 0
        self._loaded = False
        order = self._order()
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield self.images[order[start : start + self.batch_size]]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._loaded = True

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.images.shape[0])
        # A large odd stride keeps the streams of neighbouring seeds and epochs apart.
        generator = torch.Generator().manual_seed((self.seed + self.epoch * 0x9E3779B97F4A7C15) % 2**63)
        return torch.randperm(self.images.shape[0], generator=generator)
