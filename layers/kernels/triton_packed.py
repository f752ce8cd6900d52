"""Sums over packed atoms in Triton, for tensors on a GPU: twins of `kernels.packed`. An atom is read once, and none written.

A row's atoms are added up in their order, so that the same numbers give the same bits.
"""

# The kernels' language looks like Python, but its types are not.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels.rounding import EACH_ROUNDED

CHUNK = 128


def combine(probs: Tensor, atoms: Tensor, first: Tensor, means: Tensor) -> None:
    """means_b = sum_n probs[n] atoms[n] over first[b] <= n < first[b + 1]: contiguous [N], [N, D] -> [B, D]."""
    rows, dim = means.shape
    if rows and dim:
        with torch.cuda.device_of(means):
            _combine[(rows, triton.cdiv(dim, CHUNK))](probs, atoms, first, means, dim, CHUNK=CHUNK, **EACH_ROUNDED)


def compare(values: Tensor, atoms: Tensor, first: Tensor, row: Tensor, products: Tensor) -> None:
    """products[n] = <atoms[n], values[row[n]]>: contiguous [B, D], [N, D] -> [N]."""
    if len(products):
        with torch.cuda.device_of(products):
            # Many short programs: of one warp each, so that as many as can be run at once.
            given = (values, atoms, row, products, atoms.shape[1])
            _compare[(len(products),)](*given, CHUNK=CHUNK, num_warps=1, **EACH_ROUNDED)


def entropies(probs: Tensor, first: Tensor, found: Tensor, slopes: Tensor) -> None:
    """found_b = -sum_n p log p over first[b] <= n < first[b + 1]; slopes: its derivatives -(log p + 1). [N] -> [B], [N]."""
    if len(found):
        with torch.cuda.device_of(found):
            least = torch.finfo(probs.dtype).tiny
            _entropies[(len(found),)](probs, first, found, slopes, LEAST=least, CHUNK=CHUNK, **EACH_ROUNDED)


@triton.jit
def _combine(probs, atoms, first, means, dim, CHUNK: tl.constexpr):
    row, place = tl.program_id(0), tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = place < dim
    total = tl.zeros([CHUNK], means.dtype.element_ty)
    n, end = tl.load(first + row), tl.load(first + row + 1)
    while n < end:
        total += tl.load(probs + n) * tl.load(atoms + n * dim + place, mask=inside, other=0.0)
        n += 1
    tl.store(means + row.to(tl.int64) * dim + place, total, mask=inside)


@triton.jit
def _compare(values, atoms, row, products, dim, CHUNK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    values += tl.load(row + n) * dim
    atoms += n * dim
    total = tl.zeros([CHUNK], products.dtype.element_ty)
    for start in range(0, dim, CHUNK):
        place = start + tl.arange(0, CHUNK)
        inside = place < dim
        total += tl.load(values + place, mask=inside, other=0.0) * tl.load(atoms + place, mask=inside, other=0.0)
    tl.store(products + n, tl.sum(total, 0))


@triton.jit
def _entropies(probs, first, found, slopes, LEAST: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros([CHUNK], found.dtype.element_ty)
    n, end = tl.load(first + row), tl.load(first + row + 1)
    while n < end:
        place = n + tl.arange(0, CHUNK)
        inside = place < end
        value = tl.load(probs + place, mask=inside, other=1.0)
        log = tl.log(tl.maximum(value, tl.full([CHUNK], LEAST, value.dtype)))  # as an argument it would be float32
        tl.store(slopes + place, -(log + 1), mask=inside)
        total -= value * log  # 0 where there is none: log 1
        n += CHUNK
    tl.store(found + row, tl.sum(total, 0))
