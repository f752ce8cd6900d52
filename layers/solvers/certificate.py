"""The certificate of a support that has been pruned: the gap of what is left."""

from dataclasses import replace

import torch
from torch import Tensor

from ..stats import SolverStats
from .oracle import BatchOracle
from .supports import Support


def certified(oracle: BatchOracle, support: Support) -> Support:
    """The support with the gap of what is left of it, where atoms have been dropped."""
    lightest = support.probs.where(support.probs > 0, 1).amin(-1)
    mean = (support.probs[:, None] @ support.atoms)[:, 0]
    return replace(support, stats=certified_stats(oracle, support.stats, lightest, mean))


def certified_stats(oracle: BatchOracle, stats: SolverStats, lightest: Tensor, mean: Tensor) -> SolverStats:
    """The stats with the gap of the mean [B, D], if the lightest weights [B] are not those that there were."""
    if not (stats.margin < lightest).any():
        return stats
    residual = oracle.residual(mean)
    best = oracle(residual, torch.ones_like(stats.converged))
    gap = (residual * (best - mean)).sum(-1)
    return replace(stats, gap=torch.maximum(stats.gap, gap))
