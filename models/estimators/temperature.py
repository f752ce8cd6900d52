"""The temperature of relaxed samples, constant or annealed, as a module whose state is saved with the model."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ...oracles.checks import check_count
from .recomputation import recomputing


class Temperature(nn.Module, ABC):
    """A temperature tau > 0, read once for each batch."""

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the temperature of this batch, a scalar, and in training mode count the batch."""


def check_temperature(temperature: object, owner: str) -> Temperature:
    """A temperature, or a ValueError unless it is one."""
    if not isinstance(temperature, Temperature):
        raise ValueError(f"{owner} needs a Temperature, e.g. ConstantTemperature(0.5), not {temperature!r}")
    return temperature


class ConstantTemperature(Temperature):
    """The same temperature always.

    Args:
        value: tau, above 0.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        _check_positive("ConstantTemperature: value", value)
        self.register_buffer("temperature", torch.tensor(float(value)))
        self.temperature: Tensor

    def forward(self) -> Tensor:
        return self.temperature


class AnnealedTemperature(Temperature):
    """tau = max(minimum, exp(-rate step)), recomputed at every `every`-th step, from tau = 1 at step 0.

    Jang et al. 2017; the published code of Correia et al. 2020 (their text prints max(0.5, -rate step)). A step is a batch in
    training mode, counted once where `torch.utils.checkpoint` repeats its forward pass. Step and temperature are buffers: a
    model that is loaded goes on where it was saved, and is tested at the temperature it was trained to.

    Args:
        rate: above or equal to 0.
        every: steps between two changes.
        minimum: above 0 and at most 1.
    """

    def __init__(self, rate: float = 1e-5, every: int = 1000, minimum: float = 0.5) -> None:
        super().__init__()
        _check_positive("AnnealedTemperature: minimum", minimum)
        if minimum > 1:
            raise ValueError(f"AnnealedTemperature: minimum must be at most 1, where the temperature starts, not {minimum}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"AnnealedTemperature: rate must be at least 0 and finite, not {rate}")
        self.rate = rate
        self.every = check_count("AnnealedTemperature: every", every, 1)
        self.minimum = minimum
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("temperature", torch.ones(()))
        self.step: Tensor
        self.temperature: Tensor

    def forward(self) -> Tensor:
        if self.training and not recomputing():
            fresh = (-self.rate * self.step).exp().clamp(min=self.minimum).to(self.temperature)
            self.temperature.copy_(torch.where(self.step % self.every == 0, fresh, self.temperature))
            self.step += 1
        return self.temperature.clone()  # a copy: backward passes need it as it was


def _check_positive(name: str, value: float) -> None:
    try:
        sound = 0 < float(value) < math.inf
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{name} must be above 0 and finite, not {value!r}")
