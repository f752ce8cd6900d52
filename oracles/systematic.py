"""Systematic sampling: a grid of unit steps over intervals on a line, in exact arithmetic (Madow 1949)."""

from torch import Tensor

# Positions on the line are integers, in units of 2^-45.
BITS = 45
ONE = 1 << BITS


def hits(starts: Tensor, ends: Tensor, first: Tensor) -> Tensor:
    """How many of the points first, first + 1, first + 2, ... lie in [start, end): 0 or 1 if it is no longer than 1; int64."""
    return _ceil(ends - first) - _ceil(starts - first)


def fraction(position: Tensor) -> Tensor:
    """How far a position is beyond the last integer."""
    return position & (ONE - 1)


def nearest_integer(position: Tensor) -> Tensor:
    """The position of it."""
    return ((position + ONE // 2) >> BITS) << BITS


def _ceil(position: Tensor) -> Tensor:
    return -((-position) >> BITS)
