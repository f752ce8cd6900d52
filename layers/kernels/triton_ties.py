"""Residuals made safe for an oracle in Triton, for tensors on a GPU: the twin of `broken` in `kernels.ties`."""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels.rounding import EACH_ROUNDED

BLOCK = 256


def broken(residual: Tensor, grid: Tensor, tie_break: Tensor, exact: Tensor, out: Tensor) -> None:
    """Into out [B, D]: the residual [B, D] on the grid [B, D], with the tie-break [D] on rows that are not `exact` [B].

    All contiguous float64, and bool.
    """
    rows, dim = residual.shape
    if rows and dim:
        with torch.cuda.device_of(residual):
            _broken[(rows, triton.cdiv(dim, BLOCK))](
                residual, grid, tie_break, exact.view(torch.int8), out, dim, BLOCK=BLOCK, num_warps=2, **EACH_ROUNDED
            )


@triton.jit
def on_grid(residual, steps, ties, exact):
    """Rounded to the grid: adding and taking away 1.5 * 2^52 rounds to the nearest integer, of two the even one."""
    rounded = (residual / steps + 6755399441055744.0) - 6755399441055744.0
    return (rounded + tl.where(exact, 0.0, ties)) * steps


@triton.jit
def _broken(residual, grid, tie_break, exact, out, dim, BLOCK: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < dim
    given = tl.load(residual + row * dim + place, mask=inside, other=0.0)
    steps = tl.load(grid + row * dim + place, mask=inside, other=1.0)
    shown = on_grid(given, steps, tl.load(tie_break + place, mask=inside, other=0.0), tl.load(exact + row) != 0)
    tl.store(out + row * dim + place, shown, mask=inside)
