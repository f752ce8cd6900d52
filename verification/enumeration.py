"""References by enumeration, in NumPy, for structures [V, D] that can be listed. They share no code with the oracles."""

import numpy as np
import numpy.typing as npt
from scipy import optimize

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# The margin by which a vertex must win to be called the projection of huge scores: far above rounding, relative.
_CLEAR = 1e-9
# Steps of the proximal point method, each one least squares, and the change at which it has arrived. Mostly it needs a few.
_PROXIMAL_STEPS = 200
_STILL = 1e-11


def totals(structures: Array, scores: Array) -> Array:
    """<a_z, t> of every structure: [V, D], [B, D] -> [B, V]; -inf where a structure has a forbidden coordinate on."""
    forbidden = np.isneginf(scores)
    values = np.where(forbidden, 0.0, scores) @ structures.T
    blocked = forbidden.astype(float) @ (structures != 0).T.astype(float) > 0
    return np.where(blocked, -np.inf, values)


def best_totals(structures: Array, scores: Array, k: int) -> Array:
    """The k largest <a_z, t>, best first: [B, min(k, V)]."""
    return -np.sort(-totals(structures, scores), axis=-1)[:, :k]


def index_of(points: Array, structures: Array, tolerance: float = 0.0) -> npt.NDArray[np.int64]:
    """Which structure each point [n, D] is, -1 for none: [n]."""
    if tolerance == 0:
        # Adding 0 makes -0 equal to 0, byte for byte.
        places = {row.tobytes(): place for place, row in enumerate(structures + 0.0)}
        return np.array([places.get(point.tobytes(), -1) for point in points + 0.0], dtype=np.int64)
    found = np.full(len(points), -1, dtype=np.int64)
    for place, point in enumerate(points):
        near = np.flatnonzero(np.abs(structures - point).max(-1) <= tolerance)
        if len(near):
            found[place] = near[0]
    return found


def gibbs_log_probs(structures: Array, scores: Array) -> Array:
    """log p(z) = <a_z, t> - log sum_z' exp <a_z', t>, nats: [B, V]."""
    logits = totals(structures, scores)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def entropy(log_probs: Array) -> Array:
    """-sum p log p, nats, of log-probabilities [B, V]."""
    probs = np.exp(log_probs)
    return -np.where(probs > 0, probs * np.where(probs > 0, log_probs, 0), 0).sum(-1)


def entropy_gradient(log_probs: Array, structures: Array) -> Array:
    """dH / dt = -sum_z p(z) (log p(z) + H) a_z for log-probabilities [B, V] of structures [V, D]: [B, D]."""
    probs = np.exp(log_probs)
    slopes = np.where(probs > 0, probs * (np.where(probs > 0, log_probs, 0) + entropy(log_probs)[:, None]), 0)
    return -slopes @ structures


def mean_gradient(log_probs: Array, structures: Array, weights: Array) -> Array:
    """d <E[a], w> / dt = Cov(a) w for log-probabilities [B, V] of structures [V, D], and weights [D]: [B, D]."""
    probs, weighted = np.exp(log_probs), structures @ weights
    return (probs * weighted) @ structures - (probs @ structures) * (probs @ weighted)[:, None]


def sparsemax(scores: Array) -> Array:
    """The projection on the simplex (paper eq. 8-9), row by row, by trying every support size: [B, V] -> [B, V]."""
    found = np.zeros_like(scores)
    for row, values in enumerate(scores):
        ordered = -np.sort(-values)
        for size in range(len(values), 0, -1):
            tau = (np.sum(ordered[:size] - ordered[0]) - 1) / size + ordered[0]
            if ordered[size - 1] > tau:
                found[row] = np.maximum(values - tau, 0)
                break
    return found


def projection(structures: Array, scores: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """argmin over conv(structures) of ||mu - t||^2, and where it is known to 1e-8: [B, D], [B].

    Where a vertex v has <t - v, a_z - v> <= 0 for every z it is v, exactly, at any scale. Elsewhere, for scores up to 1e3, by
    SciPy's bounded least squares (BVLS, Lawson and Hanson's active set method): the min-norm point of the hull of w_z = a_z - t
    is x / sum x for the x >= 0 that minimises ||W x||^2 + (sum x - 1)^2, since for x = s y with sum y = 1 the best s leaves
    ||W y||^2 / (1 + ||W y||^2), which is increasing in ||W y||^2.
    """
    means, known = np.zeros_like(scores), np.zeros(len(scores), dtype=bool)
    values = totals(structures, scores)
    for row, target in enumerate(scores):
        vertex = structures[values[row].argmax()]
        away = structures - vertex
        slopes = away @ (target - vertex)
        if (slopes <= -_CLEAR * (np.abs(away) @ np.abs(target - vertex))).all():
            means[row], known[row] = vertex, True
        elif np.abs(target).max() <= 1e3:
            system = np.vstack([(structures - target).T, np.ones(len(structures))])
            wanted = np.zeros(len(target) + 1)
            wanted[-1] = 1
            fit = optimize.lsq_linear(system, wanted, (0, np.inf), method="bvls", tol=1e-15, max_iter=10 * len(structures))
            means[row], known[row] = fit.x / fit.x.sum() @ structures, True
    return means, known


def partial_mean(structures: Array, scores: Array, regularized: Mask) -> tuple[Array, Mask]:
    """argmax over conv(structures) of <mu, t> - 1/2 ||mu_R||^2, R where `regularized` [D], and where mu_R is known to 1e-8.

    A vertex is recognised as in `projection`. Elsewhere the linear term c'xi = sum over the rest is replaced by the square
    -e/2 (c'xi - g - 1/e)^2, whose slope at c'xi = g is c'xi's own: with that one more coordinate the problem is a projection,
    and g <- c'xi until it stays is the proximal point method in one dimension. The rest of mu need not be unique.
    """
    means, known = np.zeros_like(scores), np.zeros(len(scores), dtype=bool)
    bent, totalled = structures[:, regularized], totals(structures, scores)
    for row, target in enumerate(scores):
        vertex = structures[totalled[row].argmax()]
        away = structures - vertex
        slope = target - np.where(regularized, vertex, 0.0)
        if (away @ slope <= -_CLEAR * (np.abs(away) @ np.abs(slope))).all():
            means[row], known[row] = vertex, True
        elif np.abs(target).max() <= 1e3:
            gains = away[:, ~regularized] @ target[~regularized]
            spread = max(1.0, float(np.abs(gains).max()))
            root = 0.3 / spread  # sqrt(e): small for few steps, large for accuracy
            system = np.vstack([(bent - target[regularized]).T, root * gains, np.ones(len(structures))])
            wanted = np.zeros(len(system))
            wanted[-1] = 1
            level = 0.0
            for _ in range(_PROXIMAL_STEPS):
                system[-2] = root * gains - root * level - 1 / root
                fit = optimize.lsq_linear(system, wanted, (0, np.inf), method="bvls", tol=1e-15, max_iter=10 * len(structures))
                weights = fit.x / fit.x.sum()
                moved, level = abs(gains @ weights - level), float(gains @ weights)
                if moved <= _STILL * spread:
                    means[row], known[row] = weights @ structures, True
                    break
    return means, known


def distance(structures: Array, points: Array) -> Array:
    """How far each point [n, D] is from the hull, in the largest coordinate: [n]."""
    nearest, _ = projection(structures, points)
    return np.abs(nearest - points).max(-1)
