"""Numbers that kernels on a GPU read from memory: as arguments they would be float32."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def numbers_on(device: torch.device, numbers: tuple[float, ...]) -> Tensor:
    """The numbers as a tensor, float64, always the same one.

    Made there: a copy from the host would wait, and where iterations are recorded nothing may.
    """
    with torch.inference_mode(False):
        return torch.stack([torch.full((), number, dtype=torch.float64, device=device) for number in numbers])
