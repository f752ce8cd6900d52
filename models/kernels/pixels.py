"""`objective.pixel_cross_entropy` compiled for the CPU: the logits of one pixel at a time, which stay in the core's cache."""

import numba
import numpy as np

from ...layers.kernels.vectors import FAST, ONE, ZERO, Array, Scalar, dot, exponentiate, largest


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def pixel_costs(
    ranks: tuple[int, ...],  # 0 ... rank - 1: of known length when this is compiled, so that loops over it are unrolled
    features: Array,  # [n, pixels, rank]
    weight: Array,  # [rank, levels]
    bias: Array,  # [levels]
    images: Array,  # [n, pixels] int64
    costs: Array,  # [n], and the following, are written
    by_features: Array,  # [n, pixels, rank]
    by_head: Array,  # [n, rank + 1, levels]
    wanted: bool,  # whether derivatives are
) -> None:
    """-log p(x | z) of pairs, and its derivatives by features and head."""
    masses = np.empty(bias.shape[0], np.float32)
    for pair in range(features.shape[0]):
        cost = 0.0
        if wanted:
            by_head[pair] = ZERO
        for pixel in range(features.shape[1]):
            here, target = features[pair, pixel], images[pair, pixel]
            _logits(ranks, masses, here, weight, bias)
            picked, peak = masses[target], largest(masses)
            total = exponentiate(masses, peak)
            cost += np.log(np.float64(total)) + peak - picked
            if wanted:
                for r in range(len(ranks)):
                    by_features[pair, pixel, r] = dot(weight[r], masses) / total - weight[r, target]
                    by_head[pair, r, target] -= here[r]
                by_head[pair, len(ranks), target] -= ONE
                _add_outer(ranks, by_head[pair], here, masses, ONE / total)
        costs[pair] = cost


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def _logits(ranks: tuple[int, ...], logits: Array, features: Array, weight: Array, bias: Array) -> None:
    for level in range(logits.shape[0]):
        total = bias[level]
        for r in range(len(ranks)):
            total += weight[r, level] * features[r]
        logits[level] = total


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def _add_outer(ranks: tuple[int, ...], into: Array, features: Array, masses: Array, scale: Scalar) -> None:
    """into += scale (features, 1) masses'."""
    for level in range(masses.shape[0]):
        mass = masses[level] * scale
        for r in range(len(ranks)):
            into[r, level] += features[r] * mass
        into[len(ranks), level] += mass
