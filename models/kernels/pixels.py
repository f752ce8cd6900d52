"""`objective.pixel_cross_entropy` compiled for the CPU: the logits of four pixels at a time, which stay in the core's cache."""

import numba
import numpy as np

from ...kernels.vectors import ONE, ZERO, Array
from .pixel_lanes import LEVELS, PIXELS, add_outer, exponentiate, find_logits, find_products

LN2 = np.log(2.0)
LOG2_E = np.float32(1 / LN2)
LN2_SINGLE = np.float32(LN2)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pixel_costs(
    ranks: tuple[int, ...],  # 0 ... rank - 1: of known length when this is compiled, so that loops over it are unrolled
    features: Array,  # [n, pixels, rank]
    weight: Array,  # [rank, L], of a head `in_bits`
    bias: Array,  # [L]
    images: Array,  # [n, pixels] int64
    costs: Array,  # [n], and the following, are written
    by_features: Array,  # [n, pixels, rank]
    by_head: Array,  # [n, rank + 1, L]
    wanted: bool,  # whether derivatives are
) -> None:
    """-log p(x | z) of pairs, and its derivatives by features and head (that in nats)."""
    masses, products = np.empty((PIXELS, bias.shape[0]), np.float32), np.empty((PIXELS, len(ranks)), np.float32)
    shares = np.empty((PIXELS, len(ranks) + 1), np.float32)  # a pixel's features, and for the head's derivative (h, 1) / total
    peaks, totals = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    for pair in range(features.shape[0]):
        cost = 0.0
        if wanted:
            by_head[pair] = ZERO
        for start in range(0, features.shape[1], PIXELS):
            count = min(PIXELS, features.shape[1] - start)
            targets = images[pair, start : start + count]
            shares[:] = ZERO  # and so they remain beyond the last pixel
            for p in range(count):
                for r in range(len(ranks)):
                    shares[p, r] = features[pair, start + p, r]
            find_logits(ranks, shares, weight, bias, masses, peaks)  # pyright: ignore[reportCallIssue]
            for p in range(count):
                cost += LN2 * (peaks[p] - masses[p, targets[p]])
            exponentiate(masses, peaks, totals)
            total = 1.0
            for p in range(count):
                total *= totals[p]
            cost += np.log(total)
            if wanted:
                for p in range(count):  # what is left is the softmax less the target, times the total
                    masses[p, targets[p]] -= totals[p]
                find_products(ranks, masses, weight, products)
                for p in range(count):
                    scale = ONE / totals[p]
                    for r in range(len(ranks)):
                        by_features[pair, start + p, r] = products[p, r] * scale * LN2_SINGLE
                        shares[p, r] *= scale
                    shares[p, len(ranks)] = scale
                add_outer(ranks, shares, masses, by_head[pair])
        costs[pair] = cost


def in_bits(weight: Array, bias: Array) -> tuple[Array, Array]:
    """A head [rank, levels], [levels] as the kernel takes it: in bits, with levels of no mass to fill up the last vector."""
    missing = -len(bias) % LEVELS
    return np.pad(weight * LOG2_E, ((0, 0), (0, missing))), np.pad(bias * LOG2_E, (0, missing), constant_values=-np.inf)
