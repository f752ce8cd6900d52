"""The active set method (Wolfe's min-norm point algorithm) for a batch of problems in lockstep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import compiled, in_triton, uncompiled
from ...oracles import Polytope
from ...oracles.checks import cannot_branch, check_count, refuse_export, refuse_vmap
from ...oracles.kinds import kind_of
from ..stats import SolverStats
from . import recorded
from .base import Solver
from .certificate import certified
from .limits import POLL
from .oracle import BatchOracle, Oracle
from .supports import PackedSupport, Support, used_slots
from .tensor_rows import TensorRows

# Of a recorded state: room for atoms is made for so many at a time, for there to be few different shapes.
SLOTS_AT_A_TIME = 16


Advance = Callable[[TensorRows, float], TensorRows]


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
    4. The oracle sees residuals with ties broken in a fixed way (see `ties.Ties`).
    5. Where only some coordinates R are regularised, A is A_R in the matrix, A't is unchanged, and slopes are
       <a_z, (t - mu)_R> + <a_z, t>_rest. A new atom may then be an affine combination A_R y of the others and still gain: the
       objective is linear along e_new - y. The step goes on until an atom has no weight left, and the new atom takes its place,
       so that atoms stay affinely independent in R, at most |R| + 1 of them (Nocedal and Wright 2006, section 16.5, for a
       singular Hessian).

    What the gradient is. Atoms come from the signs of what is left of the residual, so their weights fall off
    geometrically, like the digits of a binary expansion: some 40 to 70 atoms give the mean to 1e-12 whatever the dimension
    of the face on which it lies. That keeps the support small. But a face of dimension F has derivatives in F directions,
    and atoms of negligible weight, which would carry some of them, are not there: the derivative of the mean is the exact
    one projected on the span of the atoms (paper eq. 17, as in the published code). Up to about 25 fractional coordinates
    nothing is missing; with 32 a tenth of the derivative is, and of 128 half of the directions are. `stats` says where:
    derivatives are complete on rows whose gap is rounding noise (below 1e-13) and whose margin is above 1e-10, so that
    nothing was left out. `SortedDecomposition` has all of them, with one atom more than there are fractional coordinates, and
    of the mean alone `functional.sparsemap_marginals` has all of them for any polytope.
    Tied scores are another matter, for both: coordinates of equal score share their atoms, hence their derivative, the mean
    of what each would have alone. An encoder that starts with all scores equal therefore cannot tell its bits apart.

    All arithmetic is in float64 whatever the dtype of the layer, so float32 and float64 inputs choose the same atoms. A row has
    the same atoms in any batch; on the CPU with Numba installed also weights of the same bits, else up to the last digits,
    as sums in tensor operations depend on the batch.

    Cost: an iteration is O(B S (S + D)) and one oracle call, on the rows that have not converged. On the CPU, with Numba
    installed, what is not the oracle runs as one compiled pass (`compiled_rows`), with no call where an atom is dropped; where
    the oracle is compiled too (`oracles.row_kernels.row_oracle`: cube, budget, simplex, dynamic programs, trees), each row runs
    to its end while its small state is in the cache, 1.2 to 6 times as fast again. 0/1 structures are then bits (`bit_atoms`),
    of long ones bits of what was seen to change (`seen_bits`), and never padded: the support stays packed, with its Jacobian
    (`solve_packed`). On a GPU cube, budget and simplex of up to 512 dimensions are solved in one Triton kernel, oracle and all,
    and packed by another. A row of theirs that needs more than 128 atoms, a batch with forbidden coordinates, and any other
    polytope take one kernel beside the oracle an iteration (`triton_rows`), or tensor operations where not all coordinates are
    regularised or D is above 4096, with one look at the batch every 8 iterations.

    Attributes:
        max_iter: iterations before a row is given up as not converged; None for 100 + 20 D.
        tol: bound on the gap max_v <t - mu, v - mu> at which a row has converged, relative to its scale min(1, max|t|), plus
            a few units of rounding noise. The mean's error is usually below it. The default is as far as residuals are told
            apart (`ties.GRID_EXPONENT`): 1e-9 leaves out up to an eighth of the atoms and takes up to a fifth less time, but
            derivatives are then complete up to some 18 fractional coordinates only.
        record: on a CUDA device, where the oracle is not in the kernel, record windows of 8 iterations in CUDA graphs and
            replay these: the oracle of any polytope, as long as it does the same tensor operations whatever the scores, on
            tensors that live as long as the polytope. In windows it is called while a new shape is recorded and then not again.
            One that waits for the device cannot be recorded, and a warning says so; that it copies from the host without
            waiting (`non_blocking=True`) goes unnoticed, and is wrong. Worth it where batches of the same size come again for
            the same polytope object, as in training: each size is recorded by itself, and `recorded.forget` frees the memory.
            Supports agree with those of the iterations one by one up to the last digits of their weights. Written without a GPU
            at hand: what is recorded is tested on the CPU, capture itself by `pytest -m gpu` only, so it is off by default.
    """

    max_iter: int | None = None
    tol: float = 1e-12
    record: bool = False

    def __post_init__(self) -> None:
        if self.max_iter is not None:
            check_count("ActiveSet: max_iter", self.max_iter, 1)
        if not self.tol >= 0:
            raise ValueError(f"ActiveSet: tol must be at least 0, not {self.tol}")
        object.__setattr__(self, "tol", float(self.tol))  # an int would be compiled for anew

    @uncompiled
    @torch.no_grad()
    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """See `Solver.solve`.

        Raises:
            ValueError: under `torch.func.vmap`, where rows cannot be told from one another, and under `torch.export`.
        """
        refuse_vmap(scores, "ActiveSet")
        refuse_export("ActiveSet")
        limit, oracle = self._limit(scores), Oracle.of(polytope, scores)
        advance = recorded.advance if self.record and scores.device.type == "cuda" else None
        found = _in_one_kernel(oracle, limit, self.tol) or active_set(oracle, limit, self.tol, advance)
        return certified(oracle, found)

    @torch.no_grad()
    def solve_packed(
        self, scores: Tensor, polytope: Polytope, dtype: torch.dtype, check: bool
    ) -> PackedSupport[SolverStats] | Support | None:
        """See `FindsPacked`: on structures that are 0/1; a `Support` of real-valued ones, and of what a kernel gave up."""
        on_gpu = in_triton(".kernels.triton_supports", __package__, "solve_packed", scores.device)
        whole = on_gpu or compiled(".kernels.compiled_rows", __package__, "solve_packed", scores.device)
        if whole is None or len(scores) == 0 or (on_gpu is not None and kind_of(polytope) is None):
            return None
        oracle, limit = _checked_oracle(scores, polytope, check), self._limit(scores)
        if oracle is None:
            return None
        found = whole(oracle, limit, self.tol, dtype)
        if found is None or isinstance(found, PackedSupport):
            return found
        return certified(oracle, found if isinstance(found, Support) else _completed(oracle, found, limit, self.tol))

    @torch.no_grad()
    def solve_mean(self, scores: Tensor, polytope: Polytope, check: bool) -> tuple[Tensor, SolverStats] | None:
        """See `FindsMean`: on the CPU, with Numba installed."""
        whole = compiled(".kernels.compiled_rows", __package__, "solve_mean", scores.device)
        oracle = None if whole is None or len(scores) == 0 else _checked_oracle(scores, polytope, check)
        return None if whole is None or oracle is None else whole(oracle, self._limit(scores), self.tol)

    def _limit(self, scores: Tensor) -> int:
        return 100 + 20 * scores.shape[-1] if self.max_iter is None else self.max_iter


def _checked_oracle(scores: Tensor, polytope: Polytope, check: bool) -> Oracle | None:
    """That of scores [B, D], B > 0; with `check` None if some are NaN or +inf."""
    low, high = torch.stack(scores.aminmax()).tolist()  # NaN spreads; the host waits once for both
    if check and not high < torch.inf:
        return None
    return Oracle.of(polytope, scores, some_forbidden=not low > -torch.inf)


def active_set(oracle: BatchOracle, max_iter: int, tol: float, advance: Advance | None = None) -> Support:
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
    return compiled(".kernels.compiled_rows", __package__, "solve", device)


def _in_one_kernel(oracle: Oracle, max_iter: int, tol: float) -> Support | None:
    """The method in one Triton kernel, and as `active_set` on rows that it gives up; None where there is no such kernel."""
    kernel = in_triton(".kernels.triton_active_set", __package__, "solve", oracle.target.device)
    found = None if kernel is None else kernel(oracle, max_iter, tol)
    return None if found is None else _completed(oracle, found, max_iter, tol)


def _completed(oracle: Oracle, found: Any, max_iter: int, tol: float) -> Support:
    """What the kernel found, `triton_active_set.Solved`, with the rows that it gave up."""
    row, slot = used_slots(found.weights)
    probs = found.weights[row, slot]
    vertices = torch.where((probs > 0)[..., None], found.atoms[row, slot] + found.origin[:, None], 0)
    sensitivity = found.sensitivity[row[..., None], slot[..., None], slot[:, None]]
    stats = SolverStats(found.iterations, found.gap, found.converged, found.margin)
    support = Support(vertices, probs, stats, sensitivity)
    left = ~found.converged & (found.iterations < max_iter)
    if not left.any():
        return support
    done = Support(support.atoms[~left], support.probs[~left], support.stats[~left])
    again = active_set(oracle.rows(left), max_iter, tol)  # so many rows are not seen again: not recorded
    return _gather([(left.nonzero()[:, 0], again), ((~left).nonzero()[:, 0], done)], len(left))


def _in_tensors(oracle: BatchOracle, max_iter: int, tol: float, advance: Advance | None = None) -> Support:
    """The method on a state in tensors; `advance` stands in for `POLL` calls of `iterate`, and wants few different shapes."""
    batch = len(oracle.target)
    rows = torch.arange(batch, device=oracle.target.device)
    current = TensorRows(oracle, max_iter)
    ready = in_triton(".kernels.triton_rows", __package__, "ready", rows.device)
    if ready is not None:
        ready(rows.device, tol)
    finished: list[tuple[Tensor, Support]] = []
    for window in range(0, max_iter if batch else 0, POLL):
        live, most, stale = current.look()
        if live == 0:
            break
        size = live if advance is None else _halved(len(rows), live)
        if size <= 0.75 * len(rows):
            order = current.live.to(torch.int8).argsort(descending=True, stable=True)
            kept, done = order[:size].sort().values, order[size:].sort().values  # not masks, for which the host would wait
            finished.append((rows[done], current.support(done, tol)))
            rows, current = rows[kept], current.select(kept)
        current.prepare(most + POLL, 1 if advance is None else SLOTS_AT_A_TIME)
        if stale:
            current.renew()
        if advance is not None:
            current = advance(current, tol)
        else:
            for _ in range(min(POLL, max_iter - window)):
                current.iterate(tol)
    finished.append((rows, current.support(slice(None), tol)))
    return _gather(finished, batch)


def _halved(size: int, least: int) -> int:
    """`size`, or half of it, or half of that, ...: the smallest that is not below `least`, from 1."""
    while size // 2 >= least:
        size //= 2
    return size


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
