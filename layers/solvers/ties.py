"""Residuals that are safe to hand to an oracle: which structure wins a tie must not depend on rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...kernels import compiled, triton_or_compiled
from ...oracles import placed
from ...oracles.checks import cannot_branch
from ...oracles.placement import traced

# Residuals are rounded to multiples of 2^-40 (about 1e-12) of the row's scale before the oracle sees them: far above
# their rounding noise (about 1e-15), far below the accuracy that is promised for the mean (1e-8).
GRID_EXPONENT = -40
# Relative to a large score the noise is larger: keep 48 of float64's 53 bits.
GRID_BITS = 48
LEAST_EXPONENT = -1000  # and so the grid is never 0
# The tie-break, in units of the grid: 1e-9 at scale 1. Large against the grid, so that rounding never decides.
TIE_BREAK = 2.0**10


def row_scale(target: Tensor) -> Tensor:
    """The scale on which the mean of each row is to be accurate, [B]: that of the scores, at most 1 (that of structures)."""
    scale = extent(target).clamp(max=1)
    return torch.where(scale > 0, scale, 1)


def extent(values: Tensor) -> Tensor:
    """The largest magnitude of each row, [..., D] -> [...]."""
    if values.device.type != "cpu":
        return values.abs().amax(-1)
    return torch.maximum(values.amax(-1), -values.amin(-1))  # a copy of gigabytes takes far longer than to look twice


@dataclass(frozen=True)
class Ties:
    """How residuals are made safe to hand to an oracle: which structure wins a tie must not depend on rounding.

    Ties are the rule, not the exception: the residual is zero on every coordinate of the mean that is already right, and
    every atom of an optimal working set has the same score. What is left of a tie in floating point is noise, which
    differs between float32 and float64, CPU and GPU, one batch and another, t and t + 1e-6; a path of the algorithm that
    follows it jumps between supports. So a fixed small vector is added, which breaks ties always in the same way; its entries
    are negative, so that a tied bit is off, and no two sums of them agree. At the end, where it would hide what is left of
    the gap, the residual is taken exact, but rounded, so that coordinates that are zero up to noise are zero.
    """

    grid: Tensor  # [B, D] powers of two
    tie_break: Tensor  # [D]

    @staticmethod
    def of(target: Tensor) -> "Ties":
        """For points to project [B, D] float64."""
        scale = row_scale(target)
        kernel = compiled("..kernels.ties", __package__, "find_grid", target.device)
        if kernel is not None and not cannot_branch(target):
            grid = torch.empty_like(target, memory_format=torch.contiguous_format)
            least = 2.0**LEAST_EXPONENT
            kernel(target.contiguous().numpy(), scale.numpy(), 2.0**-GRID_BITS, 2.0**GRID_EXPONENT, least, grid.numpy())
            return Ties(grid, _kept_tie_break(target.shape[-1]))
        of_row = (torch.frexp(scale).exponent + GRID_EXPONENT).clamp(min=LEAST_EXPONENT)[:, None]
        of_entry = torch.where(target == 0, of_row, torch.frexp(target).exponent - GRID_BITS)
        grid = power_of_two(torch.maximum(of_entry, of_row))
        dim, device = target.shape[-1], target.device
        return Ties(grid, _tie_break(dim, device) if traced() else placed(_kept_tie_break(dim), device))

    def broken(self, residual: Tensor, exact: Tensor) -> Tensor:
        """The residual [B, D] on the grid, with the tie-break on rows that are not `exact` [B]."""
        kernel = None if cannot_branch(residual) else _broken_by(residual.device)
        if kernel is not None:
            found = torch.empty_like(residual, memory_format=torch.contiguous_format)
            given = (residual, self.grid, self.tie_break, exact, found)
            kernel(*(tensor.contiguous() for tensor in given))
            return found
        steps = (residual / self.grid).round() + torch.where(exact[:, None], 0, self.tie_break)
        return steps * self.grid

    def rows(self, kept: Tensor) -> "Ties":
        """Those of some of the rows."""
        return Ties(self.grid[kept], self.tie_break)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^n in float64, for integers from -1022 to 1023: exact by its bits.

    `torch.exp2` need not be exact, and on a GPU that is not the current one `torch.ldexp` launches its kernel on another.
    """
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _broken_by(device: torch.device) -> Callable[..., None] | None:
    """The kernel `broken`, of contiguous tensors; None: tensor operations."""
    return triton_or_compiled("..kernels.triton_ties", "..kernels.ties", __package__, "broken", device, _on_arrays)


def _on_arrays(kernel: Callable[..., None], *tensors: Tensor) -> None:
    kernel(*(tensor.numpy() for tensor in tensors))


def _tie_break(dim: int, device: torch.device) -> Tensor:
    """D fixed numbers in (-2, -1] without pattern, times TIE_BREAK: by a hash of the coordinate, the same on every device.

    A regular sequence will not do: multiples of an irrational number modulo 1 have equal sums over any two sets of
    coordinates of the same size and the same sum.
    """
    return -TIE_BREAK * (1 + hashed(torch.arange(1, dim + 1, device=device)))


def hashed(numbers: Tensor) -> Tensor:
    """Numbers in [0, 1) float64 without pattern for integers from 0 to 2^31, the same on every device."""
    found = (numbers * 0x9E3779B1) % 2**32
    for _ in range(2):
        found = ((found ^ (found >> 16)) * 0x45D9F3B) % 2**32
    return (found ^ (found >> 16)).double() / 2**32


@lru_cache
def _kept_tie_break(dim: int) -> Tensor:
    with torch.inference_mode(False):
        return _tie_break(dim, torch.device("cpu"))
