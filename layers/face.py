"""The derivative of the mean alone: the projector on all directions of the face on which it lies.

The weights of a support have derivatives in the directions that its atoms span, which may be fewer than those of the face: see
`solvers.ActiveSet`. The mean has one in all of them. It lies in the interior of its face, but for a null set of scores, and
moves within it by

    d mu = W W' dt,      W spanning {v - v' : v, v' of the face}, orthonormal in the coordinates that are regularised.

The directions that are missing are asked of the oracle. The face's structures are those that maximise g = t - mu, and
g + eps n for a small eps picks one of them that is farthest along n. With n random and orthogonal to the directions known, it
adds one; or the whole face has the same product with n, and then almost surely nothing is missing. These structures have no
weight, and no decoder sees them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..oracles import Parts
from .solvers.oracle import Oracle
from .solvers.supports import used_first

# How far g is bent, at scale 1: far above the noise of a mean with a gap of 1e-12, and below the distance to most kinks.
BENT = 1e-7
# A structure is of the face if what it loses by g is no more than this fraction of what it gains by the bend.
LOST = 1e-2
# A direction is new if so much of it, relatively, is not along those known.
NEW = 1e-6
# One question a row says whether anything is missing. Where something is, more are asked at once, up to this.
MOST_AT_ONCE = 32
# How many numbers, about, are worked on at once, beside those that are kept for the derivative.
ENTRIES = 2**24
# Of the random vectors, which must have nothing to do with the scores: a seed that nobody draws scores with.
SEED = 0x9E3779B97F4A7C15 >> 1


Atoms = Callable[[Tensor], tuple[Tensor, Tensor]]


def completed(mean: Tensor, scores: Tensor, oracle: Oracle, converged: Tensor, support: Atoms) -> Tensor:
    """The mean as a function of the scores, with its derivative in all directions of the face.

    Args:
        mean: [B, D] float64, of a support, with the derivative that this has; gap about 1e-12.
        scores: t [B, D] float64, no leaf.
        oracle: of the scores.
        converged: [B] bool. Other rows stay as they are.
        support: the atoms [n, S, D] and probs [n, S] of some rows [n] int64.

    Cost: one vector-Jacobian product and one call of the oracle, and `face_directions` of the rows where these found something
    missing.
    """
    with torch.no_grad():
        tilt = _tilts(oracle, _random(1, mean, torch.Generator().manual_seed(SEED)))
        known = _product(mean, scores, tilt[:, 0])
        tilt = _normalized(tilt - _over(known, oracle.parts)[:, None], tilt)
        missing = _gains(tilt, _farthest(oracle, mean.detach(), tilt))[:, 0]
        rows = (missing & converged).nonzero()[:, 0]
    if len(rows) == 0:
        return mean
    at_once = max(1, ENTRIES // scores.shape[-1] ** 2)
    steps = [moved(face_directions(oracle.rows(some), *support(some)), scores[some]) for some in rows.split(at_once)]
    return mean.index_copy(0, rows, mean[rows].detach() + torch.cat(steps))


def moved(directions: Tensor, scores: Tensor) -> Tensor:
    """W W' dt, 0 in value: [B, D, F], [B, D] -> [B, D]. Scores of `-inf` do not move."""
    change = torch.where(scores.isneginf(), 0, scores - scores.detach())
    return (directions @ (directions.mT @ change[..., None]))[..., 0]


@torch.no_grad()
def face_directions(oracle: Oracle, atoms: Tensor, probs: Tensor) -> Tensor:
    """W [B, D, F] of every row, with columns of 0 where a face has fewer than F directions.

    Args:
        oracle: of scores t [B, D].
        atoms, probs: [B, S, D] float64 and [B, S] of the solution, as `refit` takes them. With B = 0 there may be no slot.

    Cost: O(B D F^2) time, O(B D F) memory, and some F + 1 - S structures a row asked of the oracle, up to 32 at once.
    """
    if len(atoms) == 0:
        return torch.zeros_like(oracle.target[..., None])
    known = _Directions(*used_first(atoms, probs), oracle.parts)
    generator = torch.Generator().manual_seed(SEED)
    live, at_once = torch.arange(len(oracle.target), device=oracle.target.device), 4
    while len(live):
        of_live = oracle.rows(live)
        tilt = _tilts(of_live, _random(at_once, oracle.target, generator))
        tilt = _normalized(known.off(tilt, live), tilt)
        away = _farthest(of_live, known.solution(of_live, live), tilt)
        live = live[known.add(torch.where(_gains(tilt, away)[..., None], away, 0), live)]
        at_once = min(2 * at_once, MOST_AT_ONCE)
    return known.basis


class _Directions:
    """Directions of faces that are known, orthonormal over R.

    Args:
        atoms, probs: the structures of each row that they start with, [B, S, D] and [B, S], those that are used first.
        parts: which coordinates R are regularised; None for all.
    """

    def __init__(self, atoms: Tensor, probs: Tensor, parts: Parts | None) -> None:
        self.parts, self.base = parts, atoms[:, 0]
        used = (probs > 0)[:, 1 : 1 + _over_r(atoms, parts).shape[-1]]  # no more than R of them are independent
        spans = ((atoms[:, 1 : 1 + used.shape[1]] - self.base[:, None]) * used[..., None]).mT
        basis, triangle = torch.linalg.qr(_over_r(spans.mT, parts).mT)
        if parts is not None:
            triangle = triangle + torch.diag_embed((~used).to(triangle))
            basis = torch.linalg.solve_triangular(triangle, spans, upper=True, left=False)
        self.basis = basis * used[:, None]  # [B, D, F]: W
        self.count = used.sum(-1)

    def solution(self, oracle: Oracle, rows: Tensor) -> Tensor:
        """The solution [n, D] on the affine hull of what is known of some rows, whose oracle is given."""
        base, basis = self.base[rows], self.basis[rows]
        return base + (basis @ (basis.mT @ oracle.residual(base)[..., None]))[..., 0]

    def off(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Vectors [n, m, D] of some rows without their part along W."""
        return _off(vectors, self.basis[rows], self.parts)

    def add(self, away: Tensor, rows: Tensor) -> Tensor:
        """Adds directions [n, m, D] of some rows, those that are new; where there was one, [n] bool."""
        rest, length = self.off(away, rows), self._length(away)
        fresh = rest.new_zeros(len(rows), rest.shape[-1], rest.shape[1])
        number = torch.zeros_like(rows)
        for place in range(rest.shape[1]):
            one = _off(rest[:, place : place + 1], fresh, self.parts)[:, 0]
            size = self._length(one)
            new = size > NEW * length[:, place]
            one = torch.where(new[:, None], one / torch.where(new, size, 1)[:, None], 0)
            slot = number.clamp(max=fresh.shape[-1] - 1)[:, None, None].expand(-1, fresh.shape[1], 1)
            fresh = fresh.scatter_add(2, slot, one[..., None])
            number = number + new
        most = int(number.amax())
        spare = self.basis.shape[-1] - int((self.count[rows] + most).amax())
        self.basis = torch.nn.functional.pad(self.basis, (0, max(0, -spare)))
        row, place = (torch.arange(most, device=rows.device) < number[:, None]).nonzero(as_tuple=True)
        self.basis[rows[row], :, self.count[rows[row]] + place] = fresh[row, :, place]
        self.count[rows] += number
        return number > 0

    def _length(self, vectors: Tensor) -> Tensor:
        return _over(vectors, self.parts).norm(dim=-1)


def _random(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(count, like.shape[-1], generator=generator, dtype=like.dtype).to(like.device)


def _tilts(oracle: Oracle, noise: Tensor) -> Tensor:
    """Noise [m, D] for each row, [B, m, D], of coordinates that are regularised and allowed."""
    tilt = _over(noise, oracle.parts).expand(len(oracle.target), *noise.shape)
    return tilt if oracle.forbidden is None else torch.where(oracle.forbidden[:, None], 0, tilt)


def _normalized(tilt: Tensor, before: Tensor) -> Tensor:
    """Tilts [B, m, D] with entries up to 1; 0 for what is rounding of those before."""
    largest, least = tilt.abs().amax(-1, keepdim=True), NEW * before.abs().amax(-1, keepdim=True)
    return torch.where(largest > least, tilt / torch.where(largest > least, largest, 1), 0)


def _product(mean: Tensor, scores: Tensor, vector: Tensor) -> Tensor:
    """The derivative of the mean along a vector [B, D], or against it: it is symmetric."""
    if not mean.requires_grad:
        return torch.zeros_like(vector)
    return torch.autograd.grad(mean, scores, vector, retain_graph=True)[0]


def _farthest(oracle: Oracle, mean: Tensor, tilt: Tensor) -> Tensor:
    """What is farthest along each tilt [B, m, D] of a row's face, less the mean [B, D]; 0 where the answer is off the face."""
    slope = oracle.residual(mean)
    scale = torch.minimum(oracle.target.abs().amax(-1), mean.abs().amax(-1))
    bend = BENT * torch.where(scale > 0, scale, 1)[:, None, None] * tilt
    rows = torch.arange(len(mean), device=mean.device)[:, None].expand(tilt.shape[:2])
    structures = oracle.rows(rows.flatten()).answer((slope[:, None] + bend).flatten(0, 1)).reshape(tilt.shape)
    away = structures - mean[:, None]
    lost = -(away @ slope[..., None])[..., 0]
    return torch.where((lost <= LOST * (bend * away).sum(-1))[..., None], away, 0)


def _gains(tilt: Tensor, away: Tensor) -> Tensor:
    """Whether what was found [B, m, D] is farther along the tilt than the mean is: [B, m] bool."""
    return (tilt * away).sum(-1) > NEW * tilt.norm(dim=-1) * away.norm(dim=-1)


def _off(vectors: Tensor, basis: Tensor, parts: Parts | None) -> Tensor:
    """Vectors [n, m, D] less their part along a basis [n, D, F]: twice, against rounding."""
    for _ in range(2):
        vectors = vectors - _over(vectors, parts) @ basis @ basis.mT
    return vectors


def _over(vectors: Tensor, parts: Parts | None) -> Tensor:
    """Vectors [..., D] with 0 where they are not regularised."""
    return vectors if parts is None else parts.penalized(vectors)


def _over_r(vectors: Tensor, parts: Parts | None) -> Tensor:
    """Vectors [..., D] without what is not regularised."""
    return vectors if parts is None else parts.split(vectors)[0]
