"""Residuals made safe for an oracle, in one pass: the compiled twin of `solvers.base.Ties.broken`."""

import numba
import numpy as np

from ...kernels.vectors import Array


@numba.njit(nogil=True, error_model="numpy", cache=True)
def broken(residual: Array, grid: Array, tie_break: Array, exact: Array, out: Array) -> None:
    """Into out [B, D]: the residual [B, D] on the grid [B, D], with the tie-break [D] on rows that are not `exact` [B]."""
    for row in range(residual.shape[0]):
        share = 0.0 if exact[row] else 1.0
        for place in range(residual.shape[1]):
            size = grid[row, place]
            out[row, place] = (np.rint(residual[row, place] / size) + share * tie_break[place]) * size
