"""Solvers: each finds the support of a projection, without gradient. `ActiveSet` is the default."""

from .active_set import ActiveSet as ActiveSet
from .admm import ADMM as ADMM
from .base import Solver as Solver
from .base import Support as Support
from .frank_wolfe import PairwiseFrankWolfe as PairwiseFrankWolfe
from .sorted import SortedDecomposition as SortedDecomposition
