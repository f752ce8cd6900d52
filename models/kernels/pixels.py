"""`objective.pixel_cross_entropy` compiled for the CPU: the logits of four pixels at a time, which stay in the core's cache.

Four, because what they share, the head and its derivatives, is then read and written once for all of them.
"""

import numba
import numpy as np

from ...kernels.vectors import FAST, ONE, ZERO, Array, Scalar, exponentiate, largest

GROUP = 4


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
    pixels = features.shape[1]
    masses = np.empty((GROUP, bias.shape[0]), np.float32)
    here = np.empty((GROUP, len(ranks)), np.float32)
    scales = np.empty(GROUP, np.float32)
    for pair in range(features.shape[0]):
        cost = 0.0
        if wanted:
            by_head[pair] = ZERO
        for start in range(0, pixels, GROUP):
            count = min(GROUP, pixels - start)
            for place in range(GROUP):  # beyond the last pixel: features and scales of zero
                for r in range(len(ranks)):
                    here[place, r] = features[pair, start + place, r] if place < count else ZERO
            _logits(ranks, masses, here, weight, bias)
            for place in range(GROUP):
                scales[place] = ZERO
                if place < count:
                    picked, peak = masses[place, images[pair, start + place]], largest(masses[place])
                    total = exponentiate(masses[place], peak)
                    cost += np.log(np.float64(total)) + peak - picked
                    scales[place] = ONE / total
            if wanted:
                for r in range(len(ranks)):
                    means = _products(weight[r], masses)
                    for place in range(count):
                        target = images[pair, start + place]
                        by_features[pair, start + place, r] = means[place] * scales[place] - weight[r, target]
                        by_head[pair, r, target] -= here[place, r]
                for place in range(count):
                    by_head[pair, len(ranks), images[pair, start + place]] -= ONE
                _add_outer(ranks, by_head[pair], here, masses, scales)
        costs[pair] = cost


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def _logits(ranks: tuple[int, ...], logits: Array, features: Array, weight: Array, bias: Array) -> None:
    one, two, three, four = logits[0], logits[1], logits[2], logits[3]
    for level in range(bias.shape[0]):
        a = b = c = d = bias[level]
        for r in range(len(ranks)):
            slope = weight[r, level]
            a += slope * features[0, r]
            b += slope * features[1, r]
            c += slope * features[2, r]
            d += slope * features[3, r]
        one[level], two[level], three[level], four[level] = a, b, c, d


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def _products(values: Array, masses: Array) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    one, two, three, four = masses[0], masses[1], masses[2], masses[3]
    a = b = c = d = ZERO
    for level in range(values.shape[0]):
        value = values[level]
        a += value * one[level]
        b += value * two[level]
        c += value * three[level]
        d += value * four[level]
    return a, b, c, d


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", cache=True)
def _add_outer(ranks: tuple[int, ...], into: Array, features: Array, masses: Array, scales: Array) -> None:
    """into += sum over the pixels of scale (features, 1) masses'."""
    one, two, three, four = masses[0], masses[1], masses[2], masses[3]
    for r in range(len(ranks)):
        row, a, b = into[r], features[0, r] * scales[0], features[1, r] * scales[1]
        c, d = features[2, r] * scales[2], features[3, r] * scales[3]
        for level in range(row.shape[0]):
            row[level] += a * one[level] + b * two[level] + c * three[level] + d * four[level]
    row, a, b, c, d = into[len(ranks)], scales[0], scales[1], scales[2], scales[3]
    for level in range(row.shape[0]):
        row[level] += a * one[level] + b * two[level] + c * three[level] + d * four[level]
