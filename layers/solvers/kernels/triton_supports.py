"""Supports of the active set method on a GPU, packed in Triton, with their Jacobian: twin of `row_results`."""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...stats import SolverStats
from ..oracle import Oracle
from ..supports import PackedSupport
from .triton_active_set import Solved, solve
from .triton_iteration import products, shape_of
from .triton_packing import first_of


@dataclass(frozen=True)
class PackedJacobian:
    """P A' row by row, for packed atoms: paper eq. 17.

    Attributes:
        atoms: [N, D] int8, 0s and 1s; a copy, as those of the distribution may be changed.
        first, block: [B + 1] int64, where the atoms and the sensitivity of each row begin.
        sensitivity: P of each row, [S, S], flat.
        most: no row has more atoms.
    """

    atoms: Tensor
    first: Tensor
    block: Tensor
    sensitivity: Tensor
    most: int

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = gradient.new_empty(len(self.first) - 1, self.atoms.shape[1])
        self._launch(_pull, gradient, result)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = change.new_empty(len(self.atoms))
        self._launch(_push, change, result)
        return result

    def _launch(self, kernel: triton.JITFunction, given: Tensor, result: Tensor) -> None:
        dim = self.atoms.shape[1]
        with torch.cuda.device_of(result):
            kernel[(len(self.first) - 1,)](
                *(self.atoms, self.sensitivity, self.first, self.block, given.contiguous(), result, dim),
                **shape_of(dim, self.most),
            )


def solve_packed(oracle: Oracle, max_iter: int, tol: float, dtype: torch.dtype) -> PackedSupport[SolverStats] | Solved | None:
    """`triton_active_set.solve`, packed, with atoms in `dtype`; as it is if some row needs another method.

    A host synchronisation.
    """
    found = solve(oracle, max_iter, tol)
    if found is None:
        return None
    first, block = first_of(found.number), first_of(found.number.square())
    count, entries, all_converged = torch.stack([first[-1], block[-1], found.converged.all()]).tolist()
    if count < 0:
        return found
    batch, slots, dim = found.atoms.shape
    atoms, row = found.weights.new_empty(count, dim, dtype=dtype), first.new_empty(count)
    probs, sensitivity = found.weights.new_empty(count), found.weights.new_empty(entries)
    with torch.cuda.device_of(atoms):
        _pack[(batch,)](
            *(found.atoms, found.sensitivity, found.weights, found.origin, first, block),
            *(atoms, sensitivity, probs, row, dim, slots),
            **shape_of(dim, slots),
        )
    stats = SolverStats(found.iterations, found.gap, found.converged, found.margin)
    jacobian = PackedJacobian(atoms.to(torch.int8), first, block, sensitivity, slots)
    return PackedSupport(atoms, probs, row, first, stats, jacobian, bool(all_converged))


@triton.jit
def _pack(
    atoms,
    sensitivity,
    weights_of,
    origin,
    first,
    block,
    atoms_out,
    sensitivity_out,
    probs,
    row_of,
    dim,
    slots,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d, s = tl.arange(0, DIMENSIONS), tl.arange(0, SLOTS)
    inside = d < dim
    weights = tl.load(weights_of + row * slots + s, mask=s < slots, other=0.0)
    on = weights > 0.0
    place = tl.cumsum(on.to(tl.int32), 0) - 1
    count = tl.sum(on.to(tl.int32), 0)
    begin = tl.load(first + row)
    tl.store(probs + begin + place, weights, mask=on)
    tl.store(row_of + begin + s, row, mask=s < count)
    start = tl.load(origin + row * dim + d, mask=inside, other=0.0).to(tl.float32)
    sensitivity_out += tl.load(block + row)
    for slot in range(0, tl.max(tl.where(on, s + 1, 0), 0)):
        used = tl.sum(tl.where((s == slot) & on, 1, 0), 0) > 0
        here = tl.sum(tl.where(s == slot, place, 0), 0)
        structure = tl.load(atoms + (row * slots + slot) * dim + d, mask=inside, other=0).to(tl.float32) + start
        tl.store(atoms_out + (begin + here) * dim + d, structure.to(atoms_out.dtype.element_ty), mask=inside & used)
        line = tl.load(sensitivity + (row * slots + slot) * slots + s, mask=on, other=0.0)
        tl.store(sensitivity_out + here * count + place, line, mask=on & used)


@triton.jit
def _pull(
    atoms,
    sensitivity,
    first,
    block,
    gradient,
    result,
    dim,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A P g. P has no part along 1, so that atoms count relative to any one of them: where all agree it is exactly 0."""
    row = tl.program_id(0).to(tl.int64)
    d, s = tl.arange(0, DIMENSIONS), tl.arange(0, SLOTS)
    begin = tl.load(first + row)
    count = (tl.load(first + row + 1) - begin).to(tl.int32)
    given = tl.load(gradient + begin + s, mask=s < count, other=0.0)
    share, _ = products(sensitivity + tl.load(block + row), given, given, count, count, s, s, count, SLOTS, CHUNK)
    atoms += begin * dim
    base = tl.load(atoms + d, mask=d < dim, other=0).to(tl.float64)
    total = tl.zeros([DIMENSIONS], tl.float64)
    for start in range(0, count, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        mask = (slot[:, None] < count) & (d[None, :] < dim)
        tile = tl.load(atoms + slot[:, None] * dim + d[None, :], mask=mask, other=0).to(tl.float64) - base[None, :]
        own = tl.sum(tl.where(slot[:, None] == s[None, :], share[None, :], 0.0), 1)
        total += tl.sum(own[:, None] * tile, 0)
    tl.store(result + row * dim + d, total, mask=d < dim)


@triton.jit
def _push(
    atoms,
    sensitivity,
    first,
    block,
    change,
    result,
    dim,
    DIMENSIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """P A'dt."""
    row = tl.program_id(0).to(tl.int64)
    d, s = tl.arange(0, DIMENSIONS), tl.arange(0, SLOTS)
    begin = tl.load(first + row)
    count = (tl.load(first + row + 1) - begin).to(tl.int32)
    given = tl.load(change + row * dim + d, mask=d < dim, other=0.0)
    slopes, _ = products(atoms + begin * dim, given, given, count, dim, d, s, dim, SLOTS, CHUNK)
    moved, _ = products(sensitivity + tl.load(block + row), slopes, slopes, count, count, s, s, count, SLOTS, CHUNK)
    tl.store(result + begin + s, moved, mask=s < count)
