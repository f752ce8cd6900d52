"""What supports have in common that compiled kernels find row by row: how they are packed, and their Jacobian."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import in_threads
from .supports import FoundBy, PackedSupport


def room_for_atoms(count: int, dim: int, dtype: torch.dtype) -> np.ndarray:
    """An array [count, dim] of anything, for structures that are then wanted in `dtype`.

    Arrays have no bfloat16, but structures are 0s and 1s in any dtype. Not a tensor's memory: NumPy asks the system for huge
    pages, which are there in a third of the time.
    """
    return np.empty((count, dim), np.float64 if dtype == torch.float64 else np.float32)


@dataclass(frozen=True)
class PackedRows(ABC):
    """The structures of a batch, told in brief; a `Jacobian`.

    Attributes:
        kernels: the module of the kernels `write`, `pull` and `push`, and of `runs`; it needs Numba.
        rows: its `Rows`, arrays of which `number` [B] int64 says how many structures a row has.
        dim: D.
        first: [B + 1] int64 array: where the structures of each row begin in what is packed.
    """

    kernels: Any
    rows: Any
    dim: int
    first: np.ndarray

    @abstractmethod
    def arguments(self, part: slice) -> tuple[Any, ...]:
        """What each kernel is given first, for the rows of a slice."""

    def packed(
        self, stats: FoundBy, dtype: torch.dtype, *given: np.ndarray, all_converged: bool = False
    ) -> PackedSupport[FoundBy]:
        """The support, with atoms in this dtype; `write` is `given` the rows of these arrays [B, ...], too."""
        batch, count = len(self.first) - 1, int(self.first[-1])
        array, weights = room_for_atoms(count, self.dim, dtype), np.empty(count)

        def write(part: slice) -> None:
            self.kernels.write(*(rows[part] for rows in given), *self.arguments(part), array, weights)

        in_threads(write, batch, array.size)
        row = torch.from_numpy(self.kernels.runs.row_of(self.first))
        atoms, probs = torch.from_numpy(array).to(dtype), torch.from_numpy(weights)
        return PackedSupport(atoms, probs, row, torch.from_numpy(self.first), stats, self, all_converged)

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.first) - 1, self.dim, dtype=torch.float64, device="cpu")
        given, array = gradient.contiguous().numpy(), result.numpy()
        in_threads(lambda part: self.kernels.pull(*self.arguments(part), given, array[part]), len(array), array.size)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(int(self.first[-1]), dtype=torch.float64, device="cpu")
        given, array = change.contiguous().numpy(), result.numpy()
        in_threads(lambda part: self.kernels.push(*self.arguments(part), given[part], array), len(given), given.size)
        return result
