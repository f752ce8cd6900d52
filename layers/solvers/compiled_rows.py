"""The active set method on the CPU: all rows in arrays that are never moved, advanced by the compiled iteration."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels import in_threads
from ..kernels.workspace import borrow, give_back
from ..stats import SolverStats
from . import row_kernel, row_results
from .base import BatchOracle, Oracle, PackedSupport, Support, Ties, row_scale
from .kinds import kind_of
from .limits import POLL, STALE, WEIGHT_PRUNE, Limits
from .packed_rows import first_of
from .row_kernel import BLOCK, Array, CompiledOracle, Problem, Rows, Scratch
from .row_results import Places

# Slots to begin with; doubled whenever a row has used them all. Where rows run one after the other only what they use of their
# factorisation is ever touched: as many as there can be, up to so many bytes.
SLOTS = 32
BYTES = 2**27


class Packed(NamedTuple):
    """A packed support, the means [B, D] float64 and the smallest weight of each row [B]."""

    support: PackedSupport[SolverStats]
    mean: Tensor
    lightest: Tensor


def solve(oracle: BatchOracle, max_iter: int, tol: float) -> Support:
    """`active_set.active_set` on the CPU, for at least one row."""
    return _solved(oracle, max_iter, tol).support()


def solve_packed(oracle: BatchOracle, max_iter: int, tol: float, dtype: torch.dtype) -> Packed | Support:
    """The same, packed, with atoms in `dtype`; a `Support` where structures are real-valued."""
    state = _solved(oracle, max_iter, tol)
    return state.packed(dtype) if state.rows.atoms.dtype == np.int8 else state.support()


def _solved(oracle: BatchOracle, max_iter: int, tol: float) -> "_CompiledRows":
    compiled = _compiled_oracle(oracle)
    state = _CompiledRows(oracle, Limits(tol), compiled is not None)
    live = np.arange(len(oracle.target))
    if compiled is not None:
        state.run(live, compiled, max_iter)
        return state
    for iteration in range(max_iter):
        going = ~state.rows.converged[live]
        count = int(going.sum())
        if count == 0:
            break
        if count <= 0.75 * len(live):
            live, oracle = live[going], oracle.rows(torch.from_numpy(going))
        if iteration % POLL == 0:
            state.renew(live[state.rows.stalled[live] >= STALE])
        state.iterate(live, oracle)
    return state


def _compiled_oracle(oracle: BatchOracle) -> CompiledOracle | None:
    """The oracle as compiled, if it is."""
    if not isinstance(oracle, Oracle) or oracle.forbidden is not None or oracle.parts is not None:
        return None
    kind, ties = kind_of(oracle.polytope), oracle.ties
    if kind is None:
        return None
    return CompiledOracle(kind, getattr(oracle.polytope, "budget", 0), ties.grid.contiguous().numpy(), ties.tie_break.numpy())


def _most_slots(width: int) -> int:
    """For structures of so many coordinates that are regularised: one more than there can be atoms, in whole blocks."""
    return -(-(width + 2) // BLOCK) * BLOCK


class _CompiledRows:
    """The twin of `tensor_rows.TensorRows`, for all rows of a batch from beginning to end.

    Args:
        oracle: of all rows.
        limits: of the method.
        in_turn: whether rows are to run one after the other.
    """

    def __init__(self, oracle: BatchOracle, limits: Limits, in_turn: bool) -> None:
        self.limits = limits
        # Those of all rows: an oracle of some of them is asked with ties that are broken already.
        ties = oracle.ties if isinstance(oracle, Oracle) else Ties(oracle.target[:0], oracle.target.new_empty(0))
        self.grid, self.tie_break = ties.grid.contiguous().numpy(), ties.tie_break.numpy()
        origin = oracle.start()
        largest = origin.abs().amax(-1)
        unit = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1), 1)
        target = oracle.target / unit[:, None]
        parts, every = oracle.parts, torch.arange(origin.shape[1], device=origin.device)
        regularized, rest = (every, every[:0]) if parts is None else (parts.regularized, parts.rest)
        relative = (oracle.target - origin) / unit[:, None]
        fixed = (relative[:, regularized], target[:, rest], origin, unit, row_scale(target), regularized, rest)
        self.problem = Problem(*(tensor.contiguous().numpy() for tensor in fixed))
        batch, dim, width = *origin.shape, len(regularized)
        slots = _most_slots(width)
        if not in_turn or batch * slots * slots * np.dtype(np.float64).itemsize > BYTES:
            slots = min(SLOTS, slots)
        kind = np.int8 if row_kernel.are_signs(self.problem.origin) else np.float64
        self.rows = Rows(
            atoms=borrow((batch, slots, width), kind),
            vertices=borrow((batch, slots, dim), kind),
            inverse=borrow((batch, slots, slots), np.float64),
            gram=borrow((batch, slots, slots) if kind is np.int8 else (batch, 0, 0), np.float32),
            on=np.zeros((batch, slots), bool),
            weights=np.zeros((batch, slots)),
            gains=np.zeros((batch, slots)),
            aims=np.zeros((batch, slots)),
            high=np.full(batch, BLOCK),
            mean=np.zeros((batch, width)),
            reach=np.zeros((batch, width)),
            reach_of_rest=np.zeros((batch, dim - width)),
            dropping=np.full(batch, -1),
            stalled=np.zeros(batch, np.int64),
            iterations=np.zeros(batch, np.int64),
            gap=np.full(batch, np.inf),
            exact=np.zeros(batch, bool),
            converged=np.zeros(batch, bool),
        )
        self.rows.atoms[:, 0], self.rows.vertices[:, 0] = 0, self.problem.origin
        self.rows.inverse[:, :BLOCK, :BLOCK], self.rows.gram[:, :BLOCK, :BLOCK] = 0, 0
        self.rows.on[:, 0], self.rows.inverse[:, 0, 0], self.rows.weights[:, 0] = True, 1, 1

    def run(self, live: Array, compiled: CompiledOracle, most: int) -> None:
        """All iterations of the rows `live` [n], `most` at most, with this oracle."""

        def run(part: slice) -> None:
            work = np.empty((3, self.problem.origin.shape[1]))
            row_kernel.run(live[part], compiled, work, most, self.limits, self.problem, self.rows, self._scratch())

        while len(live):
            in_threads(run, len(live))
            live = live[~self.rows.converged[live] & (self.rows.iterations[live] < most)]
            stale = self.rows.stalled[live] >= STALE
            self.renew(live[stale])
            if not stale.all():
                self._move(self.rows.atoms.dtype.type)

    def iterate(self, live: Array, oracle: BatchOracle) -> None:
        """One iteration of the rows `live` [n], whose oracle this is."""
        problem, limits = self.problem, self.limits
        asked = np.empty((len(live), problem.origin.shape[1]))

        def ask(part: slice) -> None:
            row_kernel.residuals(live[part], self.grid, self.tie_break, problem, self.rows, asked[part])

        in_threads(ask, len(live), asked.size)
        if isinstance(oracle, Oracle):
            answer = oracle.answer(torch.from_numpy(asked))
        else:
            answer = oracle(torch.from_numpy(asked), torch.from_numpy(self.rows.exact[live]))
        vertex = answer.contiguous().numpy()
        exactly = self.rows.atoms.dtype == np.float64 or row_kernel.are_signs(vertex)
        if not exactly or self.rows.on[live].all(1).any():
            self._move(self.rows.atoms.dtype.type if exactly else np.float64)

        def advance(part: slice) -> None:
            row_kernel.advance(live[part], vertex[part], limits, problem, self.rows, self._scratch())

        in_threads(advance, len(live), len(live) * self.rows.on.shape[1] ** 2)

    def _scratch(self) -> Scratch:
        """Room for what is computed of one row at a time."""
        width, slots = self.rows.mean.shape[1], self.rows.on.shape[1]
        return Scratch(np.empty(width), np.empty(width, self.rows.atoms.dtype), *np.zeros((5, slots)))

    def renew(self, stale: Array) -> None:
        """Computes the factorisations of the rows `stale` [n] afresh."""
        for row in stale:
            on = self.rows.on[row].nonzero()[0]
            atoms = self.rows.atoms[row, on].astype(np.float64)
            factor, info = torch.linalg.cholesky_ex(torch.from_numpy(atoms @ atoms.T + 1))
            fresh = torch.cholesky_inverse(factor).numpy()
            if info == 0 and np.isfinite(fresh).all():
                self.rows.inverse[row][np.ix_(on, on)] = fresh
            self.rows.stalled[row] = 0

    def support(self) -> Support:
        """As it stands, without the lightest atoms. Its memory is given back: this is the end."""
        count, margin = self._pruned()
        batch, width, dim = len(count), max(1, count.max(initial=0)), self.problem.origin.shape[1]
        every = np.arange(batch)
        atoms, probs, sensitivity = np.zeros((batch, width, dim)), np.zeros((batch, width)), np.zeros((batch, width, width))
        places = Places(every * width, every * width**2, np.full(batch, width))
        self._write(places, atoms.reshape(-1, dim), probs.reshape(-1), sensitivity.reshape(-1))
        # Real-valued atoms may be close to dependent, and what updates have left of their factorisation inexact.
        kept = torch.from_numpy(sensitivity) if self.rows.atoms.dtype == np.int8 else None
        return Support(torch.from_numpy(atoms), torch.from_numpy(probs), self._stats(margin), kept)

    def packed(self, dtype: torch.dtype) -> Packed:
        """The same, packed, for structures of small integers."""
        count, margin = self._pruned()
        first, block = first_of(count), first_of(count**2)
        atoms = np.empty((first[-1], self.problem.origin.shape[1]), np.int8)
        probs, sensitivity = torch.empty(len(atoms), dtype=torch.float64), np.empty(block[-1])
        means = self._write(Places(first[:-1], block[:-1], count), atoms, probs.numpy(), sensitivity)
        row = torch.from_numpy(np.repeat(np.arange(len(count)), count))
        jacobian = PackedJacobian(first, block, atoms, sensitivity)
        lightest = np.minimum.reduceat(probs.numpy(), first[:-1])
        support = PackedSupport(
            torch.from_numpy(atoms).to(dtype), probs, row, torch.from_numpy(first), self._stats(margin), jacobian
        )
        return Packed(support, torch.from_numpy(means), torch.from_numpy(lightest))

    def _pruned(self) -> tuple[Array, Array]:
        """Takes out the lightest atoms; how many are left [B], and the smallest weight before [B]."""
        batch, least = len(self.rows.high), WEIGHT_PRUNE * self.limits.tol
        margin, count, every = np.empty(batch), np.zeros(batch, np.int64), np.arange(batch)

        def prune(part: slice) -> None:
            row_results.prune(every[part], least, self.rows, self.problem, margin, count)

        in_threads(prune, batch, self.rows.inverse.size)
        return count, margin

    def _write(self, places: Places, atoms: Array, probs: Array, sensitivity: Array) -> Array:
        """Writes what is given, and returns the means. The memory is given back."""
        every, means = np.arange(len(self.rows.high)), np.empty_like(self.problem.origin)

        def write(part: slice) -> None:
            row_results.write(every[part], self.rows, self.problem, places, atoms, probs, sensitivity, means)

        in_threads(write, len(every), self.rows.inverse.size)
        for array in (self.rows.atoms, self.rows.vertices, self.rows.inverse, self.rows.gram):
            give_back(array)
        return means

    def _stats(self, margin: Array) -> SolverStats:
        rows, unit = self.rows, self.problem.unit
        return SolverStats(*map(torch.from_numpy, (rows.iterations, rows.gap * unit**2, rows.converged, margin)))

    def _move(self, kind: type[np.generic]) -> None:
        """Makes room for twice as many atoms, of this dtype."""
        rows = self.rows
        slots = rows.on.shape[1]
        wider = min(2 * slots, _most_slots(rows.mean.shape[1]))

        def moved(old: Array, dtype: type[np.generic], *axes: int) -> Array:
            shape = tuple(wider if axis in axes else size for axis, size in enumerate(old.shape))
            new = borrow(shape, dtype)
            new[tuple(slice(size) for size in old.shape)] = old
            give_back(old)
            return new

        def padded(old: Array) -> Array:
            return np.pad(old, ((0, 0), (0, wider - slots)))

        self.rows = rows._replace(
            atoms=moved(rows.atoms, kind, 1),
            vertices=moved(rows.vertices, kind, 1),
            inverse=moved(rows.inverse, np.float64, 1, 2),
            gram=moved(rows.gram, np.float32, 1, 2) if kind is np.int8 else np.empty((len(rows.on), 0, 0), np.float32),
            on=padded(rows.on),
            weights=padded(rows.weights),
            gains=padded(rows.gains),
            aims=padded(rows.aims),
        )


@dataclass(frozen=True)
class PackedJacobian:
    """P A' row by row, for packed atoms: paper eq. 17.

    Attributes:
        first, block: [B + 1] int64 arrays, where the atoms and the sensitivity of each row begin.
        atoms: [N, D] int8 array, its own: what is done to those of the distribution does not change the derivative.
        sensitivity: P of each row, [S, S], flat.
    """

    first: Array
    block: Array
    atoms: Array
    sensitivity: Array

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.first) - 1, self.atoms.shape[1], dtype=torch.float64)
        given, out = gradient.contiguous().numpy(), result.numpy()
        in_threads(lambda part: row_results.pull(*self._part(part), given, out[part]), len(out), self.sensitivity.size)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.atoms), dtype=torch.float64)
        given, out = change.contiguous().numpy(), result.numpy()
        in_threads(lambda part: row_results.push(*self._part(part), given[part], out), len(given), self.sensitivity.size)
        return result

    def _part(self, part: slice) -> tuple[Array, Array, Array, Array]:
        rows = slice(part.start, part.stop + 1)
        return self.first[rows], self.block[rows], self.atoms, self.sensitivity
