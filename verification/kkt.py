"""The optimality conditions of SparseMAP and their derivative, in float64 NumPy, from the paper's appendix B (eq. 10-17).

Where only the coordinates R are regularised (`regularized`, a mask [D]; None for all), A'A is A_R'A_R, and t - mu is t off R.
Written from the equations, with dense solves, and not from `layers.refit`, which it checks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A slope this close to the best (at scale 1) is that of a structure on the face that holds the mean. Between it and the
# margin that derivatives ask for lies nothing that is compared.
_TIGHT = 1e-7
# Directions of a face that are this short in R (of length 1) are not determined by the l2 term.
_FLAT = 1e-6


@dataclass(frozen=True)
class Residuals:
    """How far (mu, xi) is from the solution of min ||A xi - t||^2 over the simplex; all are 0 at it.

    Attributes:
        total: |sum xi - 1|.
        negative: max(0, -min xi).
        slackness: max over the support of |<a_s, t - mu> - tau| with tau = <mu, t - mu> (eq. 13; nu_s = 0).
        violation: max(0, -min nu_z) over all structures, nu_z = tau - <a_z, t - mu> (eq. 16).
        gap: max_z <t - mu, a_z - mu>, the Frank-Wolfe (Wolfe) gap; bounds ||mu - mu*||^2.
    """

    total: float
    negative: float
    slackness: float
    violation: float
    gap: float


def residuals(atoms: Array, probs: Array, scores: Array, structures: Array, regularized: Mask | None = None) -> Residuals:
    """For one row: atoms [S, D], probs [S], scores [D], structures [V, D] (or only the best ones for t - mu)."""
    mean = probs @ atoms
    rest = _gradient(scores, mean, regularized)
    # Differences of structures and mean first: coordinates on which all agree vanish, however large their scores.
    slopes = (atoms - mean) @ rest
    gap = float(((structures - mean) @ rest).max())
    return Residuals(
        total=abs(float(probs.sum()) - 1),
        negative=max(0.0, -float(probs.min())),
        slackness=float(np.abs(slopes[probs > 0]).max()),
        violation=max(0.0, gap),
        gap=gap,
    )


def weights(atoms: Array, scores: Array) -> Array:
    """The xi of the KKT system [[A'A, 1], [1', 0]] [xi; tau] = [A't; 1] (eq. 13): [S, D], [D] -> [S]."""
    return np.asarray(np.linalg.solve(_system(atoms), np.append(atoms @ scores, 1.0)), np.float64)[:-1]


def weights_jacobian(atoms: Array, regularized: Mask | None = None) -> Array:
    """d xi / d t on the support, [S, D]: eq. 13 differentiated, [[A'A, 1], [1', 0]] [d xi; d tau] = [A' dt; 0].

    Eq. 17 is its transpose, (S - s s' / 1's) A' with S = (A'A)^-1 where that exists; the system asks only that the atoms be
    affinely independent.
    """
    right = np.vstack([atoms, np.zeros(atoms.shape[1])])
    return np.asarray(np.linalg.solve(_system(_kept(atoms, regularized)), right), np.float64)[:-1]


def sparsemax_jacobian(probs: Array) -> Array:
    """diag(s) - s s' / |s| for the support's indicator s (eq. 10): [K] -> [K, K]."""
    support = (probs > 0).astype(float)
    return np.diag(support) - np.outer(support, support) / support.sum()


def face_projector(vertices: Array, regularized: Mask | None = None) -> Array:
    """d mu / d t where mu is inside the face with these vertices [T, D]: the projector on the face's directions, [D, D].

    With B an orthonormal basis of the directions it is B'(B_R B_R')^-1 B, the projector if R is everything.
    """
    basis = _directions(vertices)
    bent = _kept(basis, regularized)
    return basis.T @ np.linalg.pinv(bent @ bent.T) @ basis


@dataclass(frozen=True)
class Margin:
    """How strictly complementarity holds for the mean of one row: derivatives exist where both numbers are positive.

    Attributes:
        face: indices of the structures on the face {z : <a_z, t - mu> maximal}.
        gap: how far the best structure off the face is below it; inf if there is none.
        weight: the largest w such that mu is a combination of all the face's structures, each with at least w.
        reach: a step dt with |dt|_2 at most this moves mu within the same face.
    """

    face: npt.NDArray[np.int64]
    gap: float
    weight: float
    reach: float

    def is_at_least(self, margin: float) -> bool:
        """Whether both numbers are."""
        return self.gap >= margin and self.weight >= margin


def margin(structures: Array, scores: Array, mean: Array, regularized: Mask | None = None) -> Margin:
    """The margin of the projection `mean` [D] of scores [D] on conv(structures [V, D])."""
    slopes = (structures - mean) @ _gradient(scores, mean, regularized)
    scale = max(1.0, float(np.abs(scores).max()), float(np.abs(mean).max())) * max(1.0, float(np.abs(structures).max()))
    tight = slopes >= -_TIGHT * scale
    face = np.flatnonzero(tight)
    gap = float(-slopes[~tight].max()) if (~tight).any() else np.inf
    on_face = structures[face]
    weight = _interior_weight(on_face, mean)
    speed = 1.0  # of mu: |d mu| <= speed |dt|
    if regularized is not None:
        basis = _directions(on_face)[:, regularized]
        if np.linalg.svd(basis, compute_uv=False).min(initial=1.0) < _FLAT:
            weight = 0.0  # mu is not determined outside R
        speed = float(np.linalg.norm(face_projector(on_face, regularized), 2))
    system = np.vstack([on_face.T, np.ones(len(face))])
    per_step = float(np.linalg.norm(np.linalg.pinv(system), axis=1).max())
    width = float(np.linalg.norm(structures - mean, axis=1).max())
    # With everything regularised t - mu moves no faster than t.
    turn = 1.0 if regularized is None else 1.0 + speed
    return Margin(face, gap, weight, min(weight / (per_step * max(speed, 1e-12)), gap / max(turn * width, 1e-12)))


def _interior_weight(vertices: Array, mean: Array) -> float:
    """max w such that mean = sum_v xi_v v, sum xi = 1, xi >= w; by linear programming over (xi - w, w)."""
    count = len(vertices)
    if count == 1:
        return 1.0
    # The mean is known to 1e-8 at best, so it is first put into the affine hull of the face.
    inside = vertices[0] + face_projector(vertices) @ (mean - vertices[0])
    equal = np.vstack([np.column_stack([vertices.T, vertices.sum(0)]), np.append(np.ones(count), count)])
    found = optimize.linprog(
        np.append(np.zeros(count), -1.0), A_eq=equal, b_eq=np.append(inside, 1.0), bounds=(0, None), method="highs"
    )
    return float(found.x[-1]) if found.status == 0 else 0.0


def _directions(vertices: Array) -> Array:
    """An orthonormal basis of the directions of the face with these vertices, [k, D]."""
    _, sizes, right = np.linalg.svd(vertices - vertices[0], full_matrices=False)
    return right[sizes > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))]


def _kept(values: Array, regularized: Mask | None) -> Array:
    return values if regularized is None else values[:, regularized]


def _gradient(scores: Array, mean: Array, regularized: Mask | None) -> Array:
    return scores - (mean if regularized is None else np.where(regularized, mean, 0.0))


def _system(atoms: Array) -> Array:
    count = len(atoms)
    matrix = np.ones((count + 1, count + 1))
    matrix[:count, :count] = atoms @ atoms.T
    matrix[count, count] = 0
    return matrix
