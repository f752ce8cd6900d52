"""The active set method on the CPU: all rows in arrays that are never moved, advanced by the compiled iteration."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ....kernels import in_threads
from ....kernels.bits import are_bits, in_words
from ....kernels.runs import first_of, row_of
from ....kernels.symmetric import SIDE, put, tiles_of
from ....kernels.vectors import Array
from ....kernels.workspace import borrow, give_back
from ....oracles.kernels.row_oracles import BitVectors
from ....oracles.row_kernels import row_oracle
from ...stats import SolverStats
from ..certificate import certified_stats
from ..limits import POLL, STALE, WEIGHT_PRUNE, Limits
from ..oracle import BatchOracle, Oracle
from ..packed_rows import room_for_atoms
from ..supports import PackedSupport, Support
from ..ties import Ties, row_scale
from . import bit_atoms, real_atoms, row_kernel, row_results, seen_bits
from .row_kernel import CompiledOracle, Rows, Scratch
from .row_results import Found, Places

# Slots to begin with, as long as the factorisations take no more than so many bytes, and half of them otherwise. Where rows run
# one after the other only what they use of their factorisation is ever touched: as many as there can be, up to so many bytes.
SLOTS = 64
BYTES = 2**27
# From so many coordinates on, only those that are seen to change get bits; not on cubes and budgets.
LONG = 512
TILE_BYTES = SIDE**2 * np.dtype(np.float64).itemsize


def solve(oracle: BatchOracle, max_iter: int, tol: float) -> Support:
    """`active_set.active_set` on the CPU, for at least one row."""
    return _solved(oracle, max_iter, tol).support()


def solve_packed(oracle: BatchOracle, max_iter: int, tol: float, dtype: torch.dtype) -> PackedSupport[SolverStats] | Support:
    """The same, packed and certified, with atoms in `dtype`; a `Support`, as it is, where structures are not 0/1."""
    state = _solved(oracle, max_iter, tol)
    return state.packed(oracle, dtype) if state.is_bits else state.support()


def solve_mean(oracle: BatchOracle, max_iter: int, tol: float) -> tuple[Tensor, SolverStats] | None:
    """The mean [B, D] of the same, certified, if structures are 0/1; none of them is written."""
    state = _solved_in_bits(oracle, oracle.start(), max_iter, tol)
    return None if state is None else state.mean(oracle)


def _solved(oracle: BatchOracle, max_iter: int, tol: float) -> "_CompiledRows":
    start = oracle.start()
    state = _solved_in_bits(oracle, start, max_iter, tol)
    if state is None:
        state = _CompiledRows(oracle, start, Limits(tol), is_bits=False, in_turn=False)
        state.ask(oracle, max_iter)
    return state


def _solved_in_bits(oracle: BatchOracle, start: Tensor, max_iter: int, tol: float) -> "_CompiledRows | None":
    """From the structures [B, D] to start from; None where some are not 0/1."""
    compiled = _compiled_oracle(oracle, start)
    if compiled is not None:
        any_may_change = isinstance(compiled.of_rows, BitVectors)
        state = _CompiledRows(oracle, start, Limits(tol), is_bits=True, in_turn=True, any_may_change=any_may_change)
        state.run(compiled, max_iter)
        return state
    if not are_bits(start.contiguous().numpy()):
        return None
    state = _CompiledRows(oracle, start, Limits(tol), is_bits=True, in_turn=False)
    if state.ask(oracle, max_iter):
        return state
    state.release()  # the first structures were 0/1, and others not
    return None


def _compiled_oracle(oracle: BatchOracle, start: Tensor) -> CompiledOracle | None:
    """The oracle as compiled, if it is, for rows that start from these structures [B, D]."""
    if not isinstance(oracle, Oracle):
        return None
    scores, ties, forbidden = oracle.target, oracle.ties, oracle.forbidden
    if forbidden is None:
        forbidden = torch.zeros(0, scores.shape[1], dtype=torch.bool, device="cpu")
    else:
        scores = scores.masked_fill(forbidden, -torch.inf)
    of_rows = row_oracle(oracle.polytope, scores)
    if of_rows is None:
        return None
    grid, tie_break, shut = (tensor.contiguous().numpy() for tensor in (ties.grid, ties.tie_break, forbidden))
    return CompiledOracle(of_rows, grid, tie_break, shut, in_words(start.numpy()))


def _room(batch: int, slots: int) -> Array:
    """Memory for factorisations, of anything."""
    return borrow((batch, tiles_of(slots), SIDE, SIDE), np.float64)


def _most_slots(width: int) -> int:
    """For structures of so many coordinates that are regularised: one more than there can be atoms, in whole blocks."""
    return -(-(width + 2) // SIDE) * SIDE


class _CompiledRows:
    """The twin of `tensor_rows.TensorRows`, for all rows of a batch from beginning to end.

    Args:
        oracle: of all rows.
        origin: [B, D] the structures to start from.
        limits: of the method.
        is_bits: whether structures are 0/1.
        in_turn: whether rows are to run one after the other.
        any_may_change: whether most coordinates are likely to change, be there ever so many.
    """

    def __init__(
        self, oracle: BatchOracle, origin: Tensor, limits: Limits, is_bits: bool, in_turn: bool, any_may_change: bool = False
    ) -> None:
        self.limits, self.is_bits = limits, is_bits
        long = origin.shape[1] >= LONG and not any_may_change
        self.kind: Any = (seen_bits if long else bit_atoms) if is_bits else real_atoms  # what follows is of its types
        # Those of all rows: an oracle of some of them is asked with ties that are broken already.
        ties = oracle.ties if isinstance(oracle, Oracle) else Ties(oracle.target[:0], oracle.target.new_empty(0))
        self.grid, self.tie_break = ties.grid.contiguous().numpy(), ties.tie_break.numpy()
        target, parts, batch = oracle.target, oracle.parts, len(origin)
        self._most = _most_slots(origin.shape[1] if parts is None else len(parts.regularized))
        slots = self._slots_to_begin_with(batch, in_turn)
        self.rows = Rows(
            atoms=self.kind.begin(target, origin, parts, slots),
            origin=origin.contiguous().numpy(),
            scale=row_scale(target if is_bits else target / real_atoms.units(origin)[:, None]).numpy(),
            some_are_free=parts is not None,
            inverse=_room(batch, slots),
            level=np.zeros((batch, slots)),
            on=np.zeros((batch, slots), bool),
            weights=np.zeros((batch, slots)),
            high=np.full(batch, SIDE),
            dropping=np.full(batch, -1),
            stalled=np.zeros(batch, np.int64),
            iterations=np.zeros(batch, np.int64),
            gap=np.full(batch, np.inf),
            exact=np.zeros(batch, bool),
            converged=np.zeros(batch, bool),
        )
        self.rows.inverse[:, 0] = 0
        self.rows.on[:, 0] = True
        self.rows.inverse[:, 0, 0, 0], self.rows.level[:, 0], self.rows.weights[:, 0] = 1, 1, 1

    def _slots_to_begin_with(self, batch: int, in_turn: bool) -> int:
        choices = (self._most if in_turn else SLOTS, SLOTS, SLOTS // 2)
        fitting = (slots for slots in choices if batch * tiles_of(slots) * TILE_BYTES <= BYTES)
        return min(self._most, max(SIDE, next(fitting, choices[-1])))

    def run(self, compiled: CompiledOracle, most: int) -> None:
        """All iterations, `most` at most, with this oracle."""
        live = np.arange(len(self.rows.on))

        def run(part: slice) -> None:
            work = np.empty((2, self.rows.origin.shape[1]))
            row_kernel.run(live[part], compiled, work, most, self.limits, self.rows, self._scratch())

        while len(live):
            in_threads(run, len(live))
            live = live[~self.rows.converged[live] & (self.rows.iterations[live] < most)]
            stale = self.rows.stalled[live] >= STALE
            self._renew(live[stale])
            if not stale.all():
                self._widen()

    def ask(self, oracle: BatchOracle, most: int) -> bool:
        """All iterations, `most` at most, asking this oracle; False if its answers are not 0/1, as the state wants them."""
        live = np.arange(len(self.rows.on))
        for question in range(most):
            going = ~self.rows.converged[live] & (self.rows.iterations[live] < most)
            count = int(going.sum())
            if count == 0:
                break
            if count <= 0.75 * len(live):
                live, oracle = live[going], oracle.rows(torch.from_numpy(going))
            if question % POLL == 0:
                self._renew(live[self.rows.stalled[live] >= STALE])
            if not self._iterate(live, oracle, most):
                return False
        return True

    def _iterate(self, live: Array, oracle: BatchOracle, most: int) -> bool:
        """The rows `live` [n], whose oracle this is, to its answers and on to their next questions, as in `ask`."""
        asked = np.empty((len(live), self.rows.origin.shape[1]))

        def ask(part: slice) -> None:
            row_kernel.gradients(live[part], self.grid, self.tie_break, self.rows, asked[part])

        in_threads(ask, len(live), asked.size)
        if isinstance(oracle, Oracle):
            answer = oracle.answer(torch.from_numpy(asked))
        else:
            answer = oracle(torch.from_numpy(asked), torch.from_numpy(self.rows.exact[live]))
        vertex = answer.contiguous().numpy()
        if self.is_bits and not are_bits(vertex):
            return False
        slots = self.rows.on.shape[1]
        crowded = live[self.rows.high[live] == slots]
        if len(crowded) and self.rows.on[crowded].all(1).any():
            self._widen()

        def advance(part: slice) -> None:
            row_kernel.advance(live[part], vertex[part], most, self.limits, self.rows, self._scratch())

        # About half of the slots are in use, in the middle of the run.
        in_threads(advance, len(live), len(live) * (slots // 2) ** 2)
        return True

    def _scratch(self) -> Scratch:
        """Room for what is computed of one row at a time."""
        return Scratch(self.kind.scratch(self.rows.atoms), *np.zeros((4, self.rows.on.shape[1])))

    def _renew(self, stale: Array) -> None:
        """Computes the factorisations of the rows `stale` [n] afresh."""
        for row in stale:
            on = self.rows.on[row].nonzero()[0]
            atoms = self.kind.atoms(row, on, self.rows.atoms)
            factor, info = torch.linalg.cholesky_ex(torch.from_numpy(atoms @ atoms.T + 1))
            self.rows.stalled[row] = 0
            if info != 0:
                continue
            fresh = torch.cholesky_inverse(factor).numpy()
            if np.isfinite(fresh).all():
                whole = np.zeros((self.rows.high[row], self.rows.high[row]))
                whole[np.ix_(on, on)] = fresh
                put(whole, self.rows.inverse[row])
                self.rows.level[row, on] = fresh.sum(1)

    def _widen(self) -> None:
        """Makes room for half as many atoms more."""
        rows = self.rows
        batch, before = rows.on.shape
        slots = min(-(-3 * before // (2 * SIDE)) * SIDE, self._most)
        inverse = _room(batch, slots)
        inverse[:, : tiles_of(before)] = rows.inverse
        give_back(rows.inverse)
        self.rows = rows._replace(
            atoms=self.kind.wider(rows.atoms, slots),
            inverse=inverse,
            level=np.pad(rows.level, ((0, 0), (0, slots - before))),
            on=np.pad(rows.on, ((0, 0), (0, slots - before))),
            weights=np.pad(rows.weights, ((0, 0), (0, slots - before))),
        )

    def support(self) -> Support:
        """As it stands, without the lightest atoms. Its memory is given back: this is the end."""
        count, margin = self._pruned()
        batch, width, dim = len(count), max(1, count.max(initial=0)), self.rows.origin.shape[1]
        every = np.arange(batch)
        places = Places(every * width, every * width**2, np.full(batch, width))
        found = self._write(places, np.zeros(batch * width), np.zeros(batch * width**2))
        structures: Any = found.structures
        if self.is_bits:
            atoms = np.zeros((batch * width, dim))
            row_results.unpack(places.first, count, structures.first, structures.words, atoms)
        else:
            atoms = structures.atoms
        # Real-valued atoms may be close to dependent, and what updates have left of their factorisation inexact.
        kept = torch.from_numpy(found.sensitivity).view(batch, width, width) if self.is_bits else None
        probs = torch.from_numpy(found.probs).view(batch, width)
        return Support(torch.from_numpy(atoms).view(batch, width, dim), probs, self._stats(margin), kept)

    def packed(self, oracle: BatchOracle, dtype: torch.dtype) -> PackedSupport[SolverStats]:
        """The same, packed, for 0/1 structures, with the gap of what is left, for which the oracle may be asked."""
        count, margin = self._pruned()
        first, block = first_of(count), first_of(count**2)
        probs = torch.empty(first[-1], dtype=torch.float64, device="cpu")
        found = self._write(Places(first[:-1], block[:-1], count), probs.numpy(), np.empty(block[-1]))
        stats = self._certified(oracle, found, first, margin)
        structures: Any = found.structures
        array = room_for_atoms(len(probs), self.rows.origin.shape[1], dtype)

        def unpack(part: slice) -> None:
            row_results.unpack(first[part], count[part], structures.first[part], structures.words, array)

        in_threads(unpack, len(count), array.size)
        row = torch.from_numpy(row_of(first))
        jacobian = PackedJacobian(first, block, structures.first, structures.words, found.sensitivity, array.shape[1])
        return PackedSupport(torch.from_numpy(array).to(dtype), probs, row, torch.from_numpy(first), stats, jacobian)

    def mean(self, oracle: BatchOracle) -> tuple[Tensor, SolverStats]:
        """The mean [B, D] alone, likewise: to the last bit that of what `packed` has in float64."""
        count, margin = self._pruned()
        first, block = first_of(count), first_of(count**2)
        found = self._write(Places(first[:-1], block[:-1], count), np.empty(first[-1]), np.empty(block[-1]))
        stats = self._certified(oracle, found, first, margin)
        structures: Any = found.structures

        def combine(part: slice) -> None:
            here = slice(part.start, part.stop + 1)
            row_results.combine_rows(first[here], structures.first[part], structures.words, found.probs, found.means[part])

        in_threads(combine, len(count), structures.words.size)
        return torch.from_numpy(found.means), stats

    def _certified(self, oracle: BatchOracle, found: Found, first: Array, margin: Array) -> SolverStats:
        """With the gap of what is left of the rows, which begin at `first` [B + 1]."""
        lightest = torch.from_numpy(np.minimum.reduceat(found.probs, first[:-1]))
        return certified_stats(oracle, self._stats(margin), lightest, torch.from_numpy(found.means))

    def _pruned(self) -> tuple[Array, Array]:
        """Takes out the lightest atoms; how many are left [B], and the smallest weight before [B]."""
        batch, least = len(self.rows.high), WEIGHT_PRUNE * self.limits.tol
        margin, count, every = np.empty(batch), np.zeros(batch, np.int64), np.arange(batch)

        def prune(part: slice) -> None:
            row_results.prune(every[part], least, self.rows, margin, count, self._scratch())

        in_threads(prune, batch, self.rows.inverse.size)
        return count, margin

    def _write(self, places: Places, probs: Array, sensitivity: Array) -> Found:
        """What there is to say of the supports, at these places. The memory of the state is given back."""
        found = Found(
            probs=probs,
            sensitivity=sensitivity,
            means=np.empty_like(self.rows.origin),
            structures=self.kind.structures(len(probs), self.rows.atoms),
        )
        every = np.arange(len(self.rows.origin))

        def write(part: slice) -> None:
            row_results.write(every[part], self.rows, places, found, self._scratch())

        in_threads(write, len(every), self.rows.inverse.size)
        self.release()
        return found

    def release(self) -> None:
        """Gives the memory back."""
        self.kind.release(self.rows.atoms)
        give_back(self.rows.inverse)

    def _stats(self, margin: Array) -> SolverStats:
        rows, state = self.rows, cast(Any, self.rows.atoms)
        gap = rows.gap if self.is_bits else rows.gap * state.unit**2
        return SolverStats(*map(torch.from_numpy, (rows.iterations, gap, rows.converged, margin)))


@dataclass(frozen=True)
class PackedJacobian:
    """P A' row by row, for packed atoms: paper eq. 17.

    Attributes:
        start, block: [B + 1] int64 arrays, where the atoms and the sensitivity of each row begin.
        first: [B, W], the first atom of each row in bits.
        words: [N, W], where each atom is not the first of its row.
        sensitivity: P of each row, [S, S], flat.
        dim: D.
    """

    start: Array
    block: Array
    first: Array
    words: Array
    sensitivity: Array
    dim: int

    def pull(self, gradient: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.first), self.dim, dtype=torch.float64, device="cpu")
        given, out = gradient.contiguous().numpy(), result.numpy()
        in_threads(lambda part: row_results.pull(*self._part(part), given, out[part]), len(out), self.sensitivity.size)
        return result

    def push(self, change: Tensor) -> Tensor:
        """See `Jacobian`."""
        result = torch.empty(len(self.words), dtype=torch.float64, device="cpu")
        given, out = change.contiguous().numpy(), result.numpy()
        in_threads(lambda part: row_results.push(*self._part(part), given[part], out), len(given), self.sensitivity.size)
        return result

    def _part(self, part: slice) -> tuple[Array, Array, Array, Array, Array]:
        rows = slice(part.start, part.stop + 1)
        return self.start[rows], self.block[rows], self.first[part], self.words, self.sensitivity
