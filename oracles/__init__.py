"""Polytopes: what a set of structures is, and what can be done with it. Knows nothing of gradients or solvers."""

from .base import (
    Flips,
    GibbsDistribution,
    Halfspaces,
    Polytope,
    SupportsChained,
    SupportsDecomposition,
    SupportsFlips,
    SupportsGibbs,
    SupportsHalfspaces,
    SupportsNested,
    SupportsProjection,
    SupportsTopk,
    SupportsVertices,
    supports,
)
from .budget import Budget
from .cube import BernoulliCube
from .explicit import Explicit
from .factor_graph import Factor, FactorGraph
from .kbest import KBest, KBestStructures, topk
from .logic import AtLeastOne, AtMostOne, ExactlyOne, Implies
from .matching import Matching
from .matroid import Matroid
from .parts import Parts
from .permutahedron import Permutahedron
from .placement import placed
from .product import Blocks, Product
from .programs.chain import LinearChain
from .programs.knapsack import Knapsack
from .programs.path import ShortestPath
from .programs.segmentation import Segmentation
from .simplex import Simplex
from .solver_oracle import OracleFromSolver
from .trees.arborescence import Arborescence
from .trees.projective_tree import ProjectiveTree
from .trees.spanning_tree import SpanningTree

__all__ = [
    "Arborescence",
    "AtLeastOne",
    "AtMostOne",
    "BernoulliCube",
    "Blocks",
    "Budget",
    "ExactlyOne",
    "Explicit",
    "Factor",
    "FactorGraph",
    "Flips",
    "GibbsDistribution",
    "Halfspaces",
    "Implies",
    "KBest",
    "KBestStructures",
    "Knapsack",
    "LinearChain",
    "Matching",
    "Matroid",
    "OracleFromSolver",
    "Parts",
    "Permutahedron",
    "Polytope",
    "Product",
    "ProjectiveTree",
    "Segmentation",
    "ShortestPath",
    "Simplex",
    "SpanningTree",
    "SupportsChained",
    "SupportsDecomposition",
    "SupportsFlips",
    "SupportsGibbs",
    "SupportsHalfspaces",
    "SupportsNested",
    "SupportsProjection",
    "SupportsTopk",
    "SupportsVertices",
    "placed",
    "supports",
    "topk",
]
