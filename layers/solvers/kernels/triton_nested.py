"""The sorted decomposition on the cube in Triton, for tensors on a GPU: the twin of `nested_rows`.

A program has a row. It does not sort: how many coordinates come before one is counted, and what lies between it and the one
before is a minimum. So a coordinate knows its slot, which is the structure that first has it on, by itself:

    slot_i = how many structures with mass end at or before i,     structure s = {i : slot_i <= s}.
"""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....kernels.numbers import numbers_on
from ....oracles import BernoulliCube
from ...stats import SolverStats
from ..limits import CLOSED, SORTED_PRUNE
from ..supports import PackedSupport
from .triton_packing import MOST_DIMENSIONS, NO_ANSWER, chunk_of_row, room_for, shape_of_row


@dataclass(frozen=True)
class NestedRows:
    """How the weights of nested structures depend on the scores; a `Jacobian`.

    The weight of structure s is c_s - c_(s+1) for the mean c_s of the scores of the coordinates in slot s; c_0 = 1, and 0 at
    the end: see `nested.nested_distribution`.

    Attributes:
        slot: [B, D] int32.
        size: [B, D] float64, how many coordinates share a coordinate's slot; 0 for those that all structures have on, or none.
        first: [B + 1] int64, as in `PackedSupport`.
        row: [N] int64, likewise.
    """

    slot: Tensor
    size: Tensor
    first: Tensor
    row: Tensor

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = gradient.new_empty(self.size.shape)
        batch, dim = result.shape
        with torch.cuda.device_of(result):
            _pull[(batch,)](self.slot, self.size, self.first, gradient.contiguous(), result, dim, **shape_of_row(dim))
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = change.new_empty(len(self.row))
        dim = change.shape[1]
        if len(result):
            with torch.cuda.device_of(result):
                _push[(len(result),)](
                    self.slot, self.size, self.first, self.row, change.contiguous(), result, dim, **shape_of_row(dim)
                )
        return result


def solve_packed(scores: Tensor, polytope: BernoulliCube, dtype: torch.dtype) -> PackedSupport[SolverStats] | None:
    """`cuts.in_one_pass` on the cube; None for too many dimensions, an empty batch, or where there is NaN or +inf.

    A host synchronisation: how many structures there are.
    """
    scores = scores.contiguous()
    batch, dim = scores.shape
    if batch == 0 or dim > MOST_DIMENSIONS:
        return None
    slot, level = scores.new_empty(batch, dim, dtype=torch.int32), scores.new_empty(batch, dim + 2)
    size, is_cut = torch.empty_like(scores), scores.new_empty(batch, dim, dtype=torch.int8)
    gap, margin = scores.new_empty(2, batch)
    number, converged = scores.new_empty(batch, dtype=torch.int64), scores.new_empty(batch, dtype=torch.bool)
    constants = numbers_on(scores.device, (SORTED_PRUNE, CLOSED))
    shape = shape_of_row(dim)
    with torch.cuda.device_of(scores):
        _find[(batch,)](
            *(scores, constants, is_cut, slot, size, level, number, gap, margin, converged.view(torch.int8)),
            dim,
            NO_ANSWER=NO_ANSWER,
            CHUNK=chunk_of_row(dim),
            **shape,
        )
    found = room_for(number, converged, dim, dtype)
    if found is None:
        return None
    room, all_converged = found
    with torch.cuda.device_of(scores):
        _write[(batch,)](slot, level, *room, dim, **shape)
    stats = SolverStats(torch.zeros_like(number), gap, converged, margin)
    return PackedSupport(*room, stats, NestedRows(slot, size, room.first, room.row), all_converged)


@triton.jit
def _means(scores, place, dim):
    """Scores and means of some coordinates, and which are fractional."""
    value = tl.load(scores + place, mask=place < dim, other=-float("inf"))
    mean = tl.minimum(tl.maximum(value, 0.0), 1.0)
    return value, mean, (mean > 0.0) & (mean < 1.0)


@triton.jit
def _find(
    scores,
    constants,
    is_cut,
    slot_of,
    size_of,
    level,
    number,
    gap_of,
    margin_of,
    converged_of,
    dim,
    NO_ANSWER: tl.constexpr,
    CHUNK: tl.constexpr,
    DIMENSIONS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * dim
    is_cut += row * dim
    slot_of += row * dim
    size_of += row * dim
    level += row * (dim + 2)
    prune, closed = tl.load(constants), tl.load(constants + 1)
    d = tl.arange(0, DIMENSIONS)
    inside = d < dim
    value, mean, between = _means(scores, d, dim)
    spoilt = tl.sum((inside & ((value != value) | (value == float("inf")))).to(tl.int32), 0) > 0

    # What lies between a mean and the one before it, 1 before the first: of equal ones the first comes first.
    above = tl.full([DIMENSIONS], 1.0, tl.float64)
    for start in range(0, dim, CHUNK):
        place = start + tl.arange(0, CHUNK)
        _, other, counts = _means(scores, place, dim)
        other, place = other[:, None], place[:, None]
        before = counts[:, None] & ((other > mean[None, :]) | ((other == mean[None, :]) & (place < d[None, :])))
        above = tl.minimum(above, tl.min(tl.where(before, other, 1.0), 0))
    mass = above - mean
    cut = between & (mass > prune)
    tl.store(is_cut + d, cut.to(tl.int8), mask=inside)
    rest = tl.min(tl.where(between, mean, 1.0), 0)  # of the last structure, which has all of them on
    last = rest > prune
    count = tl.sum(cut.to(tl.int32), 0) + last.to(tl.int32)
    total = tl.sum(tl.where(cut, mass, 0.0), 0) + tl.where(last, rest, 0.0)
    margin = tl.minimum(tl.min(tl.where(cut, mass, float("inf")), 0), tl.where(last, rest, float("inf"))) / total
    tl.debug_barrier()

    cuts = tl.zeros([DIMENSIONS], tl.int32)
    for start in range(0, dim, CHUNK):
        place = start + tl.arange(0, CHUNK)
        _, other, _ = _means(scores, place, dim)
        counts = tl.load(is_cut + place, mask=place < dim, other=0) != 0
        other, place = other[:, None], place[:, None]
        upto = counts[:, None] & ((other > mean[None, :]) | ((other == mean[None, :]) & (place <= d[None, :])))
        cuts += tl.sum(upto.to(tl.int32), 0)
    slot = tl.where(between, cuts, tl.where(mean > 0.0, 0, dim + 1))
    tl.store(slot_of + d, slot, mask=inside)
    shared = between & (slot > 0) & (slot < count)
    tl.debug_barrier()

    size, common = tl.zeros([DIMENSIONS], tl.int32), tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, dim, CHUNK):
        place = start + tl.arange(0, CHUNK)
        other, _, counts = _means(scores, place, dim)
        theirs = tl.load(slot_of + place, mask=place < dim, other=-1)
        same = counts[:, None] & (theirs[:, None] == slot[None, :]) & shared[None, :]
        size += tl.sum(same.to(tl.int32), 0)
        common += tl.sum(tl.where(same, other[:, None], 0.0), 0)
    tl.store(size_of + d, size.to(tl.float64), mask=inside)
    tl.store(level + slot, common / size, mask=shared & (not spoilt))
    tl.store(level, 1.0)
    tl.store(level + count, 0.0)

    # The gap is 0 where a mean is its score, and elsewhere up to what cancels in it: see `nested_rows`.
    outside = inside & ~between & (value > -float("inf"))
    residual = tl.where(outside, value - mean, 0.0)
    gap = tl.sum(tl.maximum(residual, 0.0) - residual * mean, 0)
    terms = tl.sum(tl.abs(residual) * (tl.where(residual > 0.0, 1.0, 0.0) + mean), 0)
    converged = gap <= closed + 64 * 2.220446049250313e-16 * terms
    tl.store(number + row, tl.where(spoilt, NO_ANSWER, count.to(tl.int64)))
    tl.store(gap_of + row, tl.maximum(gap, 0.0))
    tl.store(margin_of + row, margin)
    tl.store(converged_of + row, converged.to(tl.int8))


@triton.jit
def _write(slot_of, level, atoms, probs, row_of, first, dim, DIMENSIONS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    level += row * (dim + 2)
    d = tl.arange(0, DIMENSIONS)
    slot = tl.load(slot_of + row * dim + d, mask=d < dim, other=0)
    begin, end = tl.load(first + row), tl.load(first + row + 1)
    structure = 0
    while begin + structure < end:
        n = begin + structure
        tl.store(atoms + n * dim + d, tl.where(slot <= structure, 1.0, 0.0).to(atoms.dtype.element_ty), mask=d < dim)
        tl.store(probs + n, tl.load(level + structure) - tl.load(level + structure + 1))
        tl.store(row_of + n, row)
        structure += 1


@triton.jit
def _pull(slot_of, size_of, first, gradient, result, dim, DIMENSIONS: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIMENSIONS)
    inside = d < dim
    slot = tl.load(slot_of + row * dim + d, mask=inside, other=0)
    size = tl.load(size_of + row * dim + d, mask=inside, other=0.0)
    shared = size > 0.0
    gradient += tl.load(first + row)
    change = tl.load(gradient + slot, mask=shared, other=0.0) - tl.load(gradient + slot - 1, mask=shared, other=0.0)
    tl.store(result + row * dim + d, tl.where(shared, change / size, 0.0), mask=inside)


@triton.jit
def _push(slot_of, size_of, first, row_of, change, result, dim, DIMENSIONS: tl.constexpr):
    n, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIMENSIONS)
    inside = d < dim
    row = tl.load(row_of + n)
    structure = n - tl.load(first + row)
    slot = tl.load(slot_of + row * dim + d, mask=inside, other=0)
    size = tl.load(size_of + row * dim + d, mask=inside, other=0.0)
    share = tl.where(size > 0.0, tl.load(change + row * dim + d, mask=inside, other=0.0) / size, 0.0)
    here, next_one = tl.where(slot == structure, share, 0.0), tl.where(slot == structure + 1, share, 0.0)
    tl.store(result + n, tl.sum(here, 0) - tl.sum(next_one, 0))
