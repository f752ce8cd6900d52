"""The active set method's iteration in Triton on the state of `TensorRows`: one kernel beside the oracle, whatever that is.

In tensor operations an iteration starts more than a hundred kernels, which takes the host longer than the device. A program has
a problem of its own, and goes on by itself while an atom is to be dropped, for which no oracle has to be asked.
"""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_iteration import constants_on, iterate, shape_of

if TYPE_CHECKING:
    from ..tensor_rows import TensorRows

MOST_DIMENSIONS = 4096
MOST_SLOTS = 512


def ready(device: torch.device, tol: float) -> None:
    """Copies the limits there, which waits: where iterations are recorded nothing may."""
    constants_on(device, tol)


def advance(rows: TensorRows, vertex: Tensor, tol: float) -> bool:
    """The rows from the oracle's answers to their next questions, in place: as `TensorRows.iterate`, without an oracle.

    Args:
        rows: of B problems, with room for an atom in every row.
        vertex: [B, D] float64, a structure that maximises each row's residual.
        tol: as in `ActiveSet`.

    Returns:
        False, and nothing has changed, where there is no kernel for such a state: some coordinates are not regularised, or
        there are too many of them or of atoms.
    """
    working, (batch, dim) = rows.working, vertex.shape
    slots = working.on.shape[1]
    if rows.oracle.parts is not None or dim > MOST_DIMENSIONS or slots > MOST_SLOTS:
        return False
    state = (
        *(rows.vertices, working.atoms, working.inverse, working.on, rows.weights, rows.mean, rows.reach, rows.gap),
        *(rows.dropping, rows.stalled, rows.iterations, rows.exact, rows.converged),
    )
    assert all(tensor.is_contiguous() for tensor in state)
    given = (vertex, rows.origin, rows.unit, rows.target, rows.scale, rows.most, constants_on(vertex.device, tol))
    with torch.cuda.device_of(vertex):
        _advance[(batch,)](
            *(tensor.contiguous() for tensor in given),
            *(tensor.view(torch.int8) if tensor.dtype == torch.bool else tensor for tensor in state),
            dim,
            slots,
            **shape_of(dim, slots),
        )
    return True


@triton.jit
def _advance(
    vertex,
    origin,
    unit,
    target,
    scale,
    most,
    constants,
    vertices,
    atoms,
    inverse,
    on_of,
    weights_of,
    mean_of,
    reach_of,
    gap_of,
    dropping_of,
    stalled_of,
    iterations_of,
    exact_of,
    converged_of,
    dim,
    slots,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    limit, iterations = tl.load(most + row), tl.load(iterations_of + row).to(tl.int32)
    converged = tl.load(converged_of + row) != 0
    going = (not converged) & (iterations < limit)
    d, s = tl.arange(0, DIMENSIONS), tl.arange(0, SLOTS)
    inside, within = d < dim, s < slots
    coordinate, slot = row * dim + d, row * slots + s
    vertices += row * slots * dim
    atoms += row * slots * dim
    inverse += row * slots * slots
    answer = tl.load(vertex + coordinate, mask=inside, other=0.0)
    found = (answer - tl.load(origin + coordinate, mask=inside, other=0.0)) / tl.load(unit + row)
    goal, size_of_scores = tl.load(target + coordinate, mask=inside, other=0.0), tl.load(scale + row)
    gap, exact = tl.load(gap_of + row), tl.load(exact_of + row) != 0
    drop, stalled = tl.load(dropping_of + row).to(tl.int32), tl.load(stalled_of + row).to(tl.int32)
    counts = (drop < 0) & going
    reach = tl.maximum(tl.load(reach_of + coordinate, mask=inside, other=0.0), tl.where(counts, tl.abs(found), 0.0))
    tl.store(reach_of + coordinate, reach, mask=inside)
    high = tl.max(tl.where(tl.load(on_of + slot, mask=within, other=0) != 0, s + 1, 0), 0)
    while going:
        # Vectors go through memory: the compiler (Triton 3.8) fails on some that a loop carries and that were loaded before it.
        mean = tl.load(mean_of + coordinate, mask=inside, other=0.0)
        on = tl.load(on_of + slot, mask=within, other=0) != 0
        weights = tl.load(weights_of + slot, mask=within, other=0.0)
        weights, on, mean, gap, high, drop, stalled, iterations, exact, converged, added = iterate(
            *(found, reach, goal, size_of_scores, constants, atoms, inverse),
            *(weights, on, mean, gap, high, drop, stalled, iterations, exact, converged),
            *(dim, slots, d, s, DIMENSIONS, SLOTS, CHUNK),
        )
        tl.store(vertices + added * dim + d, answer, mask=inside & (added >= 0))
        tl.debug_barrier()
        tl.store(mean_of + coordinate, mean, mask=inside)
        tl.store(on_of + slot, tl.where(on, 1, 0).to(tl.int8), mask=within)
        tl.store(weights_of + slot, weights, mask=within)
        tl.debug_barrier()
        going = (not converged) & (iterations < limit) & (drop >= 0)
    tl.store(gap_of + row, gap)
    tl.store(dropping_of + row, drop)
    tl.store(stalled_of + row, stalled)
    tl.store(iterations_of + row, iterations)
    tl.store(exact_of + row, tl.where(exact, 1, 0).to(tl.int8))
    tl.store(converged_of + row, tl.where(converged, 1, 0).to(tl.int8))
