"""Residuals made safe for an oracle, in one pass: the compiled twins of `of` and `broken` of `solvers.ties.Ties`."""

import numba
import numpy as np

from ...kernels.vectors import Array, power_below


@numba.njit(nogil=True, error_model="numpy", cache=True)
def find_grid(target: Array, scale: Array, share: float, share_of_scale: float, least: float, grid: Array) -> None:
    """Into grid [B, D]: the power of two above each |target| [B, D], times its share, no less than that of the scale [B]."""
    for row in range(target.shape[0]):
        floor = max(power_below(scale[row]) * (2.0 * share_of_scale), least)  # pyright: ignore[reportCallIssue]
        for place in range(target.shape[1]):
            power = power_below(abs(target[row, place]))  # pyright: ignore[reportCallIssue]
            grid[row, place] = max(power * (2.0 * share), floor)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def broken(residual: Array, grid: Array, tie_break: Array, exact: Array, out: Array) -> None:
    """Into out [B, D]: the residual [B, D] on the grid [B, D], with the tie-break [D] on rows that are not `exact` [B]."""
    for row in range(residual.shape[0]):
        share = 0.0 if exact[row] else 1.0
        for place in range(residual.shape[1]):
            size = grid[row, place]
            out[row, place] = (np.rint(residual[row, place] / size) + share * tie_break[place]) * size
