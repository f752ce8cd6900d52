"""The whole active set method in one Triton kernel, a program a problem, for polytopes whose oracle is a line of it.

Atoms are float32: of int8 a thread would load sixteen at a time, and whatever is computed from them would be laid out so, the
float64 vectors too, which registers do not hold. Nothing returns to the host before all have converged.
"""

# The kernel's language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....oracles.kinds import kind_of
from ...kernels.triton_ties import on_grid
from ..limits import WEIGHT_PRUNE
from ..oracle import Oracle
from ..ties import row_scale
from .triton_iteration import CHUNK, combined, constants_on, iterate, newton_step, products, removal, shape_of, update
from .triton_packing import NO_ANSWER

MOST_DIMENSIONS = 512
MOST_SLOTS = 128
# Iterations without progress after which a row is given up; the others factorise afresh (`limits.STALE`).
HOPELESS = 4


@dataclass(frozen=True)
class Solved:
    """What the kernel leaves. A row that has not converged needs another method: too many atoms, or a stale factorisation.

    Attributes:
        atoms: [B, S, D] float32, relative to the origin; anything where the weight is 0.
        weights: [B, S] float64, without the lightest atoms (see `pruned`), and after one more Newton step where it is feasible.
        sensitivity: [B, S, S] float64, as in `Support`.
        origin: [B, D] float64.
        gap: [B] float64; where atoms have been taken out, that of what is left if it is larger.
        margin: [B] float64, the smallest weight before the lightest were taken out.
        iterations: [B] int64.
        converged: [B] bool.
        number: [B] int64, of atoms; far below 0 where the row needs another method.
    """

    atoms: Tensor
    weights: Tensor
    sensitivity: Tensor
    origin: Tensor
    gap: Tensor
    margin: Tensor
    iterations: Tensor
    converged: Tensor
    number: Tensor


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
    origin = oracle.best().contiguous()  # `start` would look whether they are structures: those of our polytopes are
    batch, dim = origin.shape
    slots = min(MOST_SLOTS, max(CHUNK, triton.next_power_of_2(dim + 2)))
    found = Solved(
        atoms=origin.new_empty(batch, slots, dim, dtype=torch.float32),
        weights=origin.new_empty(batch, slots),
        sensitivity=origin.new_zeros(batch, slots, slots),
        origin=origin,
        gap=torch.full_like(origin[:, 0], torch.inf),
        margin=origin.new_empty(batch),
        iterations=torch.zeros_like(origin[:, 0], dtype=torch.int64),
        converged=torch.zeros_like(origin[:, 0], dtype=torch.bool),
        number=torch.zeros_like(origin[:, 0], dtype=torch.int64),
    )
    if batch == 0:
        return found
    scale, constants = row_scale(oracle.target), constants_on(origin.device, tol, WEIGHT_PRUNE * tol)
    given = (oracle.target - origin, origin, oracle.ties.grid, oracle.ties.tie_break, scale, constants)
    left = (
        *(found.atoms, found.sensitivity, found.weights, found.gap, found.margin, found.iterations),
        *(found.converged.view(torch.int8), found.number),
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
            NO_ANSWER=NO_ANSWER,
            **shape_of(dim, slots),
        )
    return found


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
def _maximize(asked, dim, budget, d, KIND: tl.constexpr, DIMENSIONS: tl.constexpr, CHUNK: tl.constexpr):
    """The oracles: a best structure for the scores [D], of tied ones as the polytopes choose."""
    if KIND == 0:  # the cube
        best = asked > 0
    elif KIND == 1:  # the simplex
        here = tl.where(d < dim, asked, float("-inf"))
        best = d == tl.min(tl.where(here == tl.max(here, 0), d, DIMENSIONS), 0)
    else:
        # How many coordinates come before this one: those of higher score, and of equal score those of lower number.
        before = tl.zeros([DIMENSIONS], tl.int32)
        for start in range(0, dim, CHUNK):
            other = start + tl.arange(0, CHUNK)
            score = tl.sum(tl.where(other[:, None] == d[None, :], asked[None, :], 0.0), 1)
            tied_before = (score[:, None] == asked[None, :]) & (other[:, None] < d[None, :])
            ahead = ((score[:, None] > asked[None, :]) | tied_before) & (other[:, None] < dim)
            before += tl.sum(ahead.to(tl.int32), 0)
        best = before < budget
        if KIND == 2:  # at most so many
            best = best & (asked > 0)
    return tl.where(best & (d < dim), 1.0, 0.0)


@triton.jit(do_not_specialize=["budget", "limit"])  # else each is compiled for anew, which takes seconds
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
    number_out,
    dim,
    budget,
    limit,
    KIND: tl.constexpr,
    HOPELESS: tl.constexpr,
    NO_ANSWER: tl.constexpr,
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
    negligible = tl.load(constants + 5)
    atoms += row * SLOTS * dim
    inverse += row * SLOTS * SLOTS
    tl.store(atoms + d, tl.zeros([DIMENSIONS], tl.float32), mask=inside)
    tl.store(inverse + s, tl.where(s == 0, 1.0, 0.0).to(tl.float64))
    tl.debug_barrier()

    weights = tl.where(s == 0, 1.0, 0.0).to(tl.float64)
    on = s == 0
    mean, reach = tl.zeros([DIMENSIONS], tl.float64), tl.zeros([DIMENSIONS], tl.float64)
    gap = size_of_scores * 0.0 + float("inf")
    high, drop, stalled, iterations = 1, -1, 0, 0
    exact, converged, going = tl.full([], 0, tl.int1), tl.full([], 0, tl.int1), True
    while going:
        asked = on_grid(goal - mean, steps, ties, exact)
        found = _maximize(asked, dim, budget, d, KIND, DIMENSIONS, CHUNK) - start
        reach = tl.maximum(reach, tl.where(drop < 0, tl.abs(found), 0.0))
        weights, on, mean, gap, high, drop, stalled, iterations, exact, converged, _ = iterate(
            *(found, reach, goal, size_of_scores, constants, atoms, inverse),
            *(weights, on, mean, gap, high, drop, stalled, iterations, exact, converged),
            *(dim, SLOTS, d, s, DIMENSIONS, SLOTS, CHUNK),
        )
        going = (not converged) & (iterations < limit) & (stalled < HOPELESS)

    # As `row_results.prune` and `write`: without the lightest atoms, one more Newton step, and P instead of H.
    heaviest = tl.max(weights, 0)
    tl.store(margin_out + row, tl.min(tl.where(weights > 0.0, weights, float("inf")), 0))
    slot, pruned = 0, tl.full([], 0, tl.int1)
    while slot < SLOTS:
        light = on & (weights <= negligible * size_of_scores) & (weights < heaviest)
        slot = tl.min(tl.where(light, s, SLOTS), 0)
        if slot < SLOTS:
            pruned = slot < SLOTS
            change, factor = removal(inverse, slot, high, s, SLOTS)
            on = on & (s != slot)
            weights = tl.where(on, weights, 0.0)
            tl.debug_barrier()
            update(inverse, change, factor, high, s, SLOTS, CHUNK)
            tl.debug_barrier()
    weights = weights / tl.sum(weights, 0)
    residual = goal - combined(atoms, weights, high, dim, d, s, DIMENSIONS, CHUNK)
    slopes, _ = products(atoms, residual, residual, high, dim, d, s, dim, SLOTS, CHUNK)
    deviation = tl.where(on, slopes - tl.sum(weights * tl.where(on, slopes, 0.0), 0), 0.0)
    step, across = newton_step(inverse, deviation, on, high, s, SLOTS, SLOTS, CHUNK)
    full = weights + step
    weights = tl.where(tl.min(full, 0) < 0.0, weights, full)
    tl.debug_barrier()
    _project_out(inverse, across, on, high, s, SLOTS, CHUNK)
    tl.store(weights_out + row * SLOTS + s, weights)
    if pruned:
        mean = combined(atoms, weights, high, dim, d, s, DIMENSIONS, CHUNK)
        asked = on_grid(goal - mean, steps, ties, pruned)
        found = _maximize(asked, dim, budget, d, KIND, DIMENSIONS, CHUNK) - start
        gap = tl.maximum(gap, tl.sum((goal - mean) * (found - mean), 0))
    tl.store(gap_out + row, gap)
    unsolved = (not converged) & (iterations < limit)
    number = tl.sum((weights > 0.0).to(tl.int32), 0).to(tl.int64)
    tl.store(number_out + row, tl.where(unsolved, NO_ANSWER, number))
    tl.store(iterations_out + row, iterations)
    tl.store(converged_out + row, tl.where(converged, 1, 0).to(tl.int8))
