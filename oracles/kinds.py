"""Polytopes whose oracle is a line of a kernel, so that a kernel can run a whole method on a row of theirs."""

from .base import Polytope
from .budget import Budget
from .cube import BernoulliCube
from .simplex import Simplex

CUBE, SIMPLEX, AT_MOST, EXACTLY = range(4)


def kind_of(polytope: Polytope) -> int | None:
    """Which of these oracles is that of the polytope, exactly its class; None: another one."""
    if type(polytope) is Budget:
        return EXACTLY if polytope.exactly else AT_MOST
    return {BernoulliCube: CUBE, Simplex: SIMPLEX}.get(type(polytope))
