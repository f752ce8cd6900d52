"""What the Triton kernels share in which a program has a row and leaves its structures packed."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ....kernels.rounding import EACH_ROUNDED

# Comparisons of coordinates that registers hold; and coordinates of a row where each is compared with every other.
ENTRIES = 2**12
MOST_DIMENSIONS = 1024
# The number of structures of a row that a kernel has no answer for: it makes the number of all negative.
NO_ANSWER = -(2**36)


class Room(NamedTuple):
    """For N structures of B rows: atoms [N, D], probs [N] float64, row [N] and first [B + 1] int64, as in `PackedSupport`."""

    atoms: Tensor
    probs: Tensor
    row: Tensor
    first: Tensor


def first_of(number: Tensor) -> Tensor:
    """Where what each row has so many of begins: [B] int64 -> [B + 1]."""
    return torch.nn.functional.pad(number.cumsum(0), (1, 0))


def room_for(number: Tensor, converged: Tensor, dim: int, dtype: torch.dtype) -> tuple[Room, bool] | None:
    """Room for so many structures a row, number [B] int64, and whether all rows have `converged` [B] bool.

    None if some row has no answer. A host synchronisation, one for both.
    """
    first = first_of(number)
    count, all_converged = torch.stack([first[-1], converged.all()]).tolist()
    if count < 0:
        return None
    atoms, row = first.new_empty(count, dim, dtype=dtype), first.new_empty(count)
    return Room(atoms, first.new_empty(count, dtype=torch.float64), row, first), bool(all_converged)


def shape_of_row(dim: int) -> dict[str, int]:
    """What a kernel is compiled for that holds D coordinates."""
    dimensions = max(16, triton.next_power_of_2(dim))
    return {"DIMENSIONS": dimensions, "num_warps": min(8, max(1, dimensions // 64)), **EACH_ROUNDED}


def chunk_of_row(dim: int) -> int:
    """How many coordinates are compared at a time with all."""
    return min(16, max(1, ENTRIES // shape_of_row(dim)["DIMENSIONS"]))
