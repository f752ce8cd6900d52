"""The alternating direction method of multipliers on a factor graph: every factor is projected on by itself, in parallel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import readable
from ...oracles import FactorGraph, Parts, SupportsProjection, placed, supports
from ...oracles.checks import check_count
from ...oracles.contracts import checked_project
from ...oracles.factor_graph import Group
from ..stats import ConsensusStats
from .active_set import ActiveSet
from .base import FindsMean, Solver, check_solver
from .contradiction import contradicting

# Iterations between looks at the batch from Python: to stop, to drop rows that have converged, to change penalties.
POLL = 10
# A residual this many times the other one changes the penalty, by this factor (Boyd et al. 2011, section 3.4.1).
UNBALANCED = 10.0
CHANGE = 2.0
# No changes after this many iterations: with a penalty that stays ADMM converges.
SETTLE = 1000
# Iterations between looks for a proof that the factors contradict one another: each asks every oracle once.
PROVE = 50
# Over-relaxation: between 1.5 and 1.8 is customary; it saves a third of the iterations here.
RELAXATION = 1.6


@dataclass(frozen=True)
class Consensus:
    """What the method ends with.

    Attributes:
        mean: [B, V] float64.
        messages: of every group [B, F, n]: each factor projects mean + message, and gets mean back.
        penalty: [B] rho; the multipliers are rho times the messages.
        contradicting: [B, factors of all groups] bool, those of which it is proved that no point is in all of them.
        stats: rows [B].
    """

    mean: Tensor
    messages: list[Tensor]
    penalty: Tensor
    contradicting: Tensor
    stats: ConsensusStats


@dataclass(frozen=True)
class ADMM:
    """max_mu <t, mu> + sum_f <t_f, u_f> - 1/2 ||mu||^2 over the local polytope of a factor graph (`oracles.FactorGraph`).

    With a copy x_f of the variables for each factor, and w_f its message, an iteration is

        (x_f, u_f) = argmax over factor f of  <t_f / rho, u_f> - 1/2 ||x_f - mu_f - w_f||^2      a SparseMAP of the factor
        mu_v = (t_v + rho sum_f (x_f - w_f)_v) / (1 + rho deg(v))
        w_f <- w_f + mu_f - x_f

    with x_f over-relaxed in the last two (Boyd et al. 2011, section 7.1). Niculae and Martins 2020 give each factor a share of
    the l2 term; here it is in the consensus step, so that every subproblem is a plain projection. Equal factors are one batch;
    rows that have converged drop out, and so do rows whose factors are seen to contradict one another
    (`contradiction.contradicting`). Nothing is random.

    Cost: an iteration is one projection a factor. Row and column constraints of a 20 x 20 matching take 30 to 300 for scores of
    size 0.3 to 3; scores of 1e6 take some 400, and of 1e8 may not arrive.

    Attributes:
        max_iter: iterations before a row is given up as not converged.
        tol: bound, at convergence, on the primal residual max |x_f - mu_f| (by how much factors disagree) and the dual
            residual max rho |mu - previous mu| (by how much the factors' problems still move); plus a few units of rounding
            noise of the scores. A row has converged only if its factors' own solves have.
        penalty: rho to begin with. It is doubled or halved, row by row, while one residual is ten times the other.
        solver: of factors without `project`. Derivatives are by `ActiveSet()` (see `functional.sparsemap_marginals`).
    """

    max_iter: int = 5000
    tol: float = 1e-8
    penalty: float = 1.0
    solver: Solver = ActiveSet()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        check_count("ADMM: max_iter", self.max_iter, 1)
        if not self.tol >= 0:
            raise ValueError(f"ADMM: tol must be at least 0, not {self.tol}")
        if not 0 < self.penalty < float("inf"):
            raise ValueError(f"ADMM: penalty must be positive and finite, not {self.penalty}")
        check_solver(self.solver, ADMM)

    @torch.no_grad()
    def solve(self, scores: Tensor, graph: FactorGraph, additional: list[Tensor]) -> Consensus:
        """Solves B independent problems.

        Args:
            scores: t, [B, V] float64, finite or `-inf` (that variable is 0).
            graph: with V variables.
            additional: t_f of every group, [B, F, A] float64.
        """
        state = _State.start(scores, graph, additional, self)
        result = state.result()
        rows = torch.arange(len(scores), device=scores.device)
        for iteration in range(self.max_iter if len(scores) else 0):
            if iteration % POLL == 0 and iteration:
                if iteration % PROVE == 0:
                    state.prove()
                result = _store(result, rows, state)
                live = (~(state.converged | state.contradicting.any(-1))).nonzero()[:, 0]
                if len(live) == 0:
                    break
                rows, state = rows[live], state.select(live)
                if iteration <= SETTLE:
                    state.balance()
            state.iterate()
        return _store(result, rows, state)


def factor_mean(
    group: Group, variables: Tensor, additional: Tensor, parts: Parts | None, solver: Solver
) -> tuple[Tensor, Tensor]:
    """The mean of the variables of each factor alone, and whether it converged: [N, n], [N, A] -> [N, n], [N]; no gradient."""
    polytope = group.polytope
    if parts is None and supports(polytope, SupportsProjection):
        return checked_project(polytope, variables, finite=False), torch.ones_like(variables[:, 0], dtype=torch.bool)
    scores = group.scores(variables, additional, parts)
    found = solver.solve_mean(scores, polytope, check=False) if supports(solver, FindsMean) and readable(scores) else None
    if found is None:
        support = solver.solve(scores, polytope)
        found = (support.probs[:, None] @ support.atoms)[:, 0], support.stats
    mean, stats = found
    return mean if parts is None else mean[:, parts.regularized], stats.converged


@dataclass(frozen=True)
class _Shared:
    """What does not change from iteration to iteration and does not depend on the row."""

    groups: tuple[Group, ...]
    index: list[Tensor]  # [F, n] of every group, on the device
    parts: list[Parts | None]
    degree: Tensor  # [V]
    # Where a variable's copies are among those of all groups, one after the other; beyond them, the number of all copies.
    places: Tensor  # [V, most]
    method: ADMM

    @staticmethod
    def of(graph: FactorGraph, device: torch.device, method: ADMM) -> "_Shared":
        """On the device."""
        all_copies = torch.cat([group.index.flatten() for group in graph.groups])
        order = all_copies.argsort(stable=True)
        rank = torch.arange(len(order)) - (graph.degree.cumsum(0) - graph.degree).long()[all_copies[order]]
        places = torch.full((graph.variables, int(graph.degree.max())), len(order))
        places[all_copies[order], rank] = order
        index = [placed(group.index, device) for group in graph.groups]
        parts = [Parts.of(group.polytope, device) for group in graph.groups]
        return _Shared(graph.groups, index, parts, placed(graph.degree, device), places.to(device), method)

    def total(self, copies: list[Tensor]) -> Tensor:
        """The sum of each variable's copies, [B, F, n] of every group -> [B, V]; always in the same order."""
        flat = torch.cat([each.flatten(1) for each in copies], -1)
        return torch.nn.functional.pad(flat, (0, 1))[:, self.places].sum(-1)


class _State:
    """The rows that are being worked on."""

    def __init__(self, shared: _Shared, scores: Tensor, additional: list[Tensor]) -> None:
        self.shared, self.additional = shared, additional
        self.forbidden = scores.isneginf()
        self.target = torch.where(self.forbidden, 0, scores)
        self.mean = torch.zeros_like(self.target)
        self.messages = [torch.zeros_like(self.mean[:, index]) for index in shared.index]
        self.penalty = torch.full_like(self.mean[:, 0], shared.method.penalty)
        self.iterations = torch.zeros_like(self.penalty, dtype=torch.int64)
        self.primal = torch.full_like(self.penalty, torch.inf)
        self.dual = torch.full_like(self.penalty, torch.inf)
        self.converged = torch.zeros_like(self.penalty, dtype=torch.bool)
        self.apart = [torch.zeros_like(message) for message in self.messages]  # mu_f - x_f
        number = sum(index.shape[0] for index in shared.index)
        self.contradicting = torch.zeros(len(scores), number, dtype=torch.bool, device=scores.device)
        # Of scores of 1e8 the eighth digit behind the point is rounding.
        self.enough = shared.method.tol + 16 * torch.finfo(self.mean.dtype).eps * self.target.abs().amax(-1)

    @staticmethod
    def start(scores: Tensor, graph: FactorGraph, additional: list[Tensor], method: ADMM) -> "_State":
        """At a mean of 0, without messages."""
        return _State(_Shared.of(graph, scores.device, method), scores, additional)

    def iterate(self) -> None:
        """One iteration of every row; rows that have converged stay as they are."""
        shared, live = self.shared, ~self.converged
        rho = self.penalty[:, None]
        primal = torch.zeros_like(self.primal)
        exact = torch.ones_like(self.converged)  # whether all factors' own solves converged
        found, relaxed = [], []
        for group, index, parts, message, extra in zip(
            shared.groups, shared.index, shared.parts, self.messages, self.additional, strict=True
        ):
            here = self.mean[:, index]  # [B, F, n]
            wanted = torch.where(self.forbidden[:, index], -torch.inf, here + message)
            prices = extra / self.penalty[:, None, None]
            copies, solved = factor_mean(group, wanted.flatten(0, 1), prices.flatten(0, 1), parts, shared.method.solver)
            copies, exact = copies.reshape(here.shape), exact & solved.reshape(here.shape[:2]).all(-1)
            mixed = RELAXATION * copies + (1 - RELAXATION) * here
            found.append(copies)
            relaxed.append(mixed)
        total = shared.total([mixed - message for mixed, message in zip(relaxed, self.messages, strict=True)])
        mean = (self.target + rho * total) / (1 + rho * shared.degree)
        mean = torch.where(self.forbidden, 0, mean)
        for place, (index, copies, mixed) in enumerate(zip(shared.index, found, relaxed, strict=True)):
            here = mean[:, index]
            self.apart[place] = here - copies
            primal = torch.maximum(primal, self.apart[place].abs().amax((1, 2)))
            self.messages[place] = torch.where(live[:, None, None], self.messages[place] + here - mixed, self.messages[place])
        dual = self.penalty * (mean - self.mean).abs().amax(-1)
        self.primal, self.dual = torch.where(live, primal, self.primal), torch.where(live, dual, self.dual)
        self.mean = torch.where(live[:, None], mean, self.mean)
        self.iterations += live
        self.converged = self.converged | (exact & (torch.maximum(self.primal, self.dual) <= self.enough))

    def prove(self) -> None:
        """Looks whether factors contradict one another, on rows that have not converged."""
        shared = self.shared
        common = shared.total(self.apart) / shared.degree
        directions = [
            torch.where(self.forbidden[:, index], -torch.inf, apart - common[:, index])
            for index, apart in zip(shared.index, self.apart, strict=True)
        ]
        self.contradicting = contradicting(shared.groups, shared.parts, directions) & ~self.converged[:, None]

    def balance(self) -> None:
        """Changes the penalty of rows where one residual is far above the other. Multipliers rho w stay."""
        change = torch.where(self.primal > UNBALANCED * self.dual, CHANGE, 1.0)
        change = torch.where(self.dual > UNBALANCED * self.primal, 1 / CHANGE, change).to(self.penalty)
        self.penalty = self.penalty * change
        self.messages = [message / change[:, None, None] for message in self.messages]

    def select(self, rows: Tensor) -> "_State":
        """The state of some rows [n] int64."""
        chosen = object.__new__(_State)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(chosen, name, value[rows])
            elif isinstance(value, list):
                setattr(chosen, name, [tensor[rows] for tensor in value])
        chosen.shared = self.shared
        return chosen

    def result(self) -> Consensus:
        """As it stands."""
        stats = ConsensusStats(self.iterations, self.primal, self.dual, self.converged, self.contradicting.any(-1))
        return Consensus(self.mean, self.messages, self.penalty, self.contradicting, stats)


def _store(whole: Consensus, rows: Tensor, state: _State) -> Consensus:
    """The result with the given rows [n] int64 as they stand in `state`."""
    part = state.result()

    def put(into: Tensor, values: Tensor) -> Tensor:
        return into.index_copy(0, rows, values)

    stats = ConsensusStats(
        *(put(old, new) for old, new in zip(vars(whole.stats).values(), vars(part.stats).values(), strict=True))
    )
    messages = [put(old, new) for old, new in zip(whole.messages, part.messages, strict=True)]
    return Consensus(
        put(whole.mean, part.mean),
        messages,
        put(whole.penalty, part.penalty),
        put(whole.contradicting, part.contradicting),
        stats,
    )
