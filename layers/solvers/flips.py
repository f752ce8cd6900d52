"""Top-k sparsemax on the cube in one compiled pass, with the derivative of its weights."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...oracles import BernoulliCube
from ...oracles.flip_sets import flip_sets
from ..kernels import compiled, in_threads, part_of
from ..stats import TopKStats
from .base import PackedSupport

# Beyond, the sets of flips are so many that a matrix product over the batch is no slower than passing over them row by row.
MOST = 64
# To find the structures takes about as long as to pass over the scores so many times.
PASSES = 16


def in_one_pass(scores: Tensor, polytope: object, k: int, dtype: torch.dtype) -> PackedSupport[TopKStats] | None:
    """What top-k sparsemax finds on the cube; None: not so, for k above 64, scores that are NaN or +inf, or without Numba.

    A structure is told by the set of bits in which it differs from the best one. The sets that can be among the k best are
    few and the same for all scores (`flip_sets`), and each is another one and one bit more: so their costs are one sum each.

    Args:
        scores: t, [B, D] float64.
        polytope: which; there is no kernel for a class derived from the cube.
        k: how many at most.
        dtype: of the atoms.

    Cost: O(B (D + k n)) for the n sets, 17 for k = 10, besides the N D entries of the packed atoms; O(B (D + k m)) for the
    derivative, m the number of bits in a set.
    """
    if type(polytope) is not BernoulliCube or k > MOST or compiled(".flip_rows", __package__, "find", scores.device) is None:
        return None
    array = scores.contiguous().numpy()
    found = _Flips.of(array, k)
    return None if found is None else found.support(array, dtype)


@dataclass(frozen=True)
class _Flips:
    """The structures of a batch.

    Attributes:
        kernels: the module `flip_rows`, which needs Numba.
        tree: its `rest` and `last`.
        rows: its `Rows`.
        dim: D.
        first: [B + 1] int64 array: where the structures of each row begin in what is packed.
    """

    kernels: Any
    tree: tuple[np.ndarray, np.ndarray]
    rows: Any
    dim: int
    first: np.ndarray

    @staticmethod
    def of(scores: np.ndarray, k: int) -> "_Flips | None":
        """The structures of scores [B, D] float64."""
        batch, dim = scores.shape
        width = min(k - 1, dim)
        tree = _tree(k, width)
        kernels = import_module(".flip_rows", __package__)
        rows = kernels.Rows(
            order=np.empty((batch, width), np.int32),
            change=np.empty((batch, width)),
            chosen=np.empty((batch, k), np.int32),
            number=np.empty(batch, np.int64),
            weights=np.empty((batch, k)),
            exact=np.empty(batch, bool),
        )
        in_threads(lambda part: kernels.find(scores[part], *tree, part_of(rows, part)), batch, PASSES * scores.size)
        if not rows.number.all():
            return None
        first = np.zeros(batch + 1, np.int64)
        np.cumsum(rows.number, out=first[1:])
        return _Flips(kernels, tree, rows, dim, first)

    def support(self, scores: np.ndarray, dtype: torch.dtype) -> PackedSupport[TopKStats]:
        """The structures in this dtype; the same scores."""
        batch, count = len(self.first) - 1, int(self.first[-1])
        # Arrays have no bfloat16; structures are 0s and 1s in any dtype.
        direct = dtype in (torch.float32, torch.float64)
        atoms = torch.empty(count, self.dim, dtype=dtype if direct else torch.float32)
        probs = torch.empty(count, dtype=torch.float64)
        array, weights = atoms.numpy(), probs.numpy()

        def write(part: slice) -> None:
            self.kernels.write(scores[part], *self._rows(part), array, weights)

        in_threads(write, batch, array.size)
        row = torch.from_numpy(np.repeat(np.arange(batch), self.rows.number))
        stats = TopKStats(torch.from_numpy(self.rows.exact))
        return PackedSupport(atoms if direct else atoms.to(dtype), probs, row, torch.from_numpy(self.first), stats, self)

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.first) - 1, self.dim, dtype=torch.float64)
        given, array = gradient.contiguous().numpy(), result.numpy()
        in_threads(lambda part: self.kernels.pull(*self._rows(part), given, array[part]), len(array), array.size)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(int(self.first[-1]), dtype=torch.float64)
        given, array = change.contiguous().numpy(), result.numpy()
        in_threads(lambda part: self.kernels.push(*self._rows(part), given[part], array), len(given), given.size)
        return result

    def _rows(self, part: slice) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray]:
        return *self.tree, part_of(self.rows, part), self.first[part.start : part.stop + 1]


@lru_cache(maxsize=64)
def _tree(k: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The sets of flips as a tree: of each, the number of the set without its largest bit, and that bit, from 0."""
    sets = flip_sets(k, width)
    number = {flips: place for place, flips in enumerate(sets)}
    rest = [number[flips[1:]] for flips in sets]
    last = [flips[0] - 1 if flips else 0 for flips in sets]
    return np.array(rest, np.int32), np.array(last, np.int32)
