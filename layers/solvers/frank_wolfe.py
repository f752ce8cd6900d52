"""Pairwise Frank-Wolfe: slow, simple, and independent of the active set, to cross-check it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels import uncompiled
from ...oracles import Parts, Polytope
from ...oracles.checks import check_count, refuse_export
from ..stats import SolverStats
from .active_set import active_set
from .base import Solver
from .oracle import Oracle, objective_gradient
from .supports import Support
from .ties import Ties, row_scale

# Iterations between looks at the batch from Python.
POLL = 16
# Gaps at which a walk stops to see whether its atoms already hold the solution. Early, so that which atoms those are is
# decided where differences are large: the last digits of a walk choose atoms by rounding noise.
STOPS = tuple(10.0**-exponent for exponent in range(1, 14))
# Below this gap the tie-break (see `ties.Ties`) would hide what is left.
EXACT = 1e-6
# The tolerance on a row's own atoms, relative to the walk's: an atom that is left out there must not fail the certificate.
OWN = 1e-3


@dataclass(frozen=True)
class PairwiseFrankWolfe(Solver):
    """Pairwise Frank-Wolfe (Lacoste-Julien and Jaggi 2015, Algorithm 2), with exact line search.

    Each iteration moves mass from the atom at hand that the residual likes least to the structure that it likes most. It
    converges linearly on a polytope, but needs hundreds of iterations where `ActiveSet` needs one an atom, so it is for
    cross-checks in small dimension.

    Its atoms may be affinely dependent, so that the scores do not determine their weights. A last step therefore solves the
    same problem on the hull of each row's own atoms, which leaves an affinely independent support with optimal weights.
    The certificate is then computed with the polytope's oracle; where it fails the walk goes on from that support.

    Where not all coordinates are regularised, scores of the others far below 1 make its steps as small: it may not arrive.

    Cost: an iteration is O(B S D) and one oracle call, S up to the number of iterations.

    Attributes:
        max_iter: iterations before a row is given up as not converged.
        tol: bound on the gap max_v <t - mu, v - mu> at which a row has converged.
    """

    max_iter: int = 5000
    tol: float = 1e-9

    def __post_init__(self) -> None:
        check_count("PairwiseFrankWolfe: max_iter", self.max_iter, 1)
        if not self.tol >= 0:
            raise ValueError(f"PairwiseFrankWolfe: tol must be at least 0, not {self.tol}")

    @uncompiled
    @torch.no_grad()
    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """See `Solver.solve`."""
        refuse_export("PairwiseFrankWolfe")
        oracle = Oracle.of(polytope, scores)
        walk = _Walk(oracle)
        support = self._stopped(walk, STOPS[0])
        for stop in STOPS[1:]:
            if walk.certified.all():
                break
            walk.atoms, walk.weights = support.atoms, support.probs
            support = self._stopped(walk, stop)
        return support

    def _stopped(self, walk: "_Walk", stop: float) -> Support:
        """The optimum on each row's own atoms once its gap is at most `stop`; the walk then knows which are certified."""
        walk.exact |= stop < EXACT
        walk.run(self.max_iter, stop)
        support = active_set(walk.own_atoms(), 100 + 20 * walk.atoms.shape[-1], OWN * self.tol)
        gap, noise = walk.certificate((support.probs[:, None] @ support.atoms)[:, 0])
        walk.certified = gap <= self.tol + noise
        stats = SolverStats(walk.iterations, gap.clamp(min=0), walk.certified, support.stats.margin)
        return replace(support, stats=stats)


class _Walk:
    """The state of a run: atoms [B, S, D] and their weights [B, S], zero on free slots."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.atoms = oracle.start()[:, None].clone()
        self.weights = torch.ones_like(self.atoms[..., 0])
        self.scale = row_scale(oracle.target)
        self.iterations = torch.zeros(len(self.atoms), dtype=torch.int64, device=self.atoms.device)
        self.certified = torch.zeros_like(self.iterations, dtype=torch.bool)
        self.exact = torch.zeros_like(self.certified)

    def run(self, max_iter: int, tol: float) -> None:
        """Walks every row that is not certified until its gap is at most `tol`."""
        arrived = self.certified.clone()
        step = 0
        while len(arrived):
            if step % POLL == 0:
                if (arrived | (self.iterations >= max_iter)).all():
                    break
                self.reserve(POLL)
            arrived = self.iterate(arrived | (self.iterations >= max_iter), tol)
            step += 1

    def iterate(self, arrived: Tensor, tol: float) -> Tensor:
        """One pairwise step of every row that has not arrived; returns which have now."""
        mean = (self.weights[:, None] @ self.atoms)[:, 0]
        residual = self.oracle.residual(mean)
        broken = self.oracle.ties.broken(residual, self.exact)
        towards = self.oracle.answer(broken.clone())  # an oracle may use its argument's memory
        gap, noise = self.gap(mean, towards)
        # Where scores are small so are weights, and the gap is of the order of their product.
        arrived = arrived | (gap <= tol * self.scale.square() + noise)
        self.iterations += ~arrived
        slopes = (self.atoms @ broken[..., None])[..., 0]
        worst = torch.where(self.weights > 0, slopes, torch.inf).argmin(-1, keepdim=True)
        away = self._take(worst)[:, 0]
        direction = towards - away
        # Exact line search on the quadratic, up to all of the worst atom's mass.
        parts = self.oracle.parts
        bent = direction if parts is None else direction[:, parts.regularized]
        rise, curve = (residual * direction).sum(-1, keepdim=True), bent.square().sum(-1, keepdim=True)
        most = self.weights.gather(-1, worst)
        mass = torch.minimum((rise / curve.clamp(min=torch.finfo(curve.dtype).tiny)).clamp(min=0), most)
        mass = torch.where(arrived[:, None], 0, mass)
        same = (self.atoms == towards[:, None]).all(-1) & (self.weights > 0)
        free = (self.weights == 0).to(torch.int8).argmax(-1, keepdim=True)
        slot = torch.where(same.any(-1, keepdim=True), same.to(torch.int8).argmax(-1, keepdim=True), free)
        self.atoms.scatter_(1, slot[..., None].expand(-1, 1, towards.shape[1]), towards[:, None])
        # All of the mass is moved by assignment, so that an atom that is left has weight zero exactly.
        self.weights.scatter_(-1, worst, torch.where(mass == most, 0, most - mass))
        self.weights.scatter_add_(-1, slot, mass)
        return arrived

    def certificate(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """max_v <t - mu, v - mu> over the polytope, and the rounding noise in it, [B] each."""
        return self.gap(mean, self.oracle(self.oracle.residual(mean), torch.ones_like(self.exact)))

    def gap(self, mean: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """<t - mu, v - mu> for one v, and the rounding noise in it, [B] each."""
        residual = self.oracle.residual(mean)
        eps = torch.finfo(mean.dtype).eps
        noise = 16 * eps * ((self.oracle.target.abs() + mean.abs()) * (best.abs() + mean.abs())).sum(-1)
        return (residual * (best - mean)).sum(-1), noise

    def reserve(self, spare: int) -> None:
        """Moves the atoms in use to the front and leaves `spare` free slots behind the longest row."""
        order = (self.weights == 0).to(torch.int8).argsort(dim=-1, stable=True)
        longest = int((self.weights > 0).sum(-1).amax())
        order = order[:, :longest]
        self.atoms = torch.nn.functional.pad(self._take(order), (0, 0, 0, spare))
        self.weights = torch.nn.functional.pad(self.weights.gather(-1, order), (0, spare))

    def own_atoms(self) -> "_OwnAtoms":
        """The oracle of the hull of each row's own atoms."""
        return _OwnAtoms(self.oracle.target, self.oracle.ties, self.atoms, self.weights > 0, self.oracle.parts)

    def _take(self, slots: Tensor) -> Tensor:
        return self.atoms.gather(1, slots[..., None].expand(-1, -1, self.atoms.shape[2]))


@dataclass(frozen=True)
class _OwnAtoms:
    """Maximisation over atoms [B, S, D] that each row has for itself, where `usable` [B, S]."""

    target: Tensor
    ties: Ties
    atoms: Tensor
    usable: Tensor
    parts: Parts | None

    def residual(self, mean: Tensor) -> Tensor:
        return objective_gradient(self.target, mean, self.parts)

    def __call__(self, residual: Tensor, exact: Tensor) -> Tensor:
        totals = (self.atoms @ self.ties.broken(residual, exact)[..., None])[..., 0]
        best = torch.where(self.usable, totals, -torch.inf).argmax(-1)
        return self.atoms.gather(1, best[:, None, None].expand(-1, 1, self.atoms.shape[2]))[:, 0]

    def start(self) -> Tensor:
        return self(self.target, torch.zeros_like(self.usable[:, 0]))

    def rows(self, kept: Tensor) -> "_OwnAtoms":
        return _OwnAtoms(self.target[kept], self.ties.rows(kept), self.atoms[kept], self.usable[kept], self.parts)
