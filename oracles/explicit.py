"""A polytope given by the list of its vertices."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Polytope
from .checks import cannot_branch, check_dimension
from .gibbs import EnumeratedGibbs
from .parts import Parts
from .placement import lasting, placed
from .selection import first_few


class Explicit(Polytope):
    """conv{rows of `vertices`}: every operation by enumeration, O(V D) a row.

    Ties go to the lower row where the sums <row, scores> are exact in float64. Sums that are equal on paper and not as rounded
    are ordered by their rounding, which may depend on the batch; solvers ask with rounded scores, and do not mind.

    Columns should be of like sizes. Solvers measure structures by the largest coordinate, and float64 holds the others to some
    1e-8 of it: where one column is 1e6 times another, the mean of the small one may be wrong on rows that count as converged
    (`stats.gap` bounds the squared error), and weights may be refused as not determined.

    Args:
        vertices: [V, D] tensor, array or nested list of any real dtype, or a sequence of V tensors [D] of one dtype. Rows
            must be distinct; they need not be 0/1, nor all be extreme. Kept in float64; structures are returned in the
            dtype of the scores.
        regularized: see `Polytope.regularized`.

    Raises:
        ValueError: no vertices, a wrong number of dimensions, unequal dtypes, a NaN or infinity, a repeated row; `regularized`
            does not name coordinates.
    """

    takes_forbidden = True

    @lasting
    def __init__(
        self,
        vertices: Tensor | np.ndarray | Sequence[Tensor] | Sequence[Sequence[float]],
        regularized: slice | Tensor | None = None,
    ) -> None:
        table = _table(vertices)
        if table.dim() != 2 or 0 in table.shape:
            raise ValueError(f"Explicit needs vertices [V, D] with V, D >= 1, not a tensor of shape {tuple(table.shape)}")
        if table.is_complex() or not table.isfinite().all():
            raise ValueError("Explicit needs real, finite vertices; a row holds a complex number, NaN or infinity")
        table = table.detach().to(torch.float64, copy=True)
        if len(table.unique(dim=0)) != len(table):
            raise ValueError(
                f"Explicit needs distinct vertices, but {len(table) - len(table.unique(dim=0))} of {len(table)} rows repeat "
                f"an earlier one; pass vertices.unique(dim=0)"
            )
        self.dim = table.shape[1]
        self._vertices = table
        self.regularized = regularized.clone() if isinstance(regularized, Tensor) else regularized
        Parts.of(self)  # a bad one is said here

    def __repr__(self) -> str:
        partly = "" if self.regularized is None else f", regularized={self.regularized}"
        return f"Explicit(vertices=[{len(self._vertices)}, {self.dim}]{partly})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The row of largest inner product."""
        return placed(self._vertices, scores.device, scores.dtype)[self._totals(scores).argmax(-1)]

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best rows: see `first_few`."""
        count = min(k, len(self._vertices))
        totals, order = first_few(self._totals(scores), count, descending=True)
        valid = scores.new_zeros(*scores.shape[:-1], k, dtype=torch.bool)
        valid[..., :count] = totals > -torch.inf
        vertices = scores.new_zeros(*scores.shape[:-1], k, self.dim)
        vertices[..., :count, :] = placed(self._vertices, scores.device, scores.dtype)[order]
        return vertices * valid[..., None], valid

    def gibbs(self, scores: Tensor) -> EnumeratedGibbs:
        """softmax over the rows' scores."""
        check_dimension(scores, self)
        return EnumeratedGibbs(scores, placed(self._vertices, scores.device, scores.dtype))

    def vertices(self) -> Tensor:
        """The rows as given, [V, D] float64."""
        return self._vertices.clone()

    def _totals(self, scores: Tensor) -> Tensor:
        """<row, scores> in float64, -inf for a row that a score of -inf forbids: [*B, V]."""
        check_dimension(scores, self)
        precise = scores.double()
        table = placed(self._vertices, scores.device, torch.float64)
        minus_infinity = precise.isneginf()
        # To look on a GPU would take longer than to compute what is then not needed.
        if precise.device.type == "cpu" and not cannot_branch(precise) and not minus_infinity.any():
            return precise @ table.T
        forbidden = (minus_infinity.double() @ (table != 0).double().T) > 0
        return (torch.where(minus_infinity, 0, precise) @ table.T).masked_fill(forbidden, -torch.inf)


def _table(vertices: Tensor | np.ndarray | Sequence[Tensor] | Sequence[Sequence[float]]) -> Tensor:
    if isinstance(vertices, Tensor):
        return vertices
    if isinstance(vertices, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(vertices))
    rows = [row if isinstance(row, Tensor) else torch.tensor(row, dtype=torch.float64) for row in vertices]
    dtypes = {row.dtype for row in rows}
    if len(dtypes) > 1:
        raise ValueError(
            f"Explicit needs vertices of one dtype, but they have {', '.join(sorted(map(str, dtypes)))}; "
            f"convert them, e.g. [row.double() for row in vertices]"
        )
    if len({tuple(row.shape) for row in rows}) > 1:
        raise ValueError(f"Explicit needs vertices of one shape [D], not {sorted({tuple(row.shape) for row in rows})}")
    return torch.stack(rows) if rows else torch.zeros(0, 0)
