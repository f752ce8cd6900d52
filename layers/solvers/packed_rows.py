"""What supports have in common that compiled kernels find row by row: how they are packed, and their Jacobian."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import in_threads
from .supports import FoundBy, PackedSupport


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
        # Arrays have no bfloat16; structures are 0s and 1s in any dtype.
        direct = dtype in (torch.float32, torch.float64)
        atoms = torch.empty(count, self.dim, dtype=dtype if direct else torch.float32, device="cpu")
        probs = torch.empty(count, dtype=torch.float64, device="cpu")
        array, weights = atoms.numpy(), probs.numpy()

        def write(part: slice) -> None:
            self.kernels.write(*(rows[part] for rows in given), *self.arguments(part), array, weights)

        in_threads(write, batch, array.size)
        row = torch.from_numpy(self.kernels.runs.row_of(self.first))
        atoms = atoms if direct else atoms.to(dtype)
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
