"""Sorted decompositions in one compiled pass: structures told by where they change, and weights by what lies between.

Let each coordinate be an interval of a line, of length mu_i, and lay a grid of unit steps over it, moved by u in [0, 1). The
coordinates that the grid hits are a structure, and for u at random each is hit with probability mu_i. From u = 0 to 1 the
structure changes at cuts only, where the grid passes the end of an interval; the weight of a structure is the length between
two cuts. On the cube all intervals begin at one place, and the structures are nested (counted from the other end of the line);
on the budget polytope they lie end to end, so that the structures have the same size (systematic sampling; Madow 1949).

A cut is a sum of means, and a mean is t_i, or t_i less the mean of all that lie between 0 and 1 where the budget binds. So the
weights' derivative in the scores is a difference of sums of differences, and nothing has to be solved: on such a support it is
that of the KKT system (paper eq. 17), because the structures span the face of the solution.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import compiled, in_threads, in_triton, part_of
from ...oracles import BernoulliCube, Budget, Polytope
from ..stats import SolverStats
from .packed_rows import PackedRows
from .supports import PackedSupport

# To find the structures takes as long as to pass over the scores so many times: to sort them, and to look for the multiplier of
# a budget as well.
PASSES, PASSES_CHAINED = 32, 128


def in_one_pass(scores: Tensor, polytope: Polytope, dtype: torch.dtype) -> PackedSupport[SolverStats] | None:
    """What `SortedDecomposition` finds on the cube and the budget polytope, with the weights' derivative; None: not so.

    There is no kernel for a class derived from theirs, nor without Numba, or Triton on a GPU. And one row for which this form
    does not hold sends the whole batch the other way, which is slower and may differ in the last digits: NaN, and on a budget
    cuts that coincide (sums of the means that differ by an integer: the structures do not span the face).

    Args:
        scores: t, [B, D] float64, finite or `-inf`.
        polytope: which.
        dtype: of the atoms.

    Cost: O(B D log D) besides the N D entries of the packed atoms; O(B D) for the derivative. On a GPU O(B D^2) comparisons,
    of which each row's run at once.
    """
    if type(polytope) not in (BernoulliCube, Budget):
        return None
    form = "chained" if isinstance(polytope, Budget) else "nested"
    on_gpu = in_triton(f".kernels.triton_{form}", __package__, "solve_packed", scores.device)
    if on_gpu is not None:
        return on_gpu(scores, polytope, dtype)
    kernels = f".kernels.{form}_rows"
    if compiled(kernels, __package__, "find", scores.device) is None:
        return None
    cuts = _Cuts.of(scores, polytope, _module(kernels))
    if cuts is None:
        return None
    found = (np.zeros(len(cuts.rows.gap), np.int64), cuts.rows.gap, cuts.rows.converged, cuts.rows.margin)
    return cuts.packed(SolverStats(*map(torch.from_numpy, found)), dtype, all_converged=bool(cuts.rows.converged.all()))


class _Cuts(PackedRows):
    """The structures of a batch, by the kernels of `nested_rows` or `chained_rows`."""

    @staticmethod
    def of(scores: Tensor, polytope: Polytope, kernels: Any) -> "_Cuts | None":
        """The structures of scores [B, D] float64; None where one row has another form."""
        target = scores.contiguous().numpy()
        batch, dim = target.shape
        lines, numbers = np.empty((4, batch, dim), np.int32), np.empty((2, batch))
        counts, flags, weights = np.zeros((2, batch), np.int64), np.empty((2, batch), bool), np.empty((batch, dim + 1))
        rows = kernels.Rows(*lines[:2], counts[0], *lines[2:], counts[1], flags[0], weights, *numbers, flags[1])
        given, passes = ((polytope.budget, polytope.exactly), PASSES_CHAINED) if isinstance(polytope, Budget) else ((), PASSES)

        def find(part: slice) -> None:
            kernels.find(target[part], *given, kernels.line_of(dim), part_of(rows, part))

        in_threads(find, batch, passes * target.size)
        if not kernels.runs.none_empty(rows.number):
            return None
        return _Cuts(kernels, rows, dim, kernels.runs.first_of(rows.number))

    def arguments(self, part: slice) -> tuple[Any, np.ndarray]:
        """See `PackedRows`."""
        return part_of(self.rows, part), self.first[part.start : part.stop + 1]


@cache
def _module(name: str) -> Any:
    return import_module(name, __package__)
