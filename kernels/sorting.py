"""Rows put in order: on the CPU by NumPy, whose sorts work on vectors of numbers at a time, elsewhere by torch.

torch's sort of CPU tensors takes 2 to 15 times as long (torch 2.14, NumPy 2.4, AVX-512). Where the
order of equals counts there is little to be won: NumPy's stable sort is hardly faster.
"""

import numpy as np
import torch
from torch import Tensor

from .dispatch import in_threads, on_cpu

# To sort takes as long as to pass over the numbers so many times.
PASSES = 32
# Fewer numbers torch has sorted before NumPy has begun.
FEW = 512


def sorted_values(values: Tensor, *, descending: bool = False) -> Tensor:
    """`values.sort(dim=-1, descending=descending).values`, without gradient: [*B, n], NaN as the largest."""
    rows = _rows(values)
    if rows is None:
        return values.detach().sort(dim=-1, descending=descending).values
    ordered = np.empty_like(rows)

    def sort(part: slice) -> None:
        ordered[part] = rows[part]
        ordered[part].sort(-1)

    in_threads(sort, len(rows), PASSES * rows.size)
    found = torch.from_numpy(ordered)
    return (found.flip(-1) if descending else found).view(values.shape)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, without gradient: [*B, n] -> [*B, 1], 1 <= k <= n, NaN as the largest."""
    place, rows = values.shape[-1] - k, _rows(values)
    if rows is None:
        return values.detach().sort(dim=-1).values[..., place, None]  # of which CUDA has a deterministic one
    found = np.empty((len(rows), 1), rows.dtype)

    def select(part: slice) -> None:
        found[part, 0] = np.partition(rows[part], place, axis=-1)[:, place]

    in_threads(select, len(rows), PASSES * rows.size)
    return torch.from_numpy(found).view(*values.shape[:-1], 1)


def order_of(values: Tensor) -> Tensor:
    """`values.argsort(dim=-1)`, [*B, n] int64: of equals any first, NaN last."""
    rows = _rows(values)
    if rows is None:
        return values.detach().argsort(dim=-1)
    order = np.empty(rows.shape, np.int64)

    def sort(part: slice) -> None:
        order[part] = rows[part].argsort(-1)

    in_threads(sort, len(rows), PASSES * rows.size)
    return torch.from_numpy(order).view(values.shape)


def _rows(values: Tensor) -> np.ndarray | None:
    """The rows of values [*B, n] as an array [B, n], where NumPy is to have them."""
    # Sizes are looked at last: compiled code would hold for these only.
    if values.dtype not in (torch.float32, torch.float64) or not on_cpu(values) or values.numel() < FEW:
        return None
    return values.detach().reshape(-1, values.shape[-1]).numpy()
