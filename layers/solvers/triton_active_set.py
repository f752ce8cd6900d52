"""The whole active set method in one Triton kernel, a program a problem, for polytopes whose oracle is a line of it.

The iteration is that of `TensorRows`; vectors over slots and coordinates stay in registers, the atoms (int8) and the
factorisation in memory of which a program's own part fits the cache. Nothing returns to the host before all have converged.
"""

# The kernel's language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .base import Oracle, row_scale
from .kinds import kind_of
from .limits import PIVOT_IN_DOUBT, PIVOT_NOISE, SETTLED, WEIGHT_NOISE, WEIGHT_PRUNE

MOST_DIMENSIONS = 512
MOST_SLOTS = 128
# Slots that are read at a time.
CHUNK = 16
# Iterations without progress after which a row is given up; the others factorise afresh (`limits.STALE`).
HOPELESS = 4


@dataclass(frozen=True)
class Solved:
    """What the kernel leaves. A row that has not converged needs another method: too many atoms, or a stale factorisation.

    Attributes:
        atoms: [B, S, D] int8, relative to the origin; anything where the weight is 0.
        weights: [B, S] float64, without the lightest atoms (see `pruned`), and after one more Newton step where it is feasible.
        sensitivity: [B, S, S] float64, as in `Support`.
        origin: [B, D] float64.
        gap: [B] float64.
        margin: [B] float64, the smallest weight before the lightest were taken out.
        iterations: [B] int64.
        converged: [B] bool.
    """

    atoms: Tensor
    weights: Tensor
    sensitivity: Tensor
    origin: Tensor
    gap: Tensor
    margin: Tensor
    iterations: Tensor
    converged: Tensor


def solve(oracle: Oracle, max_iter: int, tol: float) -> Solved | None:
    """Runs the method on every row, or returns None where the kernel has no such oracle or some coordinates are forbidden.

    Args:
        oracle: of B rows.
        max_iter: iterations at most.
        tol: of the gap, see `ActiveSet`.
    """
    kind = kind_of(oracle.polytope)
    if kind is None or oracle.polytope.dim > MOST_DIMENSIONS or oracle.forbidden is not None or oracle.parts is not None:
        return None
    origin = oracle.start().contiguous()
    batch, dim = origin.shape
    slots = min(MOST_SLOTS, max(CHUNK, triton.next_power_of_2(dim + 2)))
    found = Solved(
        atoms=origin.new_empty(batch, slots, dim, dtype=torch.int8),
        weights=origin.new_empty(batch, slots),
        sensitivity=origin.new_zeros(batch, slots, slots),
        origin=origin,
        gap=torch.full_like(origin[:, 0], torch.inf),
        margin=origin.new_empty(batch),
        iterations=torch.zeros_like(origin[:, 0], dtype=torch.int64),
        converged=torch.zeros_like(origin[:, 0], dtype=torch.bool),
    )
    if batch == 0:
        return found
    # In the order in which the kernel reads them; as arguments they would be float32.
    constants = origin.new_tensor([tol, WEIGHT_NOISE, PIVOT_NOISE, PIVOT_IN_DOUBT, SETTLED, WEIGHT_PRUNE * tol])
    scale = row_scale(oracle.target)
    given = (oracle.target - origin, origin, oracle.ties.grid, oracle.ties.tie_break, scale, constants)
    left = (
        *(found.atoms, found.sensitivity, found.weights, found.gap, found.margin, found.iterations),
        found.converged.view(torch.int8),
    )
    with torch.cuda.device_of(origin):
        _solve[(batch,)](
            *(tensor.contiguous() for tensor in given),
            *left,
            dim,
            getattr(oracle.polytope, "budget", 0),
            max_iter,
            KIND=kind,
            HOPELESS=HOPELESS,
            DIMENSIONS=max(16, triton.next_power_of_2(dim)),
            SLOTS=slots,
            CHUNK=CHUNK,
            num_warps=4,
        )
    return found


@triton.jit
def _products(matrix, left, right, high, width, column, s, stride, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
    """Products of the first `high` rows of a matrix [S, width], the atoms or H, with two vectors, chunk by chunk: [S] each."""
    one, two = tl.zeros([SLOTS], tl.float64), tl.zeros([SLOTS], tl.float64)
    for start in range(0, high, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < high) & (column[None, :] < width)
        tile = tl.load(matrix + slot[:, None] * stride + column[None, :], mask=mask, other=0).to(tl.float64)
        here = slot[:, None] == s[None, :]
        one += tl.sum(tl.where(here, tl.sum(tile * left[None, :], 1)[:, None], 0.0), 0)
        two += tl.sum(tl.where(here, tl.sum(tile * right[None, :], 1)[:, None], 0.0), 0)
    return one, two


@triton.jit
def _update(inverse, change, factor, high, s, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
    """H += factor y y'."""
    for start in range(0, high, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < high) & (s[None, :] < high)
        place = inverse + slot[:, None] * SLOTS + s[None, :]
        own = tl.sum(tl.where(slot[:, None] == s[None, :], change[None, :], 0.0), 1)
        tl.store(place, tl.load(place, mask=mask, other=0.0) + factor * own[:, None] * change[None, :], mask=mask)


@triton.jit
def _project_out(inverse, across, on, high, s, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
    """H <- P = H - H 11'H / 1'H1 for H 1 = across, and 0 where a slot is not in use."""
    for start in range(0, high, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < high) & (s[None, :] < high)
        place = inverse + slot[:, None] * SLOTS + s[None, :]
        here = slot[:, None] == s[None, :]
        own, used = tl.sum(tl.where(here, across[None, :], 0.0), 1), tl.sum(tl.where(here & on[None, :], 1.0, 0.0), 1)
        rest = tl.load(place, mask=mask, other=0.0) - own[:, None] * across[None, :] / tl.sum(across, 0)
        tl.store(place, tl.where((used[:, None] > 0.0) & on[None, :], rest, 0.0), mask=mask)


@triton.jit
def _mean(atoms, weights, high, dim, d, s, DIMENSIONS: tl.constexpr, CHUNK: tl.constexpr):
    """sum_s p_s a_s, [D]."""
    total = tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, high, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < high) & (d[None, :] < dim)
        tile = tl.load(atoms + slot[:, None] * dim + d[None, :], mask=mask, other=0).to(tl.float64)
        own = tl.sum(tl.where(slot[:, None] == s[None, :], weights[None, :], 0.0), 1)
        total += tl.sum(own[:, None] * tile, 0)
    return total


@triton.jit
def _maximize(asked, dim, budget, d, KIND: tl.constexpr, DIMENSIONS: tl.constexpr):
    """The oracles: a best structure for the scores [D], of tied ones as the polytopes choose."""
    if KIND == 0:  # the cube
        best = asked > 0
    else:
        # How many coordinates come before this one: those of higher score, and of equal score those of lower number.
        before = tl.zeros([DIMENSIONS], tl.int32)
        for other in range(0, dim):
            score = tl.sum(tl.where(d == other, asked, 0.0), 0)
            before += ((score > asked) | ((score == asked) & (other < d))).to(tl.int32)
        if KIND == 1:  # the simplex
            best = before == 0
        else:
            best = before < budget
            if KIND == 2:  # at most so many
                best = best & (asked > 0)
    return tl.where(best & (d < dim), 1.0, 0.0)


@triton.jit
def _solve(
    target,
    origin,
    grid,
    tie_break,
    scale,
    constants,
    atoms,
    inverse,
    weights_out,
    gap_out,
    margin_out,
    iterations_out,
    converged_out,
    dim,
    budget,
    limit,
    KIND: tl.constexpr,
    HOPELESS: tl.constexpr,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d, s = tl.arange(0, DIMENSIONS), tl.arange(0, SLOTS)
    inside = d < dim
    goal = tl.load(target + row * dim + d, mask=inside, other=0.0)
    start = tl.load(origin + row * dim + d, mask=inside, other=0.0)
    steps = tl.load(grid + row * dim + d, mask=inside, other=1.0)
    ties = tl.load(tie_break + d, mask=inside, other=0.0)
    size_of_scores = tl.load(scale + row)
    tol, weight_noise, pivot_noise = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    in_doubt, settling, negligible = tl.load(constants + 3), tl.load(constants + 4), tl.load(constants + 5)
    atoms += row * SLOTS * dim
    inverse += row * SLOTS * SLOTS
    tl.store(atoms + d, tl.zeros([DIMENSIONS], tl.int8), mask=inside)
    tl.store(inverse + s, tl.where(s == 0, 1.0, 0.0).to(tl.float64))
    tl.debug_barrier()

    weights = tl.where(s == 0, 1.0, 0.0).to(tl.float64)
    on = s == 0
    mean, reach = tl.zeros([DIMENSIONS], tl.float64), tl.zeros([DIMENSIONS], tl.float64)
    gap = size_of_scores * 0.0 + float("inf")
    high, drop, stalled, iterations = 1, -1, 0, 0
    exact, converged, going = False, False, True
    while going:
        residual = goal - mean
        # Adding and taking away 1.5 * 2^52 rounds to the nearest integer, of two the even one.
        rounded = (residual / steps + 6755399441055744.0) - 6755399441055744.0
        asked = (rounded + tl.where(exact, 0.0, ties)) * steps
        found = _maximize(asked, dim, budget, d, KIND, DIMENSIONS) - start
        reach = tl.where(drop < 0, tl.maximum(reach, tl.abs(found)), reach)
        noise = 8 * 2.220446049250313e-16 * tl.sum((tl.abs(goal) + reach) * reach, 0)

        slopes, overlaps = _products(atoms, residual, found, high, dim, d, s, dim, SLOTS, CHUNK)
        level = tl.sum(weights * tl.where(on, slopes, 0.0), 0)
        deviation = tl.where(on, slopes - level, 0.0)
        settled = (drop < 0) & (tl.max(tl.abs(deviation), 0) <= settling * size_of_scores + noise)
        now = tl.sum(residual * found, 0) - level
        gap = tl.where(settled, tl.maximum(now, 0.0), gap)
        exhausted = settled & (now <= tol * size_of_scores + noise)
        converged = exhausted & exact
        exact = exact | exhausted
        if converged:
            going = False
        else:
            iterations += 1
            slot = tl.min(tl.where(on, SLOTS, s), 0)
            change, factor = tl.zeros([SLOTS], tl.float64), level * 0.0
            moved = exhausted
            if settled & (not exhausted) & (slot < SLOTS):
                gram = tl.where(on, overlaps + 1.0, 0.0)
                combination, _ = _products(inverse, gram, gram, high, high, s, s, SLOTS, SLOTS, CHUNK)
                combination = tl.where(on, combination, 0.0)
                size = tl.sum(found * found, 0)
                pivot = 1.0 + size - tl.sum(gram * combination, 0)
                if pivot <= in_doubt * (1.0 + size):  # it may be no more than the errors of H: by the distance itself
                    apart = found - _mean(atoms, combination, high, dim, d, s, DIMENSIONS, CHUNK)
                    rest = 1.0 - tl.sum(combination, 0)
                    pivot = tl.sum(apart * apart, 0) + rest * rest
                if pivot > pivot_noise * (1.0 + size):
                    change = tl.where(s == slot, -1.0, combination)
                    factor = 1.0 / pivot
                    tl.store(atoms + slot * dim + d, found.to(tl.int8), mask=inside)
                    on = on | (s == slot)
                    deviation = tl.where(s == slot, now, deviation)
                    high = tl.maximum(high, slot + 1)
                    moved = True
            if drop >= 0:
                change = tl.load(inverse + drop * SLOTS + s, mask=s < high, other=0.0)
                factor = -1.0 / tl.sum(tl.where(s == drop, change, 0.0), 0)
                on = on & (s != drop)
                deviation = tl.where(s == drop, 0.0, deviation)
                moved = True
            stalled = tl.where(moved, 0, stalled + 1)
            tl.debug_barrier()
            _update(inverse, change, factor, high, s, SLOTS, CHUNK)
            tl.debug_barrier()

            ones = tl.where(on, 1.0, 0.0).to(tl.float64)
            along, across = _products(inverse, deviation, ones, high, high, s, s, SLOTS, SLOTS, CHUNK)
            along, across = tl.where(on, along, 0.0), tl.where(on, across, 0.0)
            step = along - tl.sum(along, 0) / tl.sum(across, 0) * across
            full = weights + step
            ratio = tl.where(full < -weight_noise, weights / (weights - full), float("inf"))
            reached = tl.min(ratio, 0)
            first = tl.min(tl.where(ratio <= reached + weight_noise, s, SLOTS), 0)
            drop = tl.where(reached <= 1.0, first, -1)
            weights = tl.maximum(weights + tl.minimum(reached, 1.0) * step, 0.0)
            weights = tl.where(on & (s != drop), weights, 0.0)
            mean = _mean(atoms, weights, high, dim, d, s, DIMENSIONS, CHUNK)
            going = (iterations < limit) & (stalled < HOPELESS)

    # As `row_results.prune` and `write`: without the lightest atoms, one more Newton step, and P instead of H.
    heaviest = tl.max(weights, 0)
    tl.store(margin_out + row, tl.min(tl.where(weights > 0.0, weights, float("inf")), 0))
    slot = 0
    while slot < SLOTS:
        light = on & (weights <= negligible * size_of_scores) & (weights < heaviest)
        slot = tl.min(tl.where(light, s, SLOTS), 0)
        if slot < SLOTS:
            change = tl.load(inverse + slot * SLOTS + s, mask=s < high, other=0.0)
            factor = -1.0 / tl.sum(tl.where(s == slot, change, 0.0), 0)
            on = on & (s != slot)
            weights = tl.where(on, weights, 0.0)
            tl.debug_barrier()
            _update(inverse, change, factor, high, s, SLOTS, CHUNK)
            tl.debug_barrier()
    weights = weights / tl.sum(weights, 0)
    residual = goal - _mean(atoms, weights, high, dim, d, s, DIMENSIONS, CHUNK)
    slopes, _ = _products(atoms, residual, residual, high, dim, d, s, dim, SLOTS, CHUNK)
    deviation = tl.where(on, slopes - tl.sum(weights * tl.where(on, slopes, 0.0), 0), 0.0)
    ones = tl.where(on, 1.0, 0.0).to(tl.float64)
    along, across = _products(inverse, deviation, ones, high, high, s, s, SLOTS, SLOTS, CHUNK)
    along, across = tl.where(on, along, 0.0), tl.where(on, across, 0.0)
    full = weights + along - tl.sum(along, 0) / tl.sum(across, 0) * across
    weights = tl.where(tl.min(full, 0) < 0.0, weights, full)
    tl.debug_barrier()
    _project_out(inverse, across, on, high, s, SLOTS, CHUNK)
    tl.store(weights_out + row * SLOTS + s, weights)
    tl.store(gap_out + row, gap)
    tl.store(iterations_out + row, iterations)
    tl.store(converged_out + row, tl.where(converged, 1, 0).to(tl.int8))
