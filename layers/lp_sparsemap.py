"""LP-SparseMAP: SparseMAP on the local polytope of variables that several polytopes share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..oracles import FactorGraph, Parts, SupportsProjection, placed, supports
from ..oracles.checks import (
    all_finite,
    cannot_branch,
    check_finite,
    check_float,
    refuse_all_but_backward,
    refuse_export,
    refuse_vmap,
)
from ..oracles.contracts import checked_project
from .convergence import warn_no_consensus
from .distribution import SparseDistribution
from .marginals import mean_by_support
from .refit import refit
from .solvers.admm import ADMM, Consensus
from .solvers.oracle import Oracle
from .stats import ConsensusStats
from .tangent import Tangent, projected

# Factors of a contradiction that an error names in full.
NAMED = 3


class LPSparseMAPResult:
    """The mean on a local polytope, and each factor's own distribution.

    Attributes:
        mean: mu, [*B, V] in the dtype of the scores; differentiable.
        stats: `ConsensusStats`.
    """

    def __init__(self, mean: Tensor, stats: ConsensusStats, local: "_Local") -> None:
        self.mean, self.stats, self._local = mean, stats, local

    def factor(self, place: int) -> SparseDistribution:
        """The distribution of one factor's structures, batch shape *B, with mean mu on the factor's variables.

        It is the factor's own SparseMAP at the solution, found by the method's `solver`, with weights that are functions of mu,
        and so differentiable. Distributions of different factors agree on the means of the variables that they share, and on
        nothing else: they need not be marginals of any one distribution.

        Args:
            place: of the factor in the graph.
        """
        return self._local.distribution(place)


def lp_sparsemap(
    scores: Tensor,
    graph: FactorGraph,
    additional: Sequence[Tensor | None] | None = None,
    *,
    solver: ADMM = ADMM(),  # noqa: B008 (frozen)
    check: bool = True,
) -> LPSparseMAPResult:
    """argmax <mu, t> + sum_f <u_f, t_f> - 1/2 ||mu||^2 over the local polytope {mu : (mu_f, u_f) in conv(factor f) for all f}.

    (Niculae and Martins 2020, LP-SparseMAP; the l2 term is on the variables, each once.) Without additional parts it is the
    projection of t on the local polytope.

    **It is a relaxation.** The local polytope contains the hull of the structures that all factors allow, and is larger where
    factors agree on means that no distribution over such structures has: of three bits of which no two may be on, each may
    have the mean 1/2. The result is a mean, not a distribution over global structures. Where the relaxation is tight it is the
    mean that `sparsemap` gives: matchings by rows and columns and other totally unimodular constraints; factors that form a
    tree, each sharing one variable (or the states of one) with the next.

    The solution is found without gradient, in float64, by `solver`; its derivative is the implicit one, by Jacobian-vector
    products of the factors (see `layers.tangent`): nothing is unrolled, and all of it is there (see `layers.face`).

    Args:
        scores: t, [*B, V] float; `-inf` fixes a variable at 0.
        graph: the variables and factors.
        additional: for each factor the scores [*B, A] of its additional parts, the coordinates that its polytope does not
            regularise; None for scores of 0 (or for a factor without such parts).
        solver: how it is solved.
        check: look for NaN, +inf, contradictions and non-convergence (host synchronisations).

    Returns:
        The mean, with `ConsensusStats` in `stats`; see `LPSparseMAPResult`.

    Raises:
        ValueError: scores or additional scores of another shape, NaN or +inf scores, a row in which a factor allows nothing, or
            whose factors contradict one another (where `solver` finds the proof, in some fifty iterations and more); a solver
            of something else; derivatives otherwise than by a backward pass (`torch.func.grad`, forward mode).

    Warns:
        ConvergenceWarning: rows that did not converge, with the residuals.

    Ties: the mean is unique. Of multipliers and of means of additional parts, which may not be, the same input gives the same.

    >>> from sparsemarg.oracles import Factor, FactorGraph, Simplex
    >>> graph = FactorGraph(4, [Factor(Simplex(2), pair) for pair in ([0, 1], [2, 3], [0, 2], [1, 3])])  # 2 x 2 matchings
    >>> lp_sparsemap(torch.tensor([0.5, 0.0, 0.0, 0.5]), graph).mean
    tensor([0.7500, 0.2500, 0.2500, 0.7500])
    """
    _check_scores(scores, graph, check)
    _check_method(solver)
    refuse_vmap(scores, "lp_sparsemap")
    refuse_export("lp_sparsemap")
    shape = scores.shape[:-1]
    precise = scores.resolve_neg().double().reshape(math.prod(shape), graph.variables)
    extra = _grouped(additional, scores, graph, check)
    for given in (scores, *(each for each in additional or [] if each is not None)):
        refuse_all_but_backward(given, "lp_sparsemap")
    if check:
        _check_allowed(precise.detach(), graph, extra)
    found = solver.solve(precise.detach(), graph, [each.detach() for each in extra])
    if check:
        _check_projections(found.mean, precise.detach(), graph)
        _check_agreement(found.contradicting, precise, graph)
        warn_no_consensus(found.stats, solver)
    local = _Local(graph, solver, found, precise.detach().isneginf(), extra, shape, scores.dtype, check)
    mean = found.mean
    if torch.is_grad_enabled() and (precise.requires_grad or any(each.requires_grad for each in extra)):
        mean = mean + _first_order(precise, local)
    local.mean = mean
    # A copy: what is done to it in place is none of the factors' concern.
    return LPSparseMAPResult(mean.reshape(scores.shape).to(scores.dtype, copy=True), found.stats.reshape(shape), local)


class LPSparseMAP(nn.Module):
    """The module of `functional.lp_sparsemap`.

    Args:
        graph, solver, check: see `functional.lp_sparsemap`.
    """

    def __init__(
        self,
        graph: FactorGraph,
        solver: ADMM = ADMM(),  # noqa: B008 (frozen)
        *,
        check: bool = True,
    ) -> None:
        super().__init__()
        _check_graph(graph)
        _check_method(solver)
        self.graph, self.solver, self.check = graph, solver, check

    def forward(self, scores: Tensor, additional: Sequence[Tensor | None] | None = None) -> LPSparseMAPResult:
        """The mean of scores [*B, V]."""
        return lp_sparsemap(scores, self.graph, additional, solver=self.solver, check=self.check)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.graph}, solver={self.solver}"


class _Local:
    """The factors' own problems at the solution."""

    def __init__(
        self,
        graph: FactorGraph,
        solver: ADMM,
        found: Consensus,
        forbidden: Tensor,
        additional: list[Tensor],
        batch_shape: torch.Size,
        dtype: torch.dtype,
        check: bool,
    ) -> None:
        self.graph, self.solver, self.found, self.forbidden = graph, solver, found, forbidden
        self.additional, self.batch_shape, self.dtype, self.check = additional, batch_shape, dtype, check
        self.mean = found.mean

    def index(self, place: int) -> Tensor:
        """[F, n] the variables of a group, on the device."""
        return self.graph.groups[place].index.to(self.found.mean.device)

    def point(self, place: int) -> Tensor:
        """[B, F, n] what the factors of a group project: mean + message."""
        return self.found.mean[:, self.index(place)] + self.found.messages[place]

    def prices(self, place: int) -> Tensor:
        """[B, F, A] the additional scores in the factors' problems; differentiable."""
        return self.additional[place] / self.found.penalty[:, None, None]

    def means(self, place: int, point: Tensor) -> Tensor:
        """[B, F, n] the factors' means as a differentiable function of their scores, in which -inf is put."""
        group = self.graph.groups[place]
        allowed = torch.where(self.forbidden[:, self.index(place)], -torch.inf, point).flatten(0, 1)
        parts = Parts.of(group.polytope, point.device)
        if parts is None and supports(group.polytope, SupportsProjection):
            return checked_project(group.polytope, allowed, self.check).reshape(point.shape)
        full = group.scores(allowed, self.prices(place).flatten(0, 1), parts)
        mean = mean_by_support(full, group.polytope, self.check)
        return (mean if parts is None else mean[:, parts.regularized]).reshape(point.shape)

    def distribution(self, place: int) -> SparseDistribution:
        """See `LPSparseMAPResult.factor`."""
        if not -len(self.graph.factors) <= place < len(self.graph.factors):
            raise ValueError(f"factor {place} is not one of the {len(self.graph.factors)} factors of {self.graph}")
        place %= len(self.graph.factors)
        number, member = next(
            (n, group.factors.index(place)) for n, group in enumerate(self.graph.groups) if place in group.factors
        )
        group = self.graph.groups[number]
        parts = Parts.of(group.polytope, self.mean.device)
        variables = self.index(number)[member]
        with torch.no_grad():
            point = torch.where(self.forbidden[:, variables], -torch.inf, self.point(number)[:, member])
            prices = self.prices(number)[:, member]
            support = self.solver.solver.solve(group.scores(point, prices, parts), group.polytope)
        # On independent atoms the weights with A_R p = mu are unique: the least squares that `refit` solves.
        wanted = group.scores(self.mean[:, variables], torch.zeros_like(prices), parts)
        probs = refit(wanted, support.atoms, support.probs, self.check, parts)
        return SparseDistribution.pack(
            support.atoms.to(self.dtype).reshape(*self.batch_shape, *support.atoms.shape[1:]),
            probs.to(self.dtype).reshape(*self.batch_shape, probs.shape[-1]),
            support.probs.reshape(*self.batch_shape, probs.shape[-1]) > 0,
            support.stats.reshape(self.batch_shape),
        )


def _first_order(scores: Tensor, local: _Local) -> Tensor:
    """0 in value, with the derivative of the mean: P (dt + sum_f K_f dt_f), see `tangent`."""
    index = [local.index(place) for place in range(len(local.graph.groups))]
    with torch.enable_grad():
        points = [local.point(place).detach().requires_grad_() for place in range(len(index))]
        means = [local.means(place, point) for place, point in enumerate(points)]
    change = torch.where(local.forbidden, 0, scores - scores.detach())
    for place, mean in enumerate(means):
        if local.additional[place].requires_grad:
            # K_f dt_f = d x_f / d (t_f / rho) dt_f: rho times how x_f moves with t_f.
            moved = local.found.penalty[:, None, None] * (mean - mean.detach())
            change = change.index_add(1, index[place].flatten(), moved.flatten(1))
    return projected(change, Tangent(index, points, means, local.graph.degree.to(scores)))


def _check_scores(scores: Tensor, graph: FactorGraph, check: bool) -> None:
    _check_graph(graph)
    check_float(scores)
    if scores.dim() == 0 or scores.shape[-1] != graph.variables:
        columns = "no dimension" if scores.dim() == 0 else f"{scores.shape[-1]} columns"
        raise ValueError(f"scores has {columns} but {graph} needs {graph.variables} in the last dimension")
    if check:
        check_finite(scores)


def _check_method(solver: object) -> None:
    if not isinstance(solver, ADMM):
        raise ValueError(f"solver must be an instance of ADMM, e.g. ADMM(solver=ActiveSet()), not {solver!r}")


def _check_graph(graph: object) -> None:
    if not isinstance(graph, FactorGraph):
        raise ValueError(f"lp_sparsemap needs a FactorGraph, not {graph!r}")


def _check_allowed(scores: Tensor, graph: FactorGraph, additional: list[Tensor]) -> None:
    """Raises ValueError if a factor's every structure has a variable whose score is `-inf`; free where there is none."""
    forbidden = scores.isneginf()
    if cannot_branch(scores) or not forbidden.any():
        return
    for group, extra in zip(graph.groups, additional, strict=True):
        index, parts = placed(group.index, scores.device), Parts.of(group.polytope, scores.device)
        full = group.scores(scores[:, index], torch.zeros_like(extra), parts)
        best = Oracle.of(group.polytope, full.flatten(0, 1)).best().reshape(full.shape)
        blocked = (full.isneginf() & (best != 0)).any(-1)
        if blocked.any():
            row, member = blocked.nonzero()[0].tolist()
            place = group.factors[member]
            raise ValueError(
                f"scores row {row} allows no structure of factor {place}, {graph.factors[place]}: every one needs a variable "
                f"whose score is -inf; leave at least one structure allowed"
            )


def _check_agreement(contradicting: Tensor, scores: Tensor, graph: FactorGraph) -> None:
    """Raises ValueError if factors contradict one another: [B, factors of all groups] bool."""
    if cannot_branch(contradicting) or not contradicting.any():
        return
    row = int(contradicting.any(-1).nonzero()[0])
    order = [place for group in graph.groups for place in group.factors]
    places = sorted(order[number] for number in contradicting[row].nonzero()[:, 0].tolist())
    named = [f"factor {place}, {graph.factors[place]}" for place in places[:NAMED]]
    if len(places) > NAMED:
        named.append(f"and {len(places) - NAMED} more, beginning with {str(places[NAMED : NAMED + 8])[1:-1]}")
    remedy = "Change or leave out one"
    if scores[row].isneginf().any():
        remedy += ", or allow more of the variables, of which some have a score of -inf"
    listed = "; ".join(named)
    raise ValueError(f"scores row {row}: factors contradict one another, no point is in all of {listed}. {remedy}")


def _check_projections(mean: Tensor, scores: Tensor, graph: FactorGraph) -> None:
    """Raises ValueError if the mean is not finite because a polytope's own projection is not; free where it is."""
    if cannot_branch(mean) or all_finite(mean):
        return
    for group in graph.groups:
        if Parts.of(group.polytope) is None and supports(group.polytope, SupportsProjection):
            checked_project(group.polytope, scores[:, placed(group.index, scores.device)].flatten(0, 1))


def _grouped(additional: Sequence[Tensor | None] | None, scores: Tensor, graph: FactorGraph, check: bool) -> list[Tensor]:
    """The additional scores of every group, [B, F, A] float64."""
    given = [None] * len(graph.factors) if additional is None else list(additional)
    if len(given) != len(graph.factors):
        raise ValueError(f"additional needs one entry a factor, {len(graph.factors)} (None for scores of 0), not {len(given)}")
    shape = scores.shape[:-1]
    found = []
    for group in graph.groups:
        found.append(torch.stack([_extra(given[place], place, graph, scores, check) for place in group.factors], -2))
    return [each.reshape(math.prod(shape), *each.shape[-2:]) for each in found]


def _extra(given: Tensor | None, place: int, graph: FactorGraph, scores: Tensor, check: bool) -> Tensor:
    """One factor's additional scores, [*B, A] float64."""
    shape = (*scores.shape[:-1], graph.factors[place].additional)
    if given is None:
        return scores.new_zeros(shape, dtype=torch.float64)
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape != shape:
        got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"additional[{place}] must be float {list(shape)} for {graph.factors[place]}, not {got}")
    if check and given.numel():
        check_finite(given)
        if given.detach().isneginf().any():
            raise ValueError(f"additional[{place}] must be finite; forbid a structure by a variable's score of -inf instead")
    return given.resolve_neg().double()
