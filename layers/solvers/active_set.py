"""The active set method (Wolfe's min-norm point algorithm) for a batch of problems in lockstep."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...oracles import Polytope
from ...oracles.checks import cannot_branch
from ..kernels import compiled, in_triton
from ..stats import SolverStats
from . import recorded
from .base import BatchOracle, Oracle, PackedSupport, Solver, Support, Ties, row_scale, used_first
from .limits import PIVOT_NOISE, POLL, SETTLED, STALE, WEIGHT_NOISE, WEIGHT_PRUNE
from .working_set import WorkingSet

# Of a recorded state: room for atoms is made for so many at a time, for there to be few different shapes.
SLOTS_AT_A_TIME = 16


@dataclass(frozen=True)
class ActiveSet(Solver):
    """The active set method of the paper's appendix B, Algorithm 1, from the MAP structure, for any oracle.

    Each iteration takes a Newton step on the weights of the current atoms, towards the solution of the KKT system

        [[A'A, 1], [1', 0]] [p; tau] = [A't; 1]                                       (eq. 13)

    as far as the weights stay nonnegative (eq. 15). A row that was blocked drops the blocking atom; a row that took the
    full step asks the oracle for the most violated constraint (eq. 16) and adds it, or has converged.

    Departures from Algorithm 1:
    1. The step is computed from the current residual, p + dp with dp = H (A'(t - A p) - tau 1), not from scratch: errors
       in the factorisation heal in the next step instead of adding up.
    2. H = (A'A + 11')^-1 is kept, not a Cholesky factor: adding or dropping an atom is one symmetric rank-one update,
       the same operation for every row of the batch whatever it is doing. A'A + 11' is positive definite exactly if the
       atoms are affinely independent, which they stay: at most D + 1 atoms.
    3. Atoms are held relative to the MAP structure, so coordinates on which all atoms agree drop out exactly, however
       large their scores.
    4. The oracle sees residuals with ties broken in a fixed way (see `base.Ties`).
    5. Where only some coordinates R are regularised, A is A_R in the matrix, A't is unchanged, and slopes are
       <a_z, (t - mu)_R> + <a_z, t>_rest. A new atom may then be an affine combination A_R y of the others and still gain: the
       objective is linear along e_new - y. The step goes on until an atom has no weight left, and the new atom takes its place,
       so that atoms stay affinely independent in R, at most |R| + 1 of them (Nocedal and Wright 2006, section 16.5, for a
       singular Hessian).

    What the gradient is. Atoms come from the signs of what is left of the residual, so their weights fall off
    geometrically, like the digits of a binary expansion: some 30 to 60 atoms give the mean to 1e-9 whatever the dimension
    of the face on which it lies. That keeps the support small. But a face of dimension F has derivatives in F directions,
    and atoms of negligible weight, which would carry some of them, are not there: the derivative of the mean is the exact
    one projected on the span of the atoms (paper eq. 17, as in the published code). Up to about 20 fractional coordinates
    nothing is missing; at D = 128 with all of them fractional more than half of the directions are. `stats` says
    where: derivatives are complete on rows whose gap is rounding noise (below 1e-13) and whose margin is above 1e-10, so that
    nothing was left out. `SortedDecomposition` has all of them, with one atom more than there are fractional coordinates.
    Tied scores are another matter, for both: coordinates of equal score share their atoms, hence their derivative, the mean
    of what each would have alone. An encoder that starts with all scores equal therefore cannot tell its bits apart.

    All arithmetic is in float64 whatever the dtype of the layer, so float32 and float64 inputs choose the same atoms. A row has
    the same atoms in any batch; on the CPU with Numba installed also weights of the same bits, else up to the last digits,
    as sums in tensor operations depend on the batch.

    Cost: an iteration is O(B S (S + D)) and one oracle call, on the rows that have not converged. On the CPU, with Numba
    installed, what is not the oracle runs as one compiled pass (`compiled_rows`); where the oracle is that of cube, budget or
    simplex it is compiled too, and each row runs to its end while its small state is in the cache, at D = 128 twice as fast
    again. 0/1 structures are then never padded: the support stays packed, with its Jacobian (`solve_packed`). On a GPU
    cube, budget and simplex of up to 512 dimensions are solved in one Triton kernel, oracle and all; a row of theirs that
    needs more than 128 atoms, a batch with forbidden coordinates, and any other polytope in tensor operations with one look
    at the batch every 8 iterations.

    Attributes:
        max_iter: iterations before a row is given up as not converged; None for 100 + 20 D.
        tol: bound on the gap max_v <t - mu, v - mu> at which a row has converged, relative to its scale min(1, max|t|), plus
            a few units of rounding noise. The mean's error is usually below it: 2e-10 at D = 128.
        record: on a CUDA device, where the iterations run in tensor operations, record windows of 8 of them in CUDA graphs and
            replay these: the oracle of any polytope, as long as it does the same tensor operations whatever the scores, on
            tensors that live as long as the polytope. In windows it is called while a new shape is recorded and then not again.
            One that waits for the device cannot be recorded, and a warning says so; that it copies from the host without
            waiting (`non_blocking=True`) goes unnoticed, and is wrong. Worth it where batches of the same size come again for
            the same polytope object, as in training: each size is recorded by itself, and `recorded.forget` frees the memory.
            Supports agree with those of the iterations one by one up to the last digits of their weights. Written without a GPU
            at hand: what is recorded is tested on the CPU, capture itself by `pytest -m gpu` only, so it is off by default.
    """

    max_iter: int | None = None
    tol: float = 1e-9
    record: bool = False

    def __post_init__(self) -> None:
        if self.max_iter is not None and self.max_iter < 1:
            raise ValueError(f"ActiveSet: max_iter must be None or at least 1, not {self.max_iter}")
        if not self.tol >= 0:
            raise ValueError(f"ActiveSet: tol must be at least 0, not {self.tol}")

    @torch.no_grad()
    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """See `Solver.solve`."""
        limit, oracle = self._limit(scores), Oracle.of(polytope, scores)
        advance = recorded.advance if self.record and scores.device.type == "cuda" else None
        found = _in_one_kernel(oracle, limit, self.tol) or active_set(oracle, limit, self.tol, advance)
        return _certified(oracle, found)

    @torch.no_grad()
    def solve_packed(
        self, scores: Tensor, polytope: Polytope, dtype: torch.dtype
    ) -> PackedSupport[SolverStats] | Support | None:
        """See `FindsPacked`: where the method is compiled and structures are 0/1; real-valued ones come back as a `Support`."""
        whole = compiled(".compiled_rows", __package__, "solve_packed", scores.device)
        if (
            whole is None
            or len(scores) == 0
            or in_triton(".triton_active_set", __package__, "solve", scores.device) is not None
        ):
            return None
        oracle = Oracle.of(polytope, scores)
        found = whole(oracle, self._limit(scores), self.tol, dtype)
        if isinstance(found, Support):
            return _certified(oracle, found)
        support = found.support
        return replace(support, stats=_certified_stats(oracle, support.stats, found.lightest, found.mean))

    def _limit(self, scores: Tensor) -> int:
        return 100 + 20 * scores.shape[-1] if self.max_iter is None else self.max_iter


def active_set(oracle: BatchOracle, max_iter: int, tol: float, advance: "Advance | None" = None) -> Support:
    """Runs the method from `oracle.start()` until every row has converged or `max_iter` iterations are done.

    Args:
        oracle: of the rows.
        max_iter, tol: as in `ActiveSet`.
        advance: what to do for `POLL` iterations in tensor operations, if not one after the other: `recorded.advance`.
    """
    whole = compiled_method(oracle.target.device)
    if whole is None or len(oracle.target) == 0 or cannot_branch(oracle.target):
        return _in_tensors(oracle, max_iter, tol, advance)
    return whole(oracle, max_iter, tol)


def compiled_method(device: torch.device) -> Callable[..., Any] | None:
    """The method as compiled for tensors on `device`; None, for `_in_tensors`, where there is none or none is wanted.

    See `kernels.compiled`. Both choose the same atoms, with weights that agree but for their last bits; where scores are below
    about 1e-4, the tie-break of 1e-9 of their scale is no larger than these, and atoms may differ.
    """
    return compiled(".compiled_rows", __package__, "solve", device)


def _in_one_kernel(oracle: Oracle, max_iter: int, tol: float) -> Support | None:
    """The method in one Triton kernel, and as `active_set` on rows that it gives up; None where there is no such kernel."""
    kernel = in_triton(".triton_active_set", __package__, "solve", oracle.target.device)
    found = None if kernel is None else kernel(oracle, max_iter, tol)
    if found is None:
        return None
    vertices, scale = found.atoms.double() + found.origin[:, None], row_scale(oracle.target)
    support = _pruned(vertices, found.weights, scale, tol, (found.iterations, found.gap, found.converged))
    left = ~found.converged & (found.iterations < max_iter)
    if not left.any():
        return support
    stats = SolverStats(*(field[~left] for field in vars(support.stats).values()))
    done = Support(support.atoms[~left], support.probs[~left], stats)
    again = active_set(oracle.rows(left), max_iter, tol)  # so many rows are not seen again: not recorded
    return _gather([(left.nonzero()[:, 0], again), ((~left).nonzero()[:, 0], done)], len(left))


def _in_tensors(oracle: BatchOracle, max_iter: int, tol: float, advance: "Advance | None" = None) -> Support:
    """The method in tensor operations; `advance` stands in for `POLL` calls of `iterate`, and wants few different shapes."""
    batch = len(oracle.target)
    rows = torch.arange(batch, device=oracle.target.device)
    current = _Rows(oracle)
    finished: list[tuple[Tensor, Support]] = []
    for iteration in range(0, max_iter if batch else 0, POLL):
        live = ~current.converged
        count = int(live.sum())
        if count == 0:
            break
        size = count if advance is None else _halved(len(rows), count)
        if size <= 0.75 * len(rows):
            kept = torch.zeros_like(live).scatter_(0, (~live).to(torch.int8).argsort(stable=True)[:size], True)
            finished.append((rows[~kept], current.support(~kept, tol)))
            rows, current = rows[kept], current.select(kept)
        current.prepare(POLL, 1 if advance is None else SLOTS_AT_A_TIME)
        if advance is not None and iteration + POLL <= max_iter:
            current = advance(current, tol)
        else:
            for _ in range(min(POLL, max_iter - iteration)):
                current.iterate(tol)
    finished.append((rows, current.support(torch.ones_like(current.converged), tol)))
    return _gather(finished, batch)


def _halved(size: int, least: int) -> int:
    """`size`, or half of it, or half of that, ...: the smallest that is not below `least`, from 1."""
    while size // 2 >= least:
        size //= 2
    return size


class _Rows:
    """The state of the rows that are being worked on, in tensors."""

    def __init__(self, oracle: BatchOracle) -> None:
        self.oracle = oracle
        self.origin = oracle.start()
        # The working set holds atoms relative to the origin and in units of its largest coordinate (a power of two, so
        # exact; 1 for 0/1 structures): tolerances are those of structures of size 1. It holds the regularised coordinates R;
        # of the others an atom's gain is enough.
        largest = self.origin.abs().amax(-1, keepdim=True)
        self.unit = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1), 1)
        self.target, _ = self._split((oracle.target - self.origin) / self.unit)  # [B, R]
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
        self.gap = torch.full((count,), torch.inf, dtype=self.origin.dtype, device=device)
        self.exact = torch.zeros(count, dtype=torch.bool, device=device)  # whether the oracle is past its tie-break
        self.converged = torch.zeros(count, dtype=torch.bool, device=device)

    def iterate(self, tol: float) -> None:
        """One iteration of every row: test, add or drop one atom, take a Newton step as far as it is feasible."""
        residual = self.target - self.mean
        vertex = self.oracle(self._join(residual) * self.unit, self.exact)
        found, gain = (vertex - self.origin) / self.unit, self.no_gain
        parts, rest = self.oracle.parts, found
        if parts is not None:
            found, rest = parts.split(found)
        # Products with the residual carry its rounding noise, from every coordinate on which atoms differ.
        self.reach = torch.maximum(self.reach, found.abs())
        terms = ((self.target.abs() + self.reach) * self.reach).sum(-1)
        if parts is not None:
            gain = (rest * self.prices).sum(-1)
            self.reach_of_rest = torch.maximum(self.reach_of_rest, rest.abs())
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
        settled = ~dropped & (deviation.abs().amax(-1) <= settled_at)
        gap = (residual * found).sum(-1) + gain - level
        self.gap = torch.where(settled & ~self.converged, gap.clamp(min=0), self.gap)
        # No progress up to the tie-break: from here on the oracle is asked exactly, and its word is final.
        exhausted = settled & (gap <= enough)
        self.converged = self.converged | (exhausted & self.exact)
        self.exact = self.exact | exhausted
        live = ~self.converged
        self.iterations += live

        slot = working.free_slot()
        border, pivot = working.bordering(overlaps, size, slot)
        # An affine combination of the atoms at hand has a positive gap only by rounding, and cannot be added; unless there are
        # coordinates without curvature.
        wanted = settled & ~exhausted & live
        added = wanted & (pivot > PIVOT_NOISE * (1 + size))
        if self.oracle.parts is not None:
            swapped, slot = self._make_way(overlaps, wanted & ~added, slot)
            # What left had a share in the new atom, so that this is independent of those that stay, though maybe hardly so.
            border, _ = working.bordering(overlaps, size, slot, PIVOT_NOISE * (1 + size))
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

    def prepare(self, iterations: int, slots_at_a_time: int = 1) -> None:
        """Makes room for as many atoms as `iterations` can add, and renews the factorisations that have gone stale."""
        self.working.reserve(iterations, slots_at_a_time)
        slots = self.working.on.shape[1]
        self.weights = torch.nn.functional.pad(self.weights, (0, slots - self.weights.shape[1]))
        self.gains = torch.nn.functional.pad(self.gains, (0, slots - self.gains.shape[1]))
        self.vertices = torch.nn.functional.pad(self.vertices, (0, 0, 0, slots - self.vertices.shape[1]))
        stale = (self.stalled >= STALE).nonzero()[:, 0]
        if len(stale):
            self.working.rebuild(stale)
            self.stalled[stale] = 0

    def select(self, rows: Tensor) -> "_Rows":
        """The state of the rows [B] bool that are true."""
        chosen = object.__new__(_Rows)
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

    def of(self, tensors: Sequence[Tensor]) -> "_Rows":
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

    def support(self, rows: Tensor, tol: float) -> Support:
        """The atoms of the rows [B] bool that are true, with the used slots first."""
        gap = self.gap[rows] * self.unit[rows, 0].square()
        state = (self.iterations[rows], gap, self.converged[rows])
        return _pruned(self.vertices[rows], self.weights[rows], self.scale[rows], tol, state)

    def _is(self, slot: Tensor) -> Tensor:
        """[B] slots as a mask [B, S]; -1 is none."""
        return torch.arange(self.weights.shape[1], device=slot.device) == slot[:, None]


Advance = Callable[[_Rows, float], _Rows]


def _pruned(vertices: Tensor, weights: Tensor, scale: Tensor, tol: float, state: tuple[Tensor, Tensor, Tensor]) -> Support:
    """The support of weights [B, S] on vertices [B, S, D] without its lightest atoms; `state`: iterations, gap, converged [B].

    The margin is that before.
    """
    margin = torch.where(weights > 0, weights, torch.inf).amin(-1)
    light = (weights <= WEIGHT_PRUNE * tol * scale[:, None]) & (weights < weights.amax(-1, keepdim=True))
    atoms, probs = used_first(vertices, torch.where(light, 0, weights))
    atoms = torch.where((probs > 0)[..., None], atoms, 0)
    return Support(atoms, probs / probs.sum(-1, keepdim=True), SolverStats(*state, margin))


def _certified(oracle: Oracle, support: Support) -> Support:
    """The support with the gap of what is left of it, where atoms have been dropped."""
    lightest = support.probs.where(support.probs > 0, 1).amin(-1)
    mean = (support.probs[:, None] @ support.atoms)[:, 0]
    return replace(support, stats=_certified_stats(oracle, support.stats, lightest, mean))


def _certified_stats(oracle: Oracle, stats: SolverStats, lightest: Tensor, mean: Tensor) -> SolverStats:
    """The stats with the gap of the mean [B, D], if the lightest weights [B] are not those that there were."""
    if not (stats.margin < lightest).any():
        return stats
    residual = oracle.residual(mean)
    best = oracle(residual, torch.ones_like(stats.converged))
    gap = (residual * (best - mean)).sum(-1)
    return replace(stats, gap=torch.maximum(stats.gap, gap))


def _gather(parts: list[tuple[Tensor, Support]], batch: int) -> Support:
    """Supports of disjoint rows as one."""
    first = parts[0][1]
    width = max(support.probs.shape[1] for _, support in parts)
    atoms = first.atoms.new_zeros(batch, width, first.atoms.shape[2])
    probs = first.probs.new_zeros(batch, width)
    stats = SolverStats(*(field.new_zeros(batch) for field in vars(first.stats).values()))
    for rows, support in parts:
        atoms[rows, : support.atoms.shape[1]] = support.atoms
        probs[rows, : support.probs.shape[1]] = support.probs
        for whole, part in zip(vars(stats).values(), vars(support.stats).values(), strict=True):
            whole[rows] = part
    return Support(atoms, probs, stats)
