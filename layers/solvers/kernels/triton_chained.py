"""The sorted decomposition on the budget polytope in Triton, for tensors on a GPU: the twin of `chained_rows`.

A program has a row and counts instead of sorting, as in `triton_nested`. Along the line each coordinate is an interval; the
structure changes at cuts, where one interval ends and the next begins. So a coordinate is on or not in the first structure, and
changes at the cut where it ends and at the cut where the one before it ends.
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
from ....oracles import Budget
from ...stats import SolverStats
from ..limits import CLOSED, MULTIPLIER_STEPS, SORTED_PRUNE
from ..supports import PackedSupport
from .triton_packing import MOST_DIMENSIONS, NO_ANSWER, chunk_of_row, room_for, shape_of_row

# A cut that never comes.
NEVER = 2**30


@dataclass(frozen=True)
class ChainedRows:
    """How the weights of a systematic sample depend on the scores; a `Jacobian`.

    A weight is what lies between two cuts, a cut the end of an interval: see `chained.chained_distribution`.

    Attributes:
        place: [B, D] int32, where a coordinate is along the line; -1 for those that do not move.
        slot: [B, D] int32, which cut lies at its end, from 1; 0 for none.
        binding: [B] int8, whether the sum is held fixed, so that only differences of scores count.
        first: [B + 1] int64, as in `PackedSupport`.
        count: N.
    """

    place: Tensor
    slot: Tensor
    binding: Tensor
    first: Tensor
    count: int

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = gradient.new_empty(self.place.shape)
        self._launch(_pull, gradient, result)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = change.new_empty(self.count)
        self._launch(_push, change, change.new_empty(len(change), change.shape[1] + 2), result)
        return result

    def _launch(self, kernel: triton.JITFunction, given: Tensor, *rest: Tensor) -> None:
        batch, dim = self.place.shape
        with torch.cuda.device_of(given):
            kernel[(batch,)](
                *(self.place, self.slot, self.binding, self.first, given.contiguous(), *rest, dim),
                CHUNK=chunk_of_row(dim),
                **shape_of_row(dim),
            )


def solve_packed(scores: Tensor, polytope: Budget, dtype: torch.dtype) -> PackedSupport[SolverStats] | None:
    """`cuts.in_one_pass` on the budget polytope; None for too many dimensions, an empty batch, or a row of another form.

    A host synchronisation: how many structures there are.
    """
    scores = scores.contiguous()
    batch, dim = scores.shape
    if batch == 0 or dim > MOST_DIMENSIONS:
        return None
    place, slot, enters = scores.new_empty(3, batch, dim, dtype=torch.int32)
    is_first, binding = scores.new_empty(batch, dim, dtype=torch.int8), scores.new_empty(batch, dtype=torch.int8)
    work, cuts = scores.new_empty(2, batch, dim), scores.new_empty(batch, dim + 2)
    gap, margin = scores.new_empty(2, batch)
    number, converged = scores.new_empty(batch, dtype=torch.int64), scores.new_empty(batch, dtype=torch.bool)
    constants = numbers_on(scores.device, (SORTED_PRUNE, CLOSED))
    shape = shape_of_row(dim)
    with torch.cuda.device_of(scores):
        _find[(batch,)](
            *(scores, constants, work[0], work[1], place, slot, enters, is_first, binding, cuts),
            *(number, gap, margin, converged.view(torch.int8), dim, polytope.budget, int(polytope.exactly)),
            NO_ANSWER=NO_ANSWER,
            NEVER=NEVER,
            MOST_STEPS=MULTIPLIER_STEPS,
            CHUNK=chunk_of_row(dim),
            **shape,
        )
    found = room_for(number, converged, dim, dtype)
    if found is None:
        return None
    room, all_converged = found
    with torch.cuda.device_of(scores):
        _write[(batch,)](slot, enters, is_first, cuts, *room, dim, **shape)
    stats = SolverStats(torch.zeros_like(number), gap, converged, margin)
    jacobian = ChainedRows(place, slot, binding, room.first, len(room.row))
    return PackedSupport(*room, stats, jacobian, all_converged)


@triton.jit
def _nth_largest(values_at, values, n, dim, CHUNK: tl.constexpr, DIMENSIONS: tl.constexpr):
    """The n-th largest of the values [D], which are also in memory; n from 1."""
    greater, as_great = tl.zeros([DIMENSIONS], tl.int32), tl.zeros([DIMENSIONS], tl.int32)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(values_at + other, mask=other < dim, other=-float("inf"))[:, None]
        counts = (other < dim)[:, None]
        greater += tl.sum((counts & (theirs > values[None, :])).to(tl.int32), 0)
        as_great += tl.sum((counts & (theirs >= values[None, :])).to(tl.int32), 0)
    inside = tl.arange(0, DIMENSIONS) < dim
    return tl.max(tl.where(inside & (greater < n) & (n <= as_great), values, -float("inf")), 0)


@triton.jit
def _multiplier(relative, inside, budget, MOST_STEPS: tl.constexpr):
    """The lambda in [-1, 0] with sum clip(r - lambda, 0, 1) = budget, as `chained_rows._multiplier` finds it, or NaN."""
    nothing = tl.sum(relative * 0.0, 0)
    low, high, shift = nothing - 1.5, nothing + 0.5, nothing - 0.5
    ones_before, between_before, steps, going = -1, -1, 0, True
    while going:
        above = inside & (relative - shift > 0.0)
        one = inside & (relative - shift >= 1.0)
        ones = tl.sum(one.to(tl.int32), 0)
        between = tl.sum(above.to(tl.int32), 0) - ones
        total = tl.sum(tl.where(above & ~one, relative, 0.0), 0)
        excess = ones + total - shift * between - budget
        done = (excess == 0.0) | ((ones == ones_before) & (between == between_before))
        low, high = tl.where(excess > 0.0, shift, low), tl.where(excess < 0.0, shift, high)
        step = (total + ones - budget) / tl.where(between > 0, between, 1)
        newton = (between > 0) & (low < step) & (step < high)  # at either end the excess is not 0
        ones_before, between_before = tl.where(newton, ones, -1), tl.where(newton, between, -1)
        shift = tl.where(done, shift, tl.where(newton, step, low + (high - low) / 2))
        steps += 1
        going = (not done) & (steps < MOST_STEPS)
        shift = tl.where(done | going, shift, float("nan"))
    return shift


@triton.jit(do_not_specialize=["budget", "exactly"])  # else each is compiled for anew, which takes seconds
def _find(
    scores,
    constants,
    level_of,
    residual_of,
    place_of,
    slot_of,
    enters_of,
    first_of,
    binding_of,
    cuts,
    number,
    gap_of,
    margin_of,
    converged_of,
    dim,
    budget,
    exactly,
    NO_ANSWER: tl.constexpr,
    NEVER: tl.constexpr,
    MOST_STEPS: tl.constexpr,
    CHUNK: tl.constexpr,
    DIMENSIONS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * dim
    level_of += row * dim
    residual_of += row * dim
    slot_of += row * dim
    place_of += row * dim
    cuts += row * (dim + 2)
    prune, closed = tl.load(constants), tl.load(constants + 1)
    d = tl.arange(0, DIMENSIONS)
    inside = d < dim
    value = tl.load(scores + d, mask=inside, other=-float("inf"))
    spoilt = tl.sum((inside & ((value != value) | (value == float("inf")))).to(tl.int32), 0) > 0

    mean = tl.minimum(tl.maximum(value, 0.0), 1.0)
    binding = (exactly != 0) | (tl.sum(mean, 0) > budget)
    if budget == 0:
        mean = mean * 0.0
    elif binding & (not spoilt):
        origin = _nth_largest(scores, value, budget, dim, CHUNK, DIMENSIONS)
        spoilt = origin == -float("inf")  # too few are allowed
        if not spoilt:
            relative = tl.where(inside, tl.minimum(tl.maximum(value - origin, -2.0), 2.0), -2.0)
            shift = _multiplier(relative, inside, budget, MOST_STEPS)
            spoilt = shift != shift
            mean = tl.where(inside, tl.minimum(tl.maximum(relative - shift, 0.0), 1.0), 0.0)
    between = inside & (mean > 0.0) & (mean < 1.0)
    residual = value - mean
    tl.store(residual_of + d, residual, mask=inside)
    tl.store(level_of + d, tl.where(between, mean, 0.0), mask=inside)
    tl.debug_barrier()

    # max <r, v> over the structures v for the residual r, less <r, mean>; elsewhere than in the mean a score may be -inf.
    has_mass = inside & (mean > 0.0)
    gap = -tl.sum(tl.where(has_mass, residual * mean, 0.0), 0)
    terms = tl.sum(tl.where(has_mass, tl.abs(residual) * mean, 0.0), 0)
    if budget > 0:
        last = _nth_largest(residual_of, residual, budget, dim, CHUNK, DIMENSIONS)
        better = inside & (residual > last)
        left = budget - tl.sum(better.to(tl.int32), 0)
        taken = better & ((exactly != 0) | (residual > 0.0))
        gap += tl.sum(tl.where(taken, residual, 0.0), 0)
        terms += tl.sum(tl.where(taken, tl.abs(residual), 0.0), 0)
        if (exactly != 0) | (last > 0.0):
            gap += left * last
            terms += left * tl.abs(last)

    # Along the line by falling mean, of equal ones the first first.
    place, end = tl.zeros([DIMENSIONS], tl.int32), tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        level = tl.load(level_of + other, mask=other < dim, other=0.0)[:, None]
        other = other[:, None]
        before = (level > 0.0) & ((level > mean[None, :]) | ((level == mean[None, :]) & (other < d[None, :])))
        place += tl.sum(before.to(tl.int32), 0)
        end += tl.sum(tl.where(before, level, 0.0), 0)
    begin, end = end, end + mean
    whole = tl.floor(end + 0.5)
    moving = tl.sum(between.to(tl.int32), 0)
    # Where the sum is held fixed the last of them ends at an integer, up to rounding: no cut, the line begins anew.
    is_closed = between & (place == moving - 1) & binding & (tl.abs(end - whole) < closed)
    end = tl.where(is_closed, whole, end)
    is_cut = between & ~is_closed
    position = end - tl.floor(end)
    is_first = tl.where(between, tl.ceil(begin) < end, mean >= 1.0)
    place = tl.where(between, place, -1)
    tl.store(place_of + d, place, mask=inside)
    tl.debug_barrier()
    tl.store(level_of + d, tl.where(is_cut, position, -1.0), mask=inside)
    tl.debug_barrier()

    slot, below = tl.zeros([DIMENSIONS], tl.int32), tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(level_of + other, mask=other < dim, other=-1.0)[:, None]
        other = other[:, None]
        before = (theirs >= 0.0) & ((theirs < position[None, :]) | ((theirs == position[None, :]) & (other < d[None, :])))
        slot += tl.sum(before.to(tl.int32), 0)
        below = tl.maximum(below, tl.max(tl.where(before, theirs, 0.0), 0))
    number_of_cuts = tl.sum(is_cut.to(tl.int32), 0)
    rest = 1.0 - tl.max(tl.where(is_cut, position, 0.0), 0)
    margin = tl.minimum(tl.min(tl.where(is_cut, position - below, 1.0), 0), rest)
    # Of cuts that coincide the structures between have no mass: they are not to be used, so that this form does not hold.
    spoilt = spoilt | (not (margin > prune))
    slot = tl.where(is_cut, slot + 1, 0)
    tl.store(slot_of + d, slot, mask=inside)
    tl.store(cuts + slot, position, mask=is_cut & (not spoilt))
    tl.store(cuts, 0.0)
    tl.store(cuts + number_of_cuts + 1, 1.0)
    tl.debug_barrier()

    enters = tl.zeros([DIMENSIONS], tl.int32)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(place_of + other, mask=other < dim, other=-1)[:, None]
        previous = (theirs >= 0) & (theirs == place[None, :] - 1)
        enters += tl.sum(tl.where(previous, tl.load(slot_of + other, mask=other < dim, other=0)[:, None], 0), 0)
    tl.store(enters_of + row * dim + d, tl.where(between & (place > 0), enters, NEVER), mask=inside)
    tl.store(first_of + row * dim + d, is_first.to(tl.int8), mask=inside)
    tl.store(binding_of + row, binding.to(tl.int8))
    tl.store(number + row, tl.where(spoilt, NO_ANSWER, (number_of_cuts + 1).to(tl.int64)))
    tl.store(gap_of + row, tl.maximum(gap, 0.0))
    tl.store(margin_of + row, margin)
    tl.store(converged_of + row, (gap <= closed + 64 * 2.220446049250313e-16 * terms).to(tl.int8))


@triton.jit
def _write(slot_of, enters_of, first_of, cuts, atoms, probs, row_of, first, dim, DIMENSIONS: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIMENSIONS)
    inside = d < dim
    cuts += row * (dim + 2)
    slot = tl.load(slot_of + row * dim + d, mask=inside, other=0)
    enters = tl.load(enters_of + row * dim + d, mask=inside, other=0)
    on = tl.load(first_of + row * dim + d, mask=inside, other=0)
    begin, end = tl.load(first + row), tl.load(first + row + 1)
    structure = 0
    while begin + structure < end:
        n = begin + structure
        changes = ((slot > 0) & (slot <= structure)).to(tl.int8) + (enters <= structure).to(tl.int8)
        is_on = (on + changes) % 2 == 1
        tl.store(atoms + n * dim + d, tl.where(is_on, 1.0, 0.0).to(atoms.dtype.element_ty), mask=inside)
        tl.store(probs + n, tl.load(cuts + structure + 1) - tl.load(cuts + structure))
        tl.store(row_of + n, row)
        structure += 1


@triton.jit
def _pull(place_of, slot_of, binding_of, first, gradient, result, dim, CHUNK: tl.constexpr, DIMENSIONS: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIMENSIONS)
    inside = d < dim
    place = tl.load(place_of + row * dim + d, mask=inside, other=-1)
    gradient += tl.load(first + row)
    total = tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(place_of + row * dim + other, mask=other < dim, other=-1)[:, None]
        slot = tl.load(slot_of + row * dim + other, mask=other < dim, other=0)
        cut = slot > 0
        change = tl.load(gradient + slot - 1, mask=cut, other=0.0) - tl.load(gradient + slot, mask=cut, other=0.0)
        moved = (theirs >= place[None, :]) & (place >= 0)[None, :]  # whose ends come later move with this one
        total += tl.sum(tl.where(moved, change[:, None], 0.0), 0)
    moving = tl.sum((place >= 0).to(tl.int32), 0)
    common = tl.where(tl.load(binding_of + row) != 0, tl.sum(total, 0) / tl.maximum(moving, 1), 0.0)
    tl.store(result + row * dim + d, tl.where(place >= 0, total - common, 0.0), mask=inside)


@triton.jit
def _push(place_of, slot_of, binding_of, first, change, work, result, dim, CHUNK: tl.constexpr, DIMENSIONS: tl.constexpr):
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, DIMENSIONS)
    inside = d < dim
    place = tl.load(place_of + row * dim + d, mask=inside, other=-1)
    slot = tl.load(slot_of + row * dim + d, mask=inside, other=0)
    own = tl.where(place >= 0, tl.load(change + row * dim + d, mask=inside, other=0.0), 0.0)
    moving = tl.sum((place >= 0).to(tl.int32), 0)
    common = tl.where(tl.load(binding_of + row) != 0, tl.sum(own, 0) / tl.maximum(moving, 1), 0.0)
    end = tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, dim, CHUNK):
        other = start + tl.arange(0, CHUNK)
        theirs = tl.load(place_of + row * dim + other, mask=other < dim, other=-1)[:, None]
        shift = tl.load(change + row * dim + other, mask=other < dim, other=0.0)[:, None] - common
        end += tl.sum(tl.where((theirs >= 0) & (theirs <= place[None, :]), shift, 0.0), 0)
    work += row * (dim + 2)
    begin = tl.load(first + row)
    count = tl.load(first + row + 1) - begin
    tl.store(work + slot, end, mask=slot > 0)
    tl.store(work, 0.0)
    tl.store(work + count, 0.0)
    tl.debug_barrier()
    here = d
    while tl.min(here, 0) < count:  # as many as there are coordinates, and one more
        moved = tl.load(work + here + 1, mask=here < count, other=0.0) - tl.load(work + here, mask=here < count, other=0.0)
        tl.store(result + begin + here, moved, mask=here < count)
        here += DIMENSIONS
