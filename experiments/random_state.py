"""Random number generators that continue where the checkpoint left them."""

import random
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed


class RandomState(Callback):
    """Saves the Python, NumPy and torch generators of every process with a checkpoint, and restores them when training starts.

    Lightning seeds them at start but does not save them: a resumed run would draw its first numbers again. It also seeds
    all processes of a distributed run alike: here all but the first are given seeds of their own, so that their parts of
    a batch do not share their samples.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        # In every process, not only in the one that writes: Lightning asks all of them.
        own = _state()
        if not (distributed.is_available() and distributed.is_initialized()):
            return {"processes": [own]}
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, own)
        return {"processes": everyone}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["processes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None and len(self._loaded) == trainer.world_size:
            _restore(self._loaded[trainer.global_rank])
        elif self._loaded is not None:
            warnings.warn(
                f"the checkpoint was written by {len(self._loaded)} processes and is resumed by {trainer.world_size}: the "
                "order of the data continues, but what is sampled will differ from the uninterrupted run",
                stacklevel=2,
            )
            _seed_apart(trainer.global_rank)
        else:
            _seed_apart(trainer.global_rank)
        self._loaded = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _seed_apart(trainer.global_rank)


def _state() -> dict[str, Any]:
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002  # the global one
    return {
        "python": random.getstate(),
        # as a list: a checkpoint with NumPy arrays could not be loaded with weights_only=True
        "numpy": (algorithm, keys.tolist(), position, has_gauss, gauss),  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in state["cuda"]])


def _seed_apart(rank: int) -> None:
    if rank > 0:
        torch.manual_seed((torch.initial_seed() + rank * 0x9E3779B97F4A7C15) % 2**63)
