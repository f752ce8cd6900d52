"""One iteration of the active set method in Triton, of the problem that a program has: that of `TensorRows`.

Vectors over slots and coordinates stay in registers, the atoms and the factorisation in memory of which a program's own part
fits the cache. Who calls it keeps the state, asks the oracle, and has to see to a free slot.
"""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....kernels.numbers import numbers_on
from ....kernels.rounding import EACH_ROUNDED
from ..limits import PIVOT_IN_DOUBT, PIVOT_NOISE, SETTLED, WEIGHT_NOISE

# Slots that are read at a time, and entries of them: what registers hold.
CHUNK = 16
ENTRIES = 2**13


def shape_of(dim: int, slots: int) -> dict[str, int]:
    """What a kernel is compiled for, for D coordinates and S slots."""
    dimensions, slots = max(16, triton.next_power_of_2(dim)), triton.next_power_of_2(slots)
    chunk = min(CHUNK, max(1, ENTRIES // max(dimensions, slots)))
    warps = 4 if dimensions <= 512 else 8
    return {"DIMENSIONS": dimensions, "SLOTS": slots, "CHUNK": chunk, "num_warps": warps, **EACH_ROUNDED}


def constants_on(device: torch.device, tol: float, *others: float) -> Tensor:
    """The limits in the order in which kernels read them, and others behind them."""
    return numbers_on(device, (tol, WEIGHT_NOISE, PIVOT_NOISE, PIVOT_IN_DOUBT, SETTLED, *others))


@triton.jit
def products(matrix, left, right, high, width, column, s, stride, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
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
def update(inverse, change, factor, high, s, stride, CHUNK: tl.constexpr):
    """H += factor y y'."""
    for start in range(0, high, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < high) & (s[None, :] < high)
        place = inverse + slot[:, None] * stride + s[None, :]
        own = tl.sum(tl.where(slot[:, None] == s[None, :], change[None, :], 0.0), 1)
        tl.store(place, tl.load(place, mask=mask, other=0.0) + factor * own[:, None] * change[None, :], mask=mask)


@triton.jit
def removal(inverse, slot, high, s, stride):
    """y [S] and a factor with H + factor y y' the inverse without the atom in a slot."""
    change = tl.load(inverse + slot * stride + s, mask=s < high, other=0.0)
    return change, -1.0 / tl.sum(tl.where(s == slot, change, 0.0), 0)


@triton.jit
def combined(atoms, weights, high, dim, d, s, DIMENSIONS: tl.constexpr, CHUNK: tl.constexpr):
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
def newton_step(inverse, deviation, on, high, s, stride, SLOTS: tl.constexpr, CHUNK: tl.constexpr):
    """The change of weights with A'A dp + lambda 1 = deviation and sum dp = 0, and H 1: [S] -> [S], [S]."""
    ones = tl.where(on, 1.0, 0.0).to(tl.float64)
    along, across = products(inverse, deviation, ones, high, high, s, s, stride, SLOTS, CHUNK)
    along, across = tl.where(on, along, 0.0), tl.where(on, across, 0.0)
    return along - tl.sum(along, 0) / tl.sum(across, 0) * across, across


@triton.jit
def iterate(
    found,
    reach,
    goal,
    scale,
    constants,
    atoms,
    inverse,
    weights,
    on,
    mean,
    gap,
    high,
    drop,
    stalled,
    iterations,
    exact,
    converged,
    dim,
    slots,
    d,
    s,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Test, add or drop one atom, and take a Newton step as far as it is feasible; nothing more if it has converged.

    Args:
        found: [D] the oracle's answer, relative to the origin; counts where there is no atom to drop.
        reach: [D] the largest |coordinate| of any answer that counted, this one's too.
        goal: [D] what is projected, relative to the origin.
        scale: that of the mean.
        constants: where `constants_on` are.
        atoms: where the atoms are, [slots, D], relative to the origin.
        inverse: where H is, [slots, slots], of which the first `high` rows and columns count.
        weights, on, mean, gap, high, drop, stalled, iterations, exact, converged: the state, as in `TensorRows`; what
            follows them all but `slots` as in `products`.

    Returns:
        The state after the iteration, and the slot of the atom that was added; -1 for none.
    """
    tol, weight_noise, pivot_noise = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    in_doubt, settling = tl.load(constants + 3), tl.load(constants + 4)
    residual = goal - mean
    noise = 8 * 2.220446049250313e-16 * tl.sum((tl.abs(goal) + reach) * reach, 0)

    slopes, overlaps = products(atoms, residual, found, high, dim, d, s, dim, SLOTS, CHUNK)
    level = tl.sum(weights * tl.where(on, slopes, 0.0), 0)
    deviation = tl.where(on, slopes - level, 0.0)
    settled = (drop < 0) & (tl.max(tl.abs(deviation), 0) <= settling * scale + noise)
    now = tl.sum(residual * found, 0) - level
    gap = tl.where(settled, tl.maximum(now, 0.0), gap)
    exhausted = settled & (now <= tol * scale + noise)
    converged = exhausted & exact
    exact = exact | exhausted
    added = drop * 0 - 1
    if not converged:
        iterations += 1
        slot = tl.min(tl.where(on, SLOTS, s), 0)
        change, factor = tl.zeros([SLOTS], tl.float64), level * 0.0
        moved = exhausted
        if settled & (not exhausted) & (slot < slots):
            gram = tl.where(on, overlaps + 1.0, 0.0)
            combination, _ = products(inverse, gram, gram, high, high, s, s, slots, SLOTS, CHUNK)
            combination = tl.where(on, combination, 0.0)
            size = tl.sum(found * found, 0)
            pivot = 1.0 + size - tl.sum(gram * combination, 0)
            if pivot <= in_doubt * (1.0 + size):  # it may be no more than the errors of H: by the distance itself
                apart = found - combined(atoms, combination, high, dim, d, s, DIMENSIONS, CHUNK)
                rest = 1.0 - tl.sum(combination, 0)
                pivot = tl.sum(apart * apart, 0) + rest * rest
            if pivot > pivot_noise * (1.0 + size):
                change = tl.where(s == slot, -1.0, combination)
                factor = 1.0 / pivot
                tl.debug_barrier()  # all threads have read what was in the slot before
                tl.store(atoms + slot * dim + d, found.to(atoms.dtype.element_ty), mask=d < dim)
                on = on | (s == slot)
                deviation = tl.where(s == slot, now, deviation)
                high = tl.maximum(high, slot + 1)
                added = slot
                moved = True
        if drop >= 0:
            change, factor = removal(inverse, drop, high, s, slots)
            on = on & (s != drop)
            deviation = tl.where(s == drop, 0.0, deviation)
            moved = True
        stalled = tl.where(moved, 0, stalled + 1)
        tl.debug_barrier()
        update(inverse, change, factor, high, s, slots, CHUNK)
        tl.debug_barrier()

        step, _ = newton_step(inverse, deviation, on, high, s, slots, SLOTS, CHUNK)
        full = weights + step
        ratio = tl.where(full < -weight_noise, weights / (weights - full), float("inf"))
        reached = tl.min(ratio, 0)
        first = tl.min(tl.where(ratio <= reached + weight_noise, s, SLOTS), 0)
        drop = tl.where(reached <= 1.0, first, -1)
        weights = tl.maximum(weights + tl.minimum(reached, 1.0) * step, 0.0)
        weights = tl.where(on & (s != drop), weights, 0.0)
        mean = combined(atoms, weights, high, dim, d, s, DIMENSIONS, CHUNK)
    return weights, on, mean, gap, high, drop, stalled, iterations, exact, converged, added
