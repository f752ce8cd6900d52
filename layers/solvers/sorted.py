"""The closed form: project, then write the mean as a convex combination by sorting."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...oracles import Parts, Polytope, SupportsChained, SupportsDecomposition, SupportsNested, SupportsProjection, supports
from ...oracles.base import missing
from ...oracles.checks import cannot_branch
from ...oracles.contracts import best_allowed, checked_decompose, checked_project
from ...oracles.systematic import ONE, fraction, nearest_integer
from ..stats import SolverStats
from .base import Solver
from .cuts import in_one_pass
from .limits import CLOSED, DECOMPOSED, SORTED_PRUNE
from .oracle import Oracle, allowed
from .supports import ChainedSupport, NestedSupport, PackedSupport, Support, used_first


@dataclass(frozen=True)
class SortedDecomposition(Solver):
    """mu = project(t) and its decomposition, for polytopes that have both: cube, budget, simplex and their products.

    The mean is that of `ActiveSet`; the distribution is another one (the weights of a SparseMAP solution are not unique),
    usually with more atoms: one more than the number of fractional coordinates. Its weights are smooth in the scores and
    span the whole face, so all derivatives are exact in any dimension.

    Cost: O(B D^2) to write the atoms down, and one oracle call for the certificate. Where structures are nested (the cube) or a
    systematic sample (the budget polytope, unless cuts coincide), only those that have mass are written down, and their weights
    are differences: O(B D log D) besides the atoms. On the CPU with Numba installed that is one compiled pass: see `cuts`; on a
    GPU with Triton, up to D = 1024, two kernels of O(D^2) comparisons a row.
    """

    advice: ClassVar[str] = "its closed form is inexact there (scores of very different size?); use ActiveSet()"

    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        """See `Solver.solve`.

        Raises:
            ValueError: the polytope has no `project` or no `decompose`, or does not regularise all coordinates.
        """
        # Not as a decorator: torch.compile (2.14) does not trace a decorated method of an object made inside what it compiles.
        with torch.no_grad():
            problem, mean = _projected(scores, polytope, finite=True)
            if not supports(polytope, SupportsDecomposition):
                raise missing(polytope, SupportsDecomposition, "SortedDecomposition")
            atoms, probs = checked_decompose(polytope, mean)
            probs, margin = _pruned(probs)
            if not cannot_branch(probs):  # the refit's cost is cubic in the number of slots
                atoms, probs = used_first(atoms, probs)
            # Of the mean as it was projected, which has fewer rounding errors, unless `decompose` wrote another one.
            own = (probs[:, None] @ atoms)[:, 0]
            same = (own - mean).abs() <= DECOMPOSED * mean.abs().amax(-1, keepdim=True).clamp(min=1)
            return Support(atoms, probs, _certify(problem, torch.where(same, mean, own), margin))

    def solve_packed(
        self, scores: Tensor, polytope: Polytope, dtype: torch.dtype, check: bool
    ) -> PackedSupport[SolverStats] | None:
        """See `FindsPacked`: kernels find no structures of what is NaN or +inf."""
        return in_one_pass(scores, polytope, dtype)

    def solve_nested(self, scores: Tensor, polytope: Polytope) -> NestedSupport:
        """The same support, for a polytope with `nested`, without writing the structures down."""
        with torch.no_grad():
            problem, mean = _projected(scores, polytope)
            if not supports(polytope, SupportsNested):
                raise missing(polytope, SupportsNested, "SortedDecomposition.solve_nested")
            order, probs = polytope.nested(mean)
            probs, margin = _pruned(probs)
            return NestedSupport(order, probs, _certify(problem, mean, margin))

    def solve_chained(self, scores: Tensor, polytope: Polytope) -> ChainedSupport | None:
        """The same support, for a polytope with `chained`, without writing the structures down.

        None where cuts coincide in some row (sums of the means that differ by an integer: the structures do not span the face,
        and what is here is not the derivative).
        """
        with torch.no_grad():
            problem, mean = _projected(scores, polytope)
            if not supports(polytope, SupportsChained):
                raise missing(polytope, SupportsChained, "SortedDecomposition.solve_chained")
            order, ends = polytope.chained(mean)
            ordered, residual = mean.gather(-1, order), (problem.target - mean).gather(-1, order)
            between = (ordered > 0) & (ordered < 1)
            # Where the sum is held fixed the last of them ends at an integer, up to rounding: no cut, the line begins anew.
            whole, last = nearest_integer(ends), between.cumsum(-1) == between.sum(-1, keepdim=True)
            ends = torch.where(last & ((ends - whole).abs() < CLOSED * ONE), whole, ends)
            moving = between & (fraction(ends) > 0)
            place, interval = torch.where(moving, fraction(ends), ONE).sort(dim=-1)
            cuts = torch.cat([torch.zeros_like(place[:, :1]), place], -1)
            probs = torch.cat([cuts, torch.full_like(place[:, :1], ONE)], -1).diff(dim=-1).double() / ONE
            probs, margin = _pruned(probs)
            number, size = moving.sum(-1), between.sum(-1)
            # Where nothing holds the sum fixed, these means are their scores; that it is an integer then is chance.
            binding = (residual.abs() * between).amax(-1) > CLOSED
            apart = (probs > 0).sum(-1) == number + 1  # no structure between two cuts is without mass
            spanning = (number == size - binding.to(size)) & apart  # as many as there are dimensions, and one
            if not spanning.all():
                return None
            edge = torch.zeros_like(interval[:, :1])
            interval = torch.cat([edge, torch.where(place < ONE, interval + 1, 0), edge], -1)
            stats = _certify(problem, mean, margin)
            return ChainedSupport(order, ends, between, binding, cuts, interval, probs, stats)


@dataclass(frozen=True)
class _Problem:
    polytope: Polytope
    target: Tensor  # [B, D], 0 where forbidden
    forbidden: Tensor | None  # [B, D] bool


def _projected(scores: Tensor, polytope: Polytope, finite: bool = False) -> tuple[_Problem, Tensor]:
    """The problem and its mean; with `finite` that is looked at, which makes the host wait once more."""
    if Parts.of(polytope) is not None:
        raise ValueError(
            f"SortedDecomposition projects in all coordinates, but {polytope!r} regularises some only; use ActiveSet()"
        )
    if not supports(polytope, SupportsProjection):
        raise missing(polytope, SupportsProjection, "SortedDecomposition")
    problem = _Problem(polytope, *allowed(scores))
    if problem.forbidden is not None and not cannot_branch(scores):
        Oracle.of(polytope, scores).start()  # says which row allows nothing
    return problem, checked_project(polytope, scores, finite)


def _pruned(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [B, S] without rounding noise, summing to 1, and the smallest of each row [B]."""
    probs = torch.where(probs > SORTED_PRUNE, probs, 0)
    probs = probs / probs.sum(-1, keepdim=True)
    return probs, torch.where(probs > 0, probs, torch.inf).amin(-1)


def _certify(problem: _Problem, mean: Tensor, margin: Tensor) -> SolverStats:
    residual = problem.target - mean
    best = best_allowed(problem.polytope, residual, problem.forbidden)  # any of those that tie will do
    gap = (residual * (best - mean)).sum(-1)
    # The gap of an exact projection is rounding noise, of the size of the terms that cancel in it.
    eps = torch.finfo(mean.dtype).eps
    noise = CLOSED + 64 * eps * (residual.abs() * (best.abs() + mean.abs())).sum(-1)
    iterations = torch.zeros(mean.shape[0], dtype=torch.int64, device=mean.device)
    return SolverStats(iterations, gap.clamp(min=0), gap <= noise, margin)
