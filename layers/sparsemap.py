"""SparseMAP: the projection of scores on a structured polytope, as a sparse distribution over its structures."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels import readable
from ..oracles import Parts, Polytope, Simplex, SupportsChained, SupportsNested, supports
from ..oracles.checks import cannot_branch, check_dimension, check_finite, check_polytope, refuse_vmap
from .chained import chained_distribution
from .convergence import warn_unconverged
from .distribution import SparseDistribution
from .nested import nested_distribution
from .packed_weights import packed_distribution
from .refit import refit
from .solvers.active_set import ActiveSet
from .solvers.admm import ADMM
from .solvers.base import FindsChained, FindsNested, FindsPacked, Solver, check_solver
from .solvers.supports import PackedSupport

Coding = Literal["bits", "pairs"]


def sparsemap(
    scores: Tensor,
    polytope: Polytope,
    *,
    coding: Coding = "bits",
    solver: Solver = ActiveSet(),  # noqa: B008 (frozen)
    check: bool = True,
) -> SparseDistribution:
    """A sparse xi with A xi = mu* = argmin_{mu in conv(polytope)} ||mu - t||^2 (Niculae et al. 2018; paper eq. 4).

    Equivalently max_xi <A xi, t> - 1/2 ||A xi||^2. The mean mu* is unique. xi is not: which of the distributions with that
    mean is returned depends on `solver`, and so does E_xi[f]. The same scores give the same bits.

    Where the polytope regularises only some coordinates R (`Polytope.regularized`), the problem is

        max_xi <A xi, t> - 1/2 ||(A xi)_R||^2            (Niculae et al. 2018; paper appendix B, last paragraph):

    the other parts, such as transitions, take scores and are not penalised. mu*_R is unique and so is the maximum; the rest of
    mu* is unique unless structures that differ by other parts alone are tied. At most |R| + 1 atoms.

    The solver finds the support without gradient, in float64; `refit` then computes the weights on it as a differentiable
    function of the scores, so the gradient is exact for the support found (paper eq. 17). Where more than about 25
    coordinates are fractional, the active set's support does not span the face of the solution and some of the gradient is
    missing: see `solvers.ActiveSet` and `stats.margin`. Of the mean, `sparsemap_marginals` has all of it.

    Args:
        scores: t, [*B, D] float. `-inf` forbids the structures with a_i != 0; structures are then taken to be
            nonnegative.
        polytope: anything with `maximize`.
        coding: which projection of the scores. "bits": of t itself, as eq. 4 says; on the cube mu = clip(t, 0, 1). "pairs": of
            (1 + t) / 2, which is eq. 4 when each coordinate is coded by two indicators, of 1 with score t_i and of 0 with
            score 0; on the cube mu = clip((1 + t) / 2, 0, 1), symmetric about t = 0. The paper's published numbers were
            obtained with pairs. Coordinates that are not regularised take t / 2: it is the problem with two indicators still.
        solver: `ActiveSet()` for any polytope; `SortedDecomposition()`, closed form where the polytope has one;
            `PairwiseFrankWolfe()`, slow, to cross-check.
        check: look for NaN, +inf, rows with nothing allowed, dependent atoms and non-convergence (host synchronisations; never
            under `torch.compile`).

    Returns:
        A distribution with at most D + 1 (|R| + 1) atoms a row, in the dtype of `scores`; `SolverStats` in `stats`.

    Raises:
        ValueError: NaN or +inf scores, a row that allows no structure, a wrong last dimension, a polytope whose `maximize`
            returns something else than structures, a solver that needs a method which the polytope lacks.

    Warns:
        ConvergenceWarning: rows hit the solver's iteration limit. They hold valid distributions; see `stats.converged`.

    >>> from sparsemarg.oracles import BernoulliCube
    >>> sparsemap(torch.tensor([[0.5, 2.0, -1.0]]), BernoulliCube(3)).mean()
    tensor([[0.5000, 1.0000, 0.0000]])
    """
    check_dimension(scores, polytope)
    check_coding(coding)
    check_solver(solver, ADMM)
    shape, support = scores.shape[:-1], None
    if supports(solver, FindsPacked) and readable(scores):
        given = coded(scores.detach().double(), polytope, coding).reshape(math.prod(shape), scores.shape[-1])
        support = solver.solve_packed(given, polytope, scores.dtype, check)
        if isinstance(support, PackedSupport):
            if check and not support.all_converged:
                warn_unconverged(support.stats, solver)
            return _indexed(packed_distribution(scores, support, 1 if coding == "bits" else 1 / 2), polytope)
    refuse_vmap(scores, "sparsemap")
    if check and support is None:
        check_finite(scores)
    flat = coded(scores.resolve_neg().double(), polytope, coding).reshape(math.prod(shape), scores.shape[-1])
    if support is None and supports(solver, FindsNested) and supports(polytope, SupportsNested):
        nested = solver.solve_nested(flat.detach(), polytope)
        if check:
            warn_unconverged(nested.stats, solver)
        return nested_distribution(flat, nested, shape, scores.dtype)
    if support is None and supports(solver, FindsChained) and supports(polytope, SupportsChained) and not cannot_branch(flat):
        chained = solver.solve_chained(flat.detach(), polytope)
        if chained is not None:
            if check:
                warn_unconverged(chained.stats, solver)
            return chained_distribution(flat, chained, shape, scores.dtype)
    support = support or solver.solve(flat.detach(), polytope)
    probs = refit(flat, support.atoms, support.probs, check, Parts.of(polytope, scores.device), support.sensitivity)
    if check:
        warn_unconverged(support.stats, solver)
    packed = SparseDistribution.pack(
        support.atoms.to(scores.dtype).reshape(*shape, *support.atoms.shape[1:]),
        probs.to(scores.dtype).reshape(*shape, probs.shape[-1]),
        support.probs.reshape(*shape, probs.shape[-1]) > 0,
        support.stats.reshape(shape),
    )
    return _indexed(packed, polytope)


class SparseMAP(nn.Module):
    """The module of `functional.sparsemap`.

    Args:
        polytope, coding, solver, check: see `functional.sparsemap`.
    """

    def __init__(
        self,
        polytope: Polytope,
        coding: Coding = "bits",
        solver: Solver = ActiveSet(),  # noqa: B008 (frozen)
        *,
        check: bool = True,
    ) -> None:
        super().__init__()
        check_polytope(polytope)
        check_coding(coding)
        check_solver(solver, ADMM)
        self.polytope, self.solver, self.check = polytope, solver, check
        self.coding: Coding = coding

    def forward(self, scores: Tensor) -> SparseDistribution:
        """The distribution of scores [*B, D]."""
        return sparsemap(scores, self.polytope, coding=self.coding, solver=self.solver, check=self.check)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.polytope}, coding={self.coding!r}, solver={self.solver}"


def coded(scores: Tensor, polytope: Polytope, coding: Coding) -> Tensor:
    """The scores t of the problem in `sparsemap` that scores [*B, D] stand for; `coding` is explained there.

    With two indicators a coordinate the l2 term is 1/2 ||mu_R||^2 + 1/2 ||1 - mu_R||^2 and the objective, up to a constant,
    twice that of scores ((1 + t_R) / 2, t_rest / 2).
    """
    if coding == "bits":
        return scores
    parts = Parts.of(polytope, scores.device)
    if parts is None:  # 0.5 + 0.5 t, in one pass
        return torch.rsub(scores, 0.5, alpha=-0.5)
    return (parts.penalized(torch.ones_like(scores)) + scores) / 2


def _indexed(found: SparseDistribution, polytope: Polytope) -> SparseDistribution:
    """With the categories of its atoms, if that is what they are."""
    if isinstance(polytope, Simplex):
        found.index = found.atoms.argmax(-1)
    return found


def check_coding(coding: str) -> None:
    """Raises ValueError unless it is one of `Coding`."""
    if coding not in ("bits", "pairs"):
        raise ValueError(f'coding must be "bits" (paper eq. 4) or "pairs" (two indicators a coordinate), not {coding!r}')
