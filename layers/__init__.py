"""Differentiable maps from scores to a sparse distribution. The functions are in `sparsemarg.layers.functional`."""

from .convergence import ConvergenceWarning as ConvergenceWarning
from .distribution import SparseDistribution as SparseDistribution
from .losses import SparseMAPLoss as SparseMAPLoss
from .losses import SparsemaxLoss as SparsemaxLoss
from .lp_sparsemap import LPSparseMAP as LPSparseMAP
from .lp_sparsemap import LPSparseMAPResult as LPSparseMAPResult
from .sparsemap import SparseMAP as SparseMAP
from .sparsemax import Sparsemax as Sparsemax
from .stats import ConsensusStats as ConsensusStats
from .stats import SolverStats as SolverStats
from .stats import TopKStats as TopKStats
from .topk_sparsemax import TopKSparsemax as TopKSparsemax
