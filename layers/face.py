"""The derivative of the mean alone: the projector on all directions of the face on which it lies.

The weights of a support have derivatives in the directions that its atoms span, which may be fewer than those of the face: see
`solvers.ActiveSet`. The mean has one in all of them: that of a projection on a polyhedron is the projection on the critical
cone (Haraux 1977; Facchinei and Pang 2003, theorem 4.1.1). But for a null set of scores the mean lies in the interior of its
face, the cone is the space of that, and

    d mu = W W' dt,      W spanning {v - v' : v, v' of the face}, orthonormal in the coordinates that are regularised.

The directions that are missing are asked of the oracle. The face's structures are those that maximise g = t - mu, and
g + eps n for a small eps picks one of them that is farthest along n. With n random and orthogonal to the directions known, it
adds one; or the whole face has the same product with n, and then almost surely nothing is missing. These structures have no
weight, and no decoder sees them.
"""

import torch
from torch import Tensor

from ..oracles import Parts
from .distribution import SparseDistribution
from .solvers.oracle import Oracle
from .solvers.supports import used_first
from .solvers.ties import GRID_EXPONENT, extent, hashed
from .stats import SolverStats

# How far g is bent, relative to its scale, and at least, in units of its noise. A kink that is nearer is seen as one, and then
# g is bent less, down to the last number of units.
BENT, MUCH_NOISE, LITTLE_NOISE = 1e-7, 1e3, 30.0
# A structure is of the face if what it loses by g is noise, or no more than this fraction of what it gains by the bend.
LOST = 1e-2
# What is left of a direction without its part along those known is one more if it is longer than this, relatively.
NEW = 1e-5
# A structure is along a direction if so much of it is, relatively: above rounding.
ALONG = 1e-7
# Questions of a row at once where something is missing: with every answer that was new, twice as many.
NEXT, MOST = 4, 32
# The first number that is hashed to a random vector; those before are for ties.
SEED = 2**28


def incomplete_rows(found: SparseDistribution, mean: Tensor, scores: Tensor, oracle: Oracle) -> Tensor:
    """The rows [n] int64 that have converged and whose mean has more directions than its derivative, or may have.

    Args:
        found: the support, with `SolverStats`.
        mean: [B, D] float64, of it.
        scores: t [B, D] float64, of which the mean is a function.
        oracle: of them.

    Cost: one structure a row asked of the oracle, and one vector-Jacobian product.
    """
    with torch.no_grad():
        bend = _Bend.of(found, oracle)
        noise = _tilts(oracle, 0, 1)
        # The derivative is symmetric, so that a vector-Jacobian product is the part along the directions known.
        known = _regularized(_product(mean, scores, noise[:, 0]), oracle.parts)
        tilt = _normalized(noise - known[:, None], noise)
        away, on_face = _farthest(oracle, mean.detach(), tilt, bend)
        missing = (_gains(tilt, away) | ~on_face)[:, 0]
        return (missing & _converged(found)).nonzero()[:, 0]


def first_order(directions: Tensor, scores: Tensor) -> Tensor:
    """0, with the derivative W W' dt: [B, D, F], [B, D] -> [B, D]. Scores of `-inf` do not move."""
    change = torch.where(scores.isneginf(), 0, scores - scores.detach())
    return (directions @ (directions.mT @ change[..., None]))[..., 0]


@torch.no_grad()
def face_directions(found: SparseDistribution, oracle: Oracle) -> Tensor:
    """W [B, D, F] of every row, with columns of 0 where a face has fewer than F directions.

    Of rows that have not converged, whose face is not known, W spans what their atoms do.

    Args:
        found: the support in float64, with `SolverStats` and atoms that are affinely independent.
        oracle: of its scores.

    Cost: O(B D F^2) time, O(B D F) memory and some F + 4 - S structures a row asked of the oracle, up to 32 at once.
    """
    if len(oracle.target) == 0:
        return torch.zeros_like(oracle.target[..., None])
    known, bend = _Directions(found, oracle), _Bend.of(found, oracle)
    live, asked, count = _converged(found).nonzero()[:, 0], 1, NEXT
    while len(live):
        here = oracle.rows(live)
        noise = _tilts(here, asked, count)
        tilt = _normalized(known.off(noise, live), noise)
        away, on_face = _farthest(here, known.mean[live], tilt, bend.rows(live))
        new = known.add(torch.where(_gains(tilt, away)[..., None], away, 0), live)
        unsure = ~new & ~on_face.any(-1)
        bend.by[live[unsure]] /= 10
        live = live[new | (unsure & (bend.by > LITTLE_NOISE * bend.noise)[live])]
        asked, count = asked + count, min(2 * count, MOST)
    return known.basis


class _Bend:
    """How far g is bent of each row, and what there is to be seen above.

    Attributes:
        noise: [B] of an entry of g: how far residuals are told apart, and rounding.
        by: [B] the largest entry of what is added to g.
    """

    def __init__(self, noise: Tensor, by: Tensor) -> None:
        self.noise, self.by = noise, by

    @staticmethod
    def of(found: SparseDistribution, oracle: Oracle) -> "_Bend":
        """For a solution: on the scale of the scores or of the structures, whichever is smaller."""
        target = oracle.target.abs()
        largest = target.amax(-1)
        size = torch.zeros_like(largest).scatter_reduce(0, found.row, extent(found.atoms), "amax")
        scale = torch.minimum(largest, size)
        noise = 2.0**GRID_EXPONENT * scale + 8 * torch.finfo(scale.dtype).eps * (target + size[:, None]).sum(-1)
        by = torch.maximum(BENT * scale, MUCH_NOISE * noise)
        return _Bend(noise, torch.where(by > 0, by, 1))

    def rows(self, rows: Tensor) -> "_Bend":
        """That of some rows."""
        return _Bend(self.noise[rows], self.by[rows])


class _Directions:
    """Directions of faces that are known, orthonormal over R, to begin with those that the atoms span.

    Attributes:
        mean: [B, D] the solution on the affine hull of what is known, where g has the same product with all of it.
    """

    def __init__(self, found: SparseDistribution, oracle: Oracle) -> None:
        atoms, probs = used_first(*found.padded())
        self.oracle, self.parts, base = oracle, oracle.parts, atoms[:, 0]
        used = (probs > 0)[:, 1 : 1 + _of_r(atoms, self.parts).shape[-1]]  # no more than R of them are independent
        edges = (atoms[:, 1 : 1 + used.shape[1]] - base[:, None]).mT * used[:, None]
        basis, triangle = torch.linalg.qr(_of_r(edges.mT, self.parts).mT)
        if self.parts is not None:
            triangle = triangle + torch.diag_embed((~used).to(triangle))
            basis = torch.linalg.solve_triangular(triangle, edges, upper=True, left=False)
        self._room = basis * used[:, None]  # [B, D, at least F]
        self._count = used.sum(-1)
        self.mean = base + self._along(self._room, oracle.residual(base))

    @property
    def basis(self) -> Tensor:
        """W [B, D, F]."""
        return self._room[..., : int(self._count.amax())]

    def off(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Vectors [n, m, D] of some rows, in order, without their part along W."""
        basis = self.basis if len(rows) == len(self._count) else self.basis[rows]
        return vectors - _regularized(vectors, self.parts) @ basis @ basis.mT

    def add(self, away: Tensor, rows: Tensor) -> Tensor:
        """Adds differences [n, m, D] of structures of some rows, as far as they are new; where there was one, [n] bool."""
        length = _of_r(away, self.parts).norm(dim=-1, keepdim=True)
        rest = self.off(away / torch.where(length > 0, length, 1), rows)
        # Singular vectors of what is left; then all once more, against rounding: of few digits left, and of squares.
        over = _of_r(rest, self.parts)
        sizes, mixed = torch.linalg.eigh(over @ over.mT)
        new = sizes > NEW**2  # increasing: the last ones
        fresh = self.off(torch.where(new, sizes.clamp(min=NEW**2).rsqrt(), 0)[..., None] * (mixed.mT @ rest), rows)
        over = _of_r(fresh, self.parts)
        triangle = torch.linalg.cholesky(over @ over.mT + torch.diag_embed((~new).to(fresh)))
        fresh = torch.linalg.solve_triangular(triangle, fresh, upper=False)

        number = new.sum(-1)
        self._make_room(int((self._count[rows] + number).amax()))
        row, place = new.nonzero(as_tuple=True)
        slot = self._count[rows[row]] + place - (new.shape[1] - number[row])
        self._room[rows[row], :, slot] = fresh[row, place]
        self._count[rows] += number
        self.mean[rows] += self._along(fresh.mT, self.oracle.rows(rows).residual(self.mean[rows]))
        return number > 0

    def _make_room(self, count: int) -> None:
        room = self._room.shape[-1]
        if count > room:
            self._room = torch.nn.functional.pad(self._room, (0, max(count, min(2 * room, self._room.shape[1])) - room))

    @staticmethod
    def _along(basis: Tensor, residual: Tensor) -> Tensor:
        return (basis @ (basis.mT @ residual[..., None]))[..., 0]


def _farthest(oracle: Oracle, mean: Tensor, tilt: Tensor, bend: _Bend) -> tuple[Tensor, Tensor]:
    """What is farthest along each tilt [B, m, D] of a row's face, less the mean [B, D], and whether it is of the face [B, m].

    0 where it is not, as g was bent too far.
    """
    slope = oracle.residual(mean)
    bent = bend.by[:, None, None] * tilt
    rows = torch.arange(len(mean), device=mean.device)[:, None].expand(tilt.shape[:2])
    structures = oracle.rows(rows.flatten()).answer((slope[:, None] + bent).flatten(0, 1)).reshape(tilt.shape)
    away = structures - mean[:, None]
    lost, gained = -(away @ slope[..., None])[..., 0], (bent * away).sum(-1)
    noise = 8 * bend.noise[:, None] * away.abs().amax(-1)
    on_face = lost <= torch.maximum(LOST * gained, noise)
    return torch.where(on_face[..., None], away, 0), on_face


def _tilts(oracle: Oracle, first: int, count: int) -> Tensor:
    """Random vectors, those from `first` on, for each row [B, m, D], of coordinates that are regularised and allowed."""
    dim, device = oracle.target.shape[-1], oracle.target.device
    numbers = torch.arange(first * dim, (first + count) * dim, device=device).reshape(count, dim)
    tilt = _regularized(2 * hashed(SEED + numbers) - 1, oracle.parts).expand(len(oracle.target), count, dim)
    return tilt if oracle.forbidden is None else torch.where(oracle.forbidden[:, None], 0, tilt)


def _normalized(tilt: Tensor, whole: Tensor) -> Tensor:
    """What is left [B, m, D] of vectors, scaled to entries up to 1; 0 where no more than rounding is left of the whole."""
    largest, least = tilt.abs().amax(-1, keepdim=True), NEW * whole.abs().amax(-1, keepdim=True)
    return torch.where(largest > least, tilt / torch.where(largest > least, largest, 1), 0)


def _gains(tilt: Tensor, away: Tensor) -> Tensor:
    """Whether differences [B, m, D] from the mean are along their tilts, [B, m] bool."""
    return (tilt * away).sum(-1) > ALONG * tilt.norm(dim=-1) * away.norm(dim=-1)


def _product(mean: Tensor, scores: Tensor, vector: Tensor) -> Tensor:
    """The vector-Jacobian product of the mean: [B, D] -> [B, D]."""
    if not mean.requires_grad:
        return torch.zeros_like(vector)
    return torch.autograd.grad(mean, scores, vector, retain_graph=True)[0]


def _converged(found: SparseDistribution) -> Tensor:
    assert isinstance(found.stats, SolverStats)
    return found.stats.converged


def _regularized(vectors: Tensor, parts: Parts | None) -> Tensor:
    """Vectors [..., D] with 0 for what is not regularised."""
    return vectors if parts is None else parts.penalized(vectors)


def _of_r(vectors: Tensor, parts: Parts | None) -> Tensor:
    """Vectors [..., D] without what is not regularised: [..., R]."""
    return vectors if parts is None else parts.split(vectors)[0]
