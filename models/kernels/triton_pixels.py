"""`objective.pixel_cross_entropy` in Triton: logits exist a few pixels at a time, in registers.

One program takes a share of a pair's pixels, and costs and derivatives from the same logits, as `kernels.pixels` on the CPU.
"""

# The kernel's language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 16  # at a time: the least that matrix units take
# Programs that keep a large device busy.
PROGRAMS = 1024


def pixel_costs(features: Tensor, weight: Tensor, bias: Tensor, images: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(x | z) [n], and its derivatives by features [n, pixels, rank] and head [n, rank + 1, levels] where `wanted`.

    Args:
        features: [n, pixels, rank] float32, contiguous as all that follow.
        weight: [levels, rank] float32.
        bias: [levels] float32.
        images: [n, pixels] int64.
        wanted: else the derivatives are empty.
    """
    count, pixels, rank = features.shape
    levels = len(bias)
    shares = min(triton.cdiv(pixels, PIXELS), triton.cdiv(PROGRAMS, max(count, 1)))
    share = triton.cdiv(triton.cdiv(pixels, shares), PIXELS) * PIXELS
    costs = features.new_empty(count, shares)
    by_features = features.new_empty(count, pixels if wanted else 0, rank)
    by_head = features.new_empty(count, shares, rank + 1 if wanted else 0, levels)
    if count:
        with torch.cuda.device_of(features):
            _pixel_costs[(count, shares)](
                *(features, weight, bias, images, costs, by_features, by_head, pixels, share, rank, levels),
                WANTED=wanted,
                PIXELS=PIXELS,
                RANK=max(16, triton.next_power_of_2(rank + 1)),
                LEVELS=max(16, triton.next_power_of_2(levels)),
                num_warps=warps_for(levels),
                enable_fp_fusion=True,  # the products of matrices are most of the work
            )
    return costs.sum(-1), by_features, by_head.sum(1)


def warps_for(levels: int) -> int:
    """So many that registers hold the logits of a tile and what is summed up: from 512 levels on 4 warps would not."""
    return 4 if levels <= 128 else 8 if levels <= 256 else 16


@triton.jit
def _pixel_costs(
    features,
    weight,
    bias,
    images,
    costs,
    by_features,
    by_head,
    pixels,
    share,
    rank,
    levels,
    WANTED: tl.constexpr,
    PIXELS: tl.constexpr,
    RANK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    pair, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    r, level, place = tl.arange(0, RANK), tl.arange(0, LEVELS), tl.arange(0, PIXELS)
    # V' [RANK, LEVELS]; the bias is column `rank` of (V, v), which features (h, 1) meet.
    head = tl.load(weight + level[None] * rank + r[:, None], mask=(level[None] < levels) & (r[:, None] < rank), other=0.0)
    constant = tl.load(bias + level, mask=level < levels, other=-float("inf"))
    head = tl.where((r[:, None] == rank) & (level[None] < levels), constant[None], head)
    cost = tl.zeros([PIXELS], tl.float32)
    slopes = tl.zeros([RANK, LEVELS], tl.float32)
    for start in range(part * share, tl.minimum((part + 1) * share, pixels), PIXELS):
        pixel = start + place
        here = pair * pixels + pixel
        given = tl.load(features + here[:, None] * rank + r[None], mask=(pixel[:, None] < pixels) & (r[None] < rank), other=0.0)
        given = tl.where((r[None] == rank) & (pixel[:, None] < pixels), 1.0, given)  # [PIXELS, RANK]
        target = tl.load(images + here, mask=pixel < pixels, other=-1)
        logits = tl.dot(given, head, input_precision="ieee")
        logits = tl.where(level[None] < levels, logits, -float("inf"))
        peak = tl.max(logits, 1)
        masses = tl.exp(logits - peak[:, None])
        total = tl.sum(masses, 1)
        hit = level[None] == target[:, None]
        picked = tl.sum(tl.where(hit, logits, 0.0), 1)
        # A grey level that there is not has no probability: NaN, as nothing can be raised here.
        picked = tl.where((target >= 0) & (target < levels), picked, float("nan"))
        cost += tl.where(pixel < pixels, peak + tl.log(total) - picked, 0.0)
        if WANTED:
            # softmax - e_x, [PIXELS, LEVELS]
            excess = tl.where(pixel[:, None] < pixels, masses / total[:, None] - hit.to(tl.float32), 0.0)
            slopes = tl.dot(tl.trans(given), excess, slopes, input_precision="ieee")
            by_pixel = tl.dot(excess, tl.trans(head), input_precision="ieee")
            tl.store(by_features + here[:, None] * rank + r[None], by_pixel, mask=(pixel[:, None] < pixels) & (r[None] < rank))
    tl.store(costs + pair * parts + part, tl.sum(cost, 0))
    if WANTED:
        into = by_head + ((pair * parts + part) * (rank + 1) + r[:, None]) * levels + level[None]
        tl.store(into, slopes, mask=(r[:, None] <= rank) & (level[None] < levels))
