"""The active set method's iteration on a batch of rows, in tensor operations: for any device and any oracle."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import in_triton
from ...oracles import Polytope
from ...oracles.checks import cannot_branch
from ..stats import SolverStats
from .limits import PIVOT_NOISE, POLL, SETTLED, STALE, WEIGHT_NOISE, WEIGHT_PRUNE
from .oracle import BatchOracle, Oracle
from .supports import Support, used_first
from .ties import Ties, power_of_two, row_scale
from .working_set import WorkingSet


class TensorRows:
    """The state of the rows that are being worked on, in tensors.

    Args:
        oracle: of these rows.
        max_iter: iterations of each at most.
    """

    def __init__(self, oracle: BatchOracle, max_iter: int) -> None:
        self.oracle = oracle
        self.origin = oracle.start()
        # The working set holds atoms relative to the origin and in units of its largest coordinate (a power of two, so
        # exact; 1 for 0/1 structures): tolerances are those of structures of size 1. It holds the regularised coordinates R;
        # of the others an atom's gain is enough.
        largest = self.origin.abs().amax(-1, keepdim=True)
        self.unit = torch.where(largest > 0, power_of_two((torch.frexp(largest).exponent - 1).clamp(min=-1022)), 1)
        self.target = self._split((oracle.target - self.origin) / self.unit)[0].contiguous()  # [B, R]
        self.prices = self._split(oracle.target / self.unit)[1]  # [B, D - R]
        self.vertices = self.origin[:, None]  # the atoms as the oracle gave them, slot by slot: x - o + o may not be x
        self.working = WorkingSet(torch.zeros_like(self.target), POLL + 1)
        self.weights = torch.zeros_like(self.working.inverse[:, 0])
        self.weights[:, 0] = 1
        self.gains = torch.zeros_like(self.weights)  # [B, S] <a_s, t> over the coordinates that are not regularised
        self.no_gain = torch.zeros_like(self.weights[:, 0])
        self.mean = torch.zeros_like(self.target)
        self.scale = row_scale(oracle.target / self.unit)
        self.reach = torch.zeros_like(self.target)  # largest |coordinate| of any atom seen
        self.reach_of_rest = torch.zeros_like(self.prices)
        count, device = len(self.origin), self.origin.device
        self.dropping = torch.full((count,), -1, device=device)  # slot to drop, -1 for none
        self.stalled = torch.zeros(count, dtype=torch.int64, device=device)  # steps since the last progress
        self.iterations = torch.zeros(count, dtype=torch.int64, device=device)
        self.most = torch.full((count,), max_iter, device=device)
        self.gap = torch.full((count,), torch.inf, dtype=self.origin.dtype, device=device)
        self.exact = torch.zeros(count, dtype=torch.bool, device=device)  # whether the oracle is past its tie-break
        self.converged = torch.zeros(count, dtype=torch.bool, device=device)

    def iterate(self, tol: float) -> None:
        """One iteration of every row that is live: test, add or drop one atom, take a Newton step as far as it is feasible.

        By a kernel, if there is one, on to where they need another answer of the oracle.
        """
        residual = self.target - self.mean
        vertex = self.oracle(self._join(residual) * self.unit, self.exact)
        advance = None if cannot_branch(vertex) else in_triton(".kernels.triton_rows", __package__, "advance", vertex.device)
        if advance is not None and advance(self, vertex, tol):
            return
        found, gain = (vertex - self.origin) / self.unit, self.no_gain
        parts, rest = self.oracle.parts, found
        if parts is not None:
            found, rest = parts.split(found)
        # Products with the residual carry its rounding noise, from every coordinate on which atoms differ.
        # A row with an atom to drop does not need the answer; compiled, it does not ask.
        asked = (self.dropping < 0)[:, None]
        self.reach = torch.where(asked, torch.maximum(self.reach, found.abs()), self.reach)
        terms = ((self.target.abs() + self.reach) * self.reach).sum(-1)
        if parts is not None:
            gain = (rest * self.prices).sum(-1)
            self.reach_of_rest = torch.where(asked, torch.maximum(self.reach_of_rest, rest.abs()), self.reach_of_rest)
            terms = terms + (self.prices.abs() * self.reach_of_rest).sum(-1)
        noise = 8 * torch.finfo(residual.dtype).eps * terms
        self._advance(residual, vertex, found, gain, SETTLED * self.scale + noise, tol * self.scale + noise)

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D] -> the regularised coordinates [B, R] and the others, of which there may be none."""
        parts = self.oracle.parts
        return (values, values[:, :0]) if parts is None else parts.split(values)

    def _join(self, residual: Tensor) -> Tensor:
        """[B, R] -> [B, D]; the coordinates that are not regularised keep their scores."""
        parts = self.oracle.parts
        return residual if parts is None else parts.join(residual, self.prices)

    def _advance(
        self, residual: Tensor, vertex: Tensor, found: Tensor, gain: Tensor, settled_at: Tensor, enough: Tensor
    ) -> None:
        """The iteration after the oracle's answer, in tensor operations."""
        working = self.working
        slopes, overlaps = working.products(residual, found)  # A'(t - A p) and A'v
        if self.oracle.parts is not None:
            slopes = slopes + self.gains * working.on
        level = (self.weights * slopes).sum(-1)  # tau of eq. 13, once the weights are optimal
        deviation = (slopes - level[:, None]) * working.on
        size = found.square().sum(-1)

        dropped = self.dropping >= 0
        settled = self.live & ~dropped & (deviation.abs().amax(-1) <= settled_at)
        gap = (residual * found).sum(-1) + gain - level
        self.gap = torch.where(settled, gap.clamp(min=0), self.gap)
        # No progress up to the tie-break: from here on the oracle is asked exactly, and its word is final.
        exhausted = settled & (gap <= enough)
        self.converged = self.converged | (exhausted & self.exact)
        self.exact = self.exact | exhausted
        live = self.live
        self.iterations += live

        slot = working.free_slot()
        border, pivot = working.bordering(overlaps, found, slot)
        # An affine combination of the atoms at hand has a positive gap only by rounding, and cannot be added; unless there are
        # coordinates without curvature.
        wanted = settled & ~exhausted
        added = wanted & (pivot > PIVOT_NOISE * (1 + size))
        if self.oracle.parts is not None:
            swapped, slot = self._make_way(overlaps, wanted & ~added, slot)
            # What left had a share in the new atom, so that this is independent of those that stay, though maybe hardly so.
            border, _ = working.bordering(overlaps, found, slot, PIVOT_NOISE * (1 + size))
            added = added | swapped
        self.stalled = torch.where(added | dropped | exhausted, 0, self.stalled + 1)
        change = torch.where(added[:, None], border, working.removal(self.dropping.clamp(min=0)))
        working.update(change, added.to(change) - (dropped & live).to(change))
        working.put(slot, found, added)
        self.vertices.scatter_(1, slot[:, None, None].expand(-1, 1, vertex.shape[1]), vertex[:, None])
        if self.oracle.parts is not None:
            self.gains.scatter_(1, slot[:, None], gain[:, None])
        working.on &= ~(self._is(self.dropping) & live[:, None])
        deviation = torch.where(self._is(slot), torch.where(added, gap, 0)[:, None], deviation)

        step = working.step(deviation * working.on) * live[:, None]
        full = self.weights + step
        ratio = torch.where(full < -WEIGHT_NOISE, self.weights / (self.weights - full), torch.inf)  # eq. 15
        reached = ratio.amin(-1, keepdim=True)
        # Of atoms that reach zero together, up to rounding, the first is dropped now and the others next.
        blocking = (ratio <= reached + WEIGHT_NOISE).to(torch.int8).argmax(-1)
        blocked = (reached[:, 0] <= 1) & live
        self.dropping = torch.where(blocked, blocking, -1)
        moved = (self.weights + reached.clamp(max=1) * step).clamp(min=0)
        self.weights = torch.where(self._is(self.dropping), 0, moved)
        self.mean = working.mean(self.weights)

    def _make_way(self, overlaps: Tensor, rows: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Moves some rows [B] bool along e_new - y, where the new atom is the combination A y, until an atom has no weight.

        That atom leaves, and its slot has the new atom's weight. Returns the rows where it did, and the new atom's slot of
        every row: `free` of the others.
        """
        working = self.working
        combination = working.combination(overlaps)
        ratio = torch.where(combination > WEIGHT_NOISE, self.weights / combination, torch.inf)
        reached = ratio.amin(-1, keepdim=True)
        # Of atoms that lose all at once the one with the largest share leaves: what stays is then best conditioned.
        leaving = torch.where(ratio <= reached + WEIGHT_NOISE, combination, -torch.inf).argmax(-1)
        rows = rows & reached[:, 0].isfinite()
        moved = (self.weights - reached * combination).clamp(min=0)
        moved = torch.where(self._is(leaving), reached, moved)
        # The combination's weights sum to 1 up to the errors of the factorisation, which no later step would mend.
        moved = moved / moved.sum(-1, keepdim=True)
        self.weights = torch.where(rows[:, None], moved, self.weights)
        working.update(working.removal(leaving), -rows.to(overlaps))
        working.on &= ~(self._is(leaving) & rows[:, None])
        return rows, torch.where(rows, leaving, free)

    @property
    def live(self) -> Tensor:
        """The rows that go on, [B] bool: those that have not converged and may iterate."""
        return ~self.converged & (self.iterations < self.most)

    def look(self) -> tuple[int, int, int]:
        """How many rows go on, and of these: the most atoms, and how many have a factorisation gone stale.

        The host waits for the device once.
        """
        live = self.live
        atoms, stale = (self.working.on.sum(-1) * live).amax(), (live & (self.stalled >= STALE)).sum()
        count, most, number = torch.stack([live.sum(), atoms, stale]).tolist()
        return count, most, number

    def prepare(self, atoms: int, slots_at_a_time: int = 1) -> None:
        """Makes room for so many atoms in every row."""
        self.working.reserve(atoms, slots_at_a_time)
        slots = self.working.on.shape[1]
        self.weights = torch.nn.functional.pad(self.weights, (0, slots - self.weights.shape[1]))
        self.gains = torch.nn.functional.pad(self.gains, (0, slots - self.gains.shape[1]))
        self.vertices = torch.nn.functional.pad(self.vertices, (0, 0, 0, slots - self.vertices.shape[1]))

    def renew(self) -> None:
        """Computes factorisations afresh that have gone stale."""
        stale = (self.stalled >= STALE).nonzero()[:, 0]
        self.working.rebuild(stale)
        self.stalled.index_fill_(0, stale, 0)

    def select(self, rows: Tensor) -> "TensorRows":
        """The state of some rows [n] int64."""
        chosen = object.__new__(TensorRows)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value[rows])
        chosen.oracle, chosen.working = self.oracle.rows(rows), self.working.select(rows)
        return chosen

    @property
    def polytope(self) -> Polytope:
        """See `recorded.State`."""
        assert isinstance(self.oracle, Oracle)
        return self.oracle.polytope

    def tensors(self) -> list[Tensor]:
        """See `recorded.State`. In the order in which attributes were first set, which `of` and `select` keep."""
        assert isinstance(self.oracle, Oracle)
        states = (vars(self), vars(self.working), vars(self.oracle), vars(self.oracle.ties))
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def of(self, tensors: Sequence[Tensor]) -> "TensorRows":
        """See `recorded.State`."""
        assert isinstance(self.oracle, Oracle)
        given, other = iter(tensors), copy(self)

        def taken(state: object) -> dict[str, Tensor]:
            return {name: next(given) for name, value in vars(state).items() if isinstance(value, Tensor)}

        vars(other).update(taken(self))
        other.working = copy(self.working)
        vars(other.working).update(taken(self.working))
        other.oracle = replace(self.oracle, **taken(self.oracle))
        other.oracle = replace(other.oracle, ties=Ties(**taken(self.oracle.ties)))
        return other

    def support(self, rows: Tensor | slice, tol: float) -> Support:
        """The atoms of some rows, [n] int64 or a slice, with the used slots first."""
        gap = self.gap[rows] * self.unit[rows, 0].square()
        state = (self.iterations[rows], gap, self.converged[rows])
        return pruned(self.vertices[rows], self.weights[rows], self.scale[rows], tol, state)

    def _is(self, slot: Tensor) -> Tensor:
        """[B] slots as a mask [B, S]; -1 is none."""
        return torch.arange(self.weights.shape[1], device=slot.device) == slot[:, None]


def pruned(vertices: Tensor, weights: Tensor, scale: Tensor, tol: float, state: tuple[Tensor, Tensor, Tensor]) -> Support:
    """The support of weights [B, S] on vertices [B, S, D] without its lightest atoms; `state`: iterations, gap, converged [B].

    The margin is that before.
    """
    margin = torch.where(weights > 0, weights, torch.inf).amin(-1)
    light = (weights <= WEIGHT_PRUNE * tol * scale[:, None]) & (weights < weights.amax(-1, keepdim=True))
    atoms, probs = used_first(vertices, torch.where(light, 0, weights))
    atoms = torch.where((probs > 0)[..., None], atoms, 0)
    return Support(atoms, probs / probs.sum(-1, keepdim=True), SolverStats(*state, margin))
