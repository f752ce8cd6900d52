"""Polytopes: what a set of structures is, and what can be done with it. Knows nothing of gradients or solvers."""

from .base import GibbsDistribution as GibbsDistribution
from .base import Halfspaces as Halfspaces
from .base import Polytope as Polytope
from .base import SupportsDecomposition as SupportsDecomposition
from .base import SupportsGibbs as SupportsGibbs
from .base import SupportsHalfspaces as SupportsHalfspaces
from .base import SupportsProjection as SupportsProjection
from .base import SupportsTopk as SupportsTopk
from .base import SupportsVertices as SupportsVertices
from .base import supports as supports
from .budget import Budget as Budget
from .chain import LinearChain as LinearChain
from .cube import BernoulliCube as BernoulliCube
from .explicit import Explicit as Explicit
from .factor_graph import Factor as Factor
from .factor_graph import FactorGraph as FactorGraph
from .kbest import KBest as KBest
from .kbest import KBestStructures as KBestStructures
from .kbest import topk as topk
from .knapsack import Knapsack as Knapsack
from .parts import Parts as Parts
from .path import ShortestPath as ShortestPath
from .product import Product as Product
from .projective_tree import ProjectiveTree as ProjectiveTree
from .segmentation import Segmentation as Segmentation
from .simplex import Simplex as Simplex
