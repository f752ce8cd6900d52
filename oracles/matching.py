"""Assignments of rows to columns: the Birkhoff polytope and its rectangular cousin."""

import math
import warnings

import torch
from torch import Tensor

from .base import MAX_ENUMERATED, Halfspaces, Polytope
from .birkhoff import project_assignments
from .checks import cannot_branch, check_count, check_dimension, check_finite, check_whole, outside_transforms, shown
from .kbest import check_moderate, partition
from .placement import lasting
from .written import WHOLE, check_structures, checked_numbers, refuse


class Matching(Polytope):
    """One-to-one assignments of n rows to m columns, n <= m: every row has one column, every column at most one row.

    Coordinates: [row i has column j], row-major, D = n m. For n = m the convex hull is the Birkhoff polytope of doubly
    stochastic matrices (Birkhoff 1946). `assigned` reads an assignment, `structures` writes one.

    Smaller problems in the same batch: `mask` gives rows and columns beyond a problem's size to each other; those assignments
    are part of the structure.

    Args:
        rows: n.
        columns: m; by default n.

    >>> Matching(2).maximize(torch.tensor([[0.0, 1, 1, 3]]))
    tensor([[1., 0., 0., 1.]])
    """

    takes_forbidden = True

    @lasting
    def __init__(self, rows: int, columns: int | None = None) -> None:
        self.rows = check_count("Matching: rows", rows, 1)
        self.columns = self.rows if columns is None else check_count("Matching: columns", columns, self.rows)
        self.dim = self.rows * self.columns

    def __repr__(self) -> str:
        return f"Matching(rows={self.rows}, columns={self.columns})"

    def maximize(self, scores: Tensor) -> Tensor:
        """The best assignment, by SciPy's solver (Jonker-Volgenant; Crouse 2016) on the CPU, problem by problem: O(n^2 m).

        Ties: as the solver breaks them, the same in every run and in any batch.

        Raises:
            ImportError: SciPy is not installed.
        """
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise ImportError("Matching needs SciPy's assignment solver: pip install scipy") from error
        with outside_transforms(scores, "Matching.maximize") as values:
            tables = self.table(values.double().cpu())
            forbidden = tables.isneginf()
            finite = torch.where(forbidden, 0, tables)
            # An assignment with one of these scores less than any without: where there is none without, the answer has a
            # forbidden pair on, by which solvers know it.
            lowest = -1 - 2 * self.rows * finite.abs().amax((-2, -1), keepdim=True)
            chosen = torch.zeros_like(tables)
            line = torch.arange(self.rows)
            for problem, table in enumerate(torch.where(forbidden, lowest, finite).numpy()):
                chosen[problem, line, torch.from_numpy(linear_sum_assignment(table, maximize=True)[1])] = 1
            return chosen.flatten(-2).to(values)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best assignments (Murty 1968): k rounds of n assignment problems a row."""
        check_moderate(scores, k)
        return partition(lambda forced, _: self.maximize(forced), scores, k, antichain=True)

    def project(self, scores: Tensor) -> Tensor:
        """The nearest table with these sums of rows and columns, [*B, D], by Newton's method; see `birkhoff`.

        Any number of derivatives. In float64 for any dtype, exact up to rounding; needs no SciPy. Its loops look at the data,
        so not under `torch.func.vmap`.

        Raises:
            ValueError: NaN or +inf scores; so many `-inf` that a row allows no assignment.

        Warns:
            RuntimeWarning: rows that did not settle. They hold a point of the polytope.
        """
        check_dimension(scores, self)
        check_finite(scores)
        flat = scores.double().reshape(math.prod(scores.shape[:-1]), self.dim)
        tables, settled = project_assignments(self.table(flat), self.rows == self.columns)
        mean = tables.flatten(-2)
        if not bool(settled.all()):
            blocked = flat.isneginf()
            chosen = torch.zeros_like(mean)
            some = ~settled & blocked.any(-1)
            chosen[some] = self.maximize(flat[some])
            impossible = ((chosen != 0) & blocked).any(-1).reshape(scores.shape[:-1])
            if impossible.any():
                raise ValueError(
                    f"scores row {shown(impossible.nonzero()[0])} allows no structure of {self!r}: every one needs a "
                    f"pair whose score is -inf; leave at least one assignment allowed"
                )
            mean = torch.where(some[:, None], chosen + (mean - mean.detach()), mean)
            warnings.warn(
                f"{self!r}: the projection of {int((~settled).sum())} of {len(settled)} rows did not settle; they hold points "
                f"of the polytope that are not optimal (do scores differ beyond all proportion? `-inf` forbids a pair)",
                RuntimeWarning,
                stacklevel=2,
            )
        return mean.reshape(scores.shape).to(scores.dtype)

    def table(self, scores: Tensor) -> Tensor:
        """[*B, D] -> [*B, n, m]."""
        return scores.unflatten(-1, (self.rows, self.columns))

    def assigned(self, structures: Tensor) -> Tensor:
        """[*B, D] -> [*B, n] int64: the column of each row, also of those beyond a smaller problem's size.

        Raises:
            ValueError: no structures, but means of some.
        """
        check_structures(f"{self!r}.assigned", structures, self.dim, "of a mean mu, `maximize(mu)` has an assignment")
        return self.table(structures).byte().argmax(-1)

    def structures(
        self, assigned: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The assignments of rows to these columns: the inverse of `assigned`, for targets.

        Args:
            assigned: [*B, n] ints, -1 beyond the rows of a smaller problem.
            rows, columns: [*B] ints, how many a problem has, as `mask` takes them; what is assigned beyond does not count.
            dtype: of the result, by default torch's.

        Returns:
            [*B, D].

        Raises:
            ValueError: another shape; no such column; two rows have the same; or no such problem: see `mask`.
        """
        name = f"{self!r}.structures"
        assigned = checked_numbers(name, assigned, self.rows, self.columns - 1, rows)
        there, row = assigned >= 0, torch.arange(self.rows, device=assigned.device)
        count = there.sum(-1, keepdim=True)
        last = count + (self.columns - self.rows)
        if columns is not None:
            if not isinstance(columns, Tensor) or columns.dtype not in WHOLE or columns.shape != assigned.shape[:-1]:
                got = f"{list(columns.shape)} {columns.dtype}" if isinstance(columns, Tensor) else type(columns).__name__
                raise ValueError(f"{name}: columns must be a tensor of ints {list(assigned.shape[:-1])}, not {got}")
            last = columns.to(assigned.device)[..., None]
        if not cannot_branch(assigned):
            self._check_sizes(count[..., 0], last[..., 0])
            refuse(name, assigned, there & (assigned >= last), "the problem has fewer columns")
            twice = ((assigned[..., :, None] == assigned[..., None, :]) & (row[:, None] > row)).any(-1)
            refuse(name, assigned, there & twice, "a row before has the same")
        chosen = torch.where(there, assigned, last + row - count)
        made = chosen[..., None] == torch.arange(self.columns, device=assigned.device)
        return made.flatten(-2).to(dtype or torch.get_default_dtype())

    def mask(self, scores: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """The scores [*B, D] of problems with fewer rows and columns [*B]: the rows beyond take the columns beyond, in order.

        Raises:
            ValueError: a problem has more rows than columns, or rows left without a column of their own beyond.
        """
        check_dimension(scores, self)
        check_whole(f"{self!r}: rows", rows, scores)
        columns = rows + (self.columns - self.rows) if columns is None else columns
        check_whole(f"{self!r}: columns", columns, scores)
        self._check_sizes(rows, columns)
        i = torch.arange(self.rows, device=scores.device)[:, None]
        j = torch.arange(self.columns, device=scores.device)
        rows, columns = rows[..., None, None], columns[..., None, None]
        inside = (i < rows) & (j < columns)
        padding = (i >= rows) & (j - columns == i - rows)
        table = self.table(scores)
        blocked = torch.where(padding, 0, torch.full_like(table, -torch.inf))
        return torch.where(inside, table, blocked).flatten(-2)

    def _check_sizes(self, rows: Tensor, columns: Tensor) -> None:
        """Raises ValueError unless problems of so many rows and columns [*B] are parts of this one."""
        rows, columns = torch.broadcast_tensors(rows, columns)
        spare = self.columns - self.rows
        wrong = ((rows < 1) | (rows > columns) | (columns - rows > spare) | (columns > self.columns)).nonzero()
        if len(wrong):
            have = int(rows[tuple(wrong[0])]), int(columns[tuple(wrong[0])])
            raise ValueError(
                f"{self!r}: problem {shown(wrong[0])} has {have[0]} rows and {have[1]} columns, but must have at least 1 row, "
                f"at most {self.columns} columns, and between 0 and {spare} more columns than rows"
            )

    def halfspaces(self) -> Halfspaces:
        """Rows sum to one, columns to at most one (to one where n = m)."""
        identity = torch.eye(self.dim, dtype=torch.float64)
        cells = self.table(identity)  # [D, n, m]
        lines, columns = cells.sum(-1).T, cells.sum(-2).T
        ones = torch.ones(self.columns, dtype=torch.float64)
        zeros = torch.zeros(self.dim, dtype=torch.float64)
        if self.rows == self.columns:
            return Halfspaces(-identity, zeros, torch.cat([lines, columns]), torch.ones(2 * self.rows, dtype=torch.float64))
        return Halfspaces(
            torch.cat([-identity, columns]), torch.cat([zeros, ones]), lines, torch.ones(self.rows, dtype=torch.float64)
        )

    def vertices(self) -> Tensor:
        """All m! / (m - n)! assignments.

        Raises:
            ValueError: there are more than `MAX_ENUMERATED`.
        """
        count = 1
        for taken in range(self.rows):
            count *= self.columns - taken
        if count > MAX_ENUMERATED:
            raise ValueError(f"{self!r} has {count} structures, too many to enumerate (limit {MAX_ENUMERATED})")
        chosen = torch.zeros(1, 0, dtype=torch.int64)
        for _ in range(self.rows):
            options = torch.arange(self.columns).expand(len(chosen), -1)
            free = (options[:, :, None] != chosen[:, None]).all(-1)
            at, column = free.nonzero(as_tuple=True)
            chosen = torch.cat([chosen[at], column[:, None]], 1)
        return torch.nn.functional.one_hot(chosen, self.columns).double().flatten(1)
