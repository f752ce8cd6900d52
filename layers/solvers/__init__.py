"""Solvers: each finds the support of a projection, without gradient. `ActiveSet` is the default."""

from .active_set import ActiveSet
from .admm import ADMM
from .base import Solver
from .frank_wolfe import PairwiseFrankWolfe
from .sorted import SortedDecomposition
from .supports import Support

# Without it `import *` would bring the module `sorted` in place of Python's function.
__all__ = ["ADMM", "ActiveSet", "PairwiseFrankWolfe", "Solver", "SortedDecomposition", "Support"]
