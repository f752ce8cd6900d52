"""A polytope to be spoiled, and the checks that are to notice."""

from sparsemarg.layers.solvers import ActiveSet, Solver
from sparsemarg.oracles import Budget, Polytope
from sparsemarg.verification import Report, verify


class Wrapped(Polytope):
    """`Budget(5, 2)`, correct and with every method; defects replace one of them."""

    right = Budget(5, 2)
    dim = 5

    def maximize(self, scores):
        return self.right.maximize(scores)

    def topk(self, scores, k):
        return self.right.topk(scores, k)

    def project(self, scores):
        return self.right.project(scores)

    def decompose(self, mean):
        return self.right.decompose(mean)

    def gibbs(self, scores):
        return self.right.gibbs(scores)

    def halfspaces(self):
        return self.right.halfspaces()

    def vertices(self):
        return self.right.vertices()


def cheap(polytope: Polytope, batch: int = 4, seed: int = 0, solver: Solver = ActiveSet()) -> Report:  # noqa: B008 (frozen)
    """`verify` with one solver and without cvxpy."""
    return verify(polytope, batch=batch, seed=seed, solvers=[solver], skip=["by cvxpy"])
