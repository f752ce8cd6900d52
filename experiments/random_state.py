"""Random number generators that continue where the checkpoint left them."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Saves the Python, NumPy and torch generators with a checkpoint and restores them when training starts.

    Lightning seeds them at start but does not save them: a resumed run would draw its first numbers again.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002  # the global one
        return {
            "python": random.getstate(),
            # as a list: a checkpoint with NumPy arrays could not be loaded with weights_only=True
            "numpy": (algorithm, keys.tolist(), position, has_gauss, gauss),  # pyright: ignore[reportAttributeAccessIssue]
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is None:
            return
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        algorithm, keys, *rest = self._loaded["numpy"]
        np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(self._loaded["torch"].cpu())
        if self._loaded["cuda"] and len(self._loaded["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._loaded["cuda"]])
        self._loaded = None
