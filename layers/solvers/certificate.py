"""The certificate of a support that has been pruned: the gap of what is left."""

from dataclasses import replace

import torch
from torch import Tensor

from ..stats import SolverStats
from .oracle import BatchOracle
from .supports import Support

# Numbers in a batch, up to which to ask for all rows takes no longer than to choose those that changed. On the CPU as many are
# asked at once: what is computed on the way stays in its cache.
FEW = 2**17


def certified(oracle: BatchOracle, support: Support) -> Support:
    """The support with the gap of what is left of it, where atoms have been dropped."""
    lightest = support.probs.where(support.probs > 0, 1).amin(-1)
    mean = (support.probs[:, None] @ support.atoms)[:, 0]
    return replace(support, stats=certified_stats(oracle, support.stats, lightest, mean))


def certified_stats(oracle: BatchOracle, stats: SolverStats, lightest: Tensor, mean: Tensor) -> SolverStats:
    """The stats with the gap of the mean [B, D] in those rows whose lightest weight [B] is not what it was."""
    changed = stats.margin < lightest
    if not changed.any():
        return stats
    if mean.numel() <= FEW:
        return replace(stats, gap=torch.where(changed, stats.gap.maximum(_gap(oracle, mean)), stats.gap))
    gap = stats.gap.clone()
    at_once = max(1, FEW // mean.shape[-1]) if mean.device.type == "cpu" else len(mean)
    for rows in changed.nonzero()[:, 0].split(at_once):
        gap[rows] = gap[rows].maximum(_gap(oracle.rows(rows), mean[rows]))
    return replace(stats, gap=gap)


def _gap(oracle: BatchOracle, mean: Tensor) -> Tensor:
    """[B], of means [B, D]."""
    residual = oracle.residual(mean)
    best = oracle(residual, torch.ones_like(mean[:, 0], dtype=torch.bool))
    return (residual * (best - mean)).sum(-1)
