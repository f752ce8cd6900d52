"""Top-k sparsemax on the cube in one compiled pass, with the derivative of its weights."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import compiled, in_threads, part_of
from ...oracles import BernoulliCube
from ...oracles.flip_sets import flip_sets
from ..stats import TopKStats
from .packed_rows import PackedRows
from .supports import PackedSupport

# To find the structures takes about as long as to pass over the scores so many times.
PASSES = 16


def in_one_pass(scores: Tensor, polytope: object, k: int, dtype: torch.dtype) -> PackedSupport[TopKStats] | None:
    """What top-k sparsemax finds on the cube; None: not so, for scores that are NaN or +inf, or without Numba.

    A structure is told by the set of bits in which it differs from the best one. The sets that can be among the k best are
    few and the same for all scores (`flip_sets`), and each is another one and one bit more: so their costs are one sum each.

    Args:
        scores: t, [B, D] float64.
        polytope: which; there is no kernel for a class derived from the cube.
        k: how many at most.
        dtype: of the atoms.

    Cost: O(B (D + k n)) for the n sets, 17 for k = 10 and 474 for k = 100, besides the N D entries of the packed atoms;
    O(B (D + k m)) for the derivative, m the number of bits in a set. At k = 512, D = 128, B = 512 a twelfth of the plain time.
    """
    if type(polytope) is not BernoulliCube or compiled(".kernels.flip_rows", __package__, "find", scores.device) is None:
        return None
    array = scores.contiguous().numpy()
    found = _Flips.of(array, k)
    return None if found is None else found.packed(TopKStats(torch.from_numpy(found.rows.exact)), dtype, array)


@dataclass(frozen=True)
class _Flips(PackedRows):
    """The structures of a batch, by the kernels of `flip_rows`; `tree` is the sets of flips, see `_tree`."""

    tree: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(scores: np.ndarray, k: int) -> "_Flips | None":
        """The structures of scores [B, D] float64; None where one is NaN or +inf, of which the kernel finds no structures."""
        batch, dim = scores.shape
        width = min(k - 1, dim)
        tree = _tree(k, width)
        kernels = import_module(".kernels.flip_rows", __package__)
        rows = kernels.Rows(
            order=np.empty((batch, width), np.int32),
            change=np.empty((batch, width)),
            chosen=np.empty((batch, k), np.int32),
            number=np.empty(batch, np.int64),
            weights=np.empty((batch, k)),
            exact=np.empty(batch, bool),
        )
        in_threads(
            lambda part: kernels.find(scores[part], *tree, kernels.work_of(dim, width, len(tree[0])), part_of(rows, part)),
            batch,
            PASSES * scores.size,
        )
        if not kernels.runs.none_empty(rows.number):
            return None
        return _Flips(kernels, rows, dim, kernels.runs.first_of(rows.number), tree)

    def arguments(self, part: slice) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray]:
        """See `PackedRows`."""
        return *self.tree, part_of(self.rows, part), self.first[part.start : part.stop + 1]


@lru_cache(maxsize=64)
def _tree(k: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The sets of flips as a tree: of each, the number of the set without its largest bit, and that bit, from 0."""
    sets = flip_sets(k, width)
    number = {flips: place for place, flips in enumerate(sets)}
    rest = [number[flips[1:]] for flips in sets]
    last = [flips[0] - 1 if flips else 0 for flips in sets]
    return np.array(rest, np.int32), np.array(last, np.int32)
