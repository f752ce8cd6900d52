"""Numbers that kernels on a GPU read from memory: as arguments they would be float32."""

from functools import cache

import torch
from torch import Tensor


@cache
def numbers_on(device: torch.device, numbers: tuple[float, ...]) -> Tensor:
    """The numbers as a tensor, float64, always the same one: what has been recorded reads it as long as the process lives.

    The first time the host waits for the device, so that it is whole for all streams.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float64, device="cpu").to(device)
