"""Noise of relaxed and perturbed samples."""

import torch
from torch import Tensor


def gumbel_noise(like: Tensor) -> Tensor:
    """Independent Gumbel(0, 1) noise of the shape, dtype and device of `like`, from torch's global generator."""
    exponential = torch.empty_like(like, requires_grad=False).exponential_()
    return -exponential.clamp(min=torch.finfo(like.dtype).tiny).log()
