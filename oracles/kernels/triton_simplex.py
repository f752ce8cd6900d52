"""Projections of rows on the simplex in Triton: one program a row, which reads it once and writes it once if it fits on chip.

The twins of `simplex_rows`, for tensors on a GPU.
"""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels.rounding import EACH_ROUNDED

# Rows up to this length stay in registers; longer ones are read again for every step of the search, from the cache.
ON_CHIP = 2**15
CHUNK = 2**13


def project_rows(scores: Tensor, probs: Tensor) -> None:
    """probs = max(scores - tau, 0) row by row, [B, K] contiguous; a row with NaN, +inf or nothing but -inf becomes NaN.

    float16 and bfloat16 are computed in float32.
    """
    rows, count = scores.shape
    if rows:
        kernel = _project if count <= ON_CHIP else _project_long
        with torch.cuda.device_of(scores):
            kernel[(rows,)](scores, probs, count, _wide(scores), **_shape(count))


def pull_back_rows(probs: Tensor, gradient: Tensor, result: Tensor) -> None:
    """result = s * (gradient - <s, gradient> / |s|) for the support s = [probs > 0] of each row (paper eq. 10), [B, K]."""
    rows, count = probs.shape
    if rows:
        kernel = _pull_back if count <= ON_CHIP else _pull_back_long
        with torch.cuda.device_of(probs):
            kernel[(rows,)](probs, gradient, result, count, _wide(probs), **_shape(count))


def _wide(values: Tensor) -> tl.dtype:
    return tl.float64 if values.dtype == torch.float64 else tl.float32


def _shape(count: int) -> dict[str, int]:
    block = triton.next_power_of_2(count) if count <= ON_CHIP else CHUNK
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16), **EACH_ROUNDED}


# As `simplex_rows.project_rows` finds tau: relative to the largest score it is in [-1, 0), and the mean excess over 1 of the
# scores above the last guess is a better one from below, until they are no fewer (Michelot 1986). Rounding may bring one back.


@triton.jit
def _divided(total, number, WIDE: tl.constexpr):
    """Rounded to nearest: a division of float32 is not, and what is off in tau is so in every probability of a row."""
    return (total.to(tl.float64) / number).to(WIDE)


@triton.jit
def _project(scores, probs, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * count
    place = tl.arange(0, BLOCK)
    values = tl.load(scores + row + place, mask=place < count, other=-float("inf")).to(WIDE)
    peak = tl.max(values, 0)
    broken = (tl.sum((values != values).to(tl.int32), 0) > 0) | (tl.abs(peak) == float("inf"))
    values = tl.where(broken, 0.0, values - peak)
    above = values > -1.0
    size = tl.sum(above.to(tl.int32), 0)
    tau = _divided(tl.sum(tl.where(above, values, 0.0), 0) - 1.0, size, WIDE)
    going = True
    while going:
        above = values > tau
        left = tl.sum(above.to(tl.int32), 0)
        going = left < size
        size = left
        tau = _divided(tl.sum(tl.where(above, values, 0.0), 0) - 1.0, size, WIDE)
    result = tl.where(broken, float("nan"), tl.maximum(values - tau, 0.0))
    tl.store(probs + row + place, result.to(probs.dtype.element_ty), mask=place < count)


@triton.jit
def _excess(scores, peak, tau, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """How many scores of a row are above peak + tau, and (the sum of their differences from peak - 1) / their number."""
    size = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(scores + place, mask=place < count, other=-float("inf")).to(WIDE) - peak
        above = values > tau
        size += above.to(tl.int32)
        total += tl.where(above, values, 0.0)
    number = tl.sum(size, 0)
    return number, _divided(tl.sum(total, 0) - 1.0, number, WIDE)


@triton.jit
def _project_long(scores, probs, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * count
    largest = tl.full([BLOCK], -float("inf"), WIDE)
    missing = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(scores + row + place, mask=place < count, other=-float("inf")).to(WIDE)
        largest = tl.maximum(largest, values)
        missing += (values != values).to(tl.int32)
    peak = tl.max(largest, 0)
    broken = (tl.sum(missing, 0) > 0) | (tl.abs(peak) == float("inf"))
    size, tau = _excess(scores + row, peak, peak * 0.0 - 1.0, count, WIDE, BLOCK)
    going = not broken
    while going:
        left, tau = _excess(scores + row, peak, tau, count, WIDE, BLOCK)
        going = left < size
        size = left
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        values = tl.load(scores + row + place, mask=place < count, other=-float("inf")).to(WIDE)
        result = tl.where(broken, float("nan"), tl.maximum(values - peak - tau, 0.0))
        tl.store(probs + row + place, result.to(probs.dtype.element_ty), mask=place < count)


@triton.jit
def _pull_back(probs, gradient, result, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * count
    place = tl.arange(0, BLOCK)
    mass = tl.load(probs + row + place, mask=place < count, other=0.0)
    slope = tl.load(gradient + row + place, mask=place < count, other=0.0).to(WIDE)
    on = mass > 0
    size = tl.sum(on.to(tl.int32), 0)  # 0, and the mean NaN, only for a row of NaN
    mean = _divided(tl.sum(tl.where(on, slope, 0.0), 0), size, WIDE)
    pulled = tl.where(on | (size == 0), slope - mean, 0.0)
    tl.store(result + row + place, pulled.to(result.dtype.element_ty), mask=place < count)


@triton.jit
def _pull_back_long(probs, gradient, result, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * count
    sizes = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], WIDE)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        on = tl.load(probs + row + place, mask=place < count, other=0.0) > 0
        slope = tl.load(gradient + row + place, mask=place < count, other=0.0).to(WIDE)
        sizes += on.to(tl.int32)
        total += tl.where(on, slope, 0.0)
    size = tl.sum(sizes, 0)
    mean = _divided(tl.sum(total, 0), size, WIDE)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        on = tl.load(probs + row + place, mask=place < count, other=0.0) > 0
        slope = tl.load(gradient + row + place, mask=place < count, other=0.0).to(WIDE)
        pulled = tl.where(on | (size == 0), slope - mean, 0.0)
        tl.store(result + row + place, pulled.to(result.dtype.element_ty), mask=place < count)
