"""Differentiable maps from scores to a sparse distribution. The functions are in `sparsemarg.layers.functional`."""

from .convergence import ConvergenceWarning
from .distribution import SparseDistribution
from .losses import SparseMAPLoss, SparsemaxLoss
from .lp_sparsemap import LPSparseMAP, LPSparseMAPResult
from .oracle_losses import PerturbedLoss, SPOPlusLoss, StructuredHingeLoss
from .sparsemap import SparseMAP
from .sparsemax import Sparsemax
from .stats import ConsensusStats, SolverStats, TopKStats
from .topk_sparsemax import TopKSparsemax

__all__ = [
    "ConsensusStats",
    "ConvergenceWarning",
    "LPSparseMAP",
    "LPSparseMAPResult",
    "PerturbedLoss",
    "SPOPlusLoss",
    "SolverStats",
    "SparseDistribution",
    "SparseMAP",
    "SparseMAPLoss",
    "Sparsemax",
    "SparsemaxLoss",
    "StructuredHingeLoss",
    "TopKSparsemax",
    "TopKStats",
]
