"""Derivatives by central differences."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Where the function is linear over the step, as everything here is, a longer step only divides rounding noise by more. The
# margin says how far that is; a quarter of it is safe, and beyond 1e-2 nothing is gained.
SAFE = 0.25
LONGEST = 1e-2


def step_for(reach: float) -> float:
    """The step of a central difference where the support does not change within `reach` (see `kkt.Margin.reach`)."""
    return min(LONGEST, SAFE * reach)


def jacobian(function: Callable[[Array], Array], point: Array, step: float) -> Array:
    """(f(t + h e_i) - f(t - h e_i)) / 2h: f maps [n, D] -> [n, E] row by row; point [D] -> [E, D]. One call of f."""
    moves = step * np.eye(len(point))
    values = function(np.concatenate([point + moves, point - moves]))
    return ((values[: len(point)] - values[len(point) :]) / (2 * step)).T
