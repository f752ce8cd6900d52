"""Checks of what the layers compute on a polytope: the mean, the distribution and its certificate. No derivatives."""

from dataclasses import dataclass

import numpy as np
import torch

from ..layers.functional import topk_sparsemax
from ..layers.solvers import Solver, SortedDecomposition
from ..oracles import SupportsDecomposition, SupportsProjection
from . import enumeration, kkt
from .broken import Broken, broken, first_line
from .check import Check, Skip, need
from .cvxpy_references import Unavailable
from .enumeration import Array
from .ledger import Ledger
from .method_checks import check_combination, projected
from .oracle_checks import rounding
from .score_kinds import Sample
from .subject import Subject

# The library's promises (design, section 4), and what a second-order cone solver at its tightest settings is good for.
MEAN = {torch.float64: 1e-8, torch.float32: 1e-5}
CVXPY = {torch.float64: 1e-6, torch.float32: 1e-5}
# Solvers stop at 1e-9 times the scores' scale or before; weights below 1e-9 that they leave out may add as much again.
GAP = {torch.float64: 5e-9, torch.float32: 1e-5}
# References that solve numerically see scores up to this size; larger ones are checked where a vertex is the answer.
LARGEST = 1e3


def can_solve(subject: Subject, solver: Solver) -> None:
    """Raises Skip, naming the methods to write, if the solver needs some that the polytope lacks."""
    if isinstance(solver, SortedDecomposition):
        need(subject, SupportsProjection)
        need(subject, SupportsDecomposition)
        if subject.regularized is not None:
            raise Skip("the closed form regularises all coordinates, this polytope some only")


@dataclass(frozen=True)
class SolverCheck(Check):
    """A check of one solver; its name is `title [label]`."""

    solver: Solver
    label: str

    title = ""

    @property
    def name(self) -> str:
        return f"{self.title} [{self.label}]"


class Mean(SolverCheck):
    """The mean is the projection: against bounded least squares over all structures, and the closed form."""

    title = "mean"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        scores = sample.scores.numpy()
        distribution = subject.solved(scores, self.solver)
        mean = distribution.mean()
        if mean.dtype != subject.dtype or mean.shape != scores.shape:
            raise Broken(
                "sparsemap", f"sparsemap returned a mean of {mean.dtype} {list(mean.shape)} for {subject.dtype} scores"
            )
        mean = mean.double().cpu().numpy()
        truth, known = subject.truth(scores)
        rows = np.flatnonzero(known)
        tolerance = subject.tolerance(MEAN)
        errors = np.abs(subject.determined(mean - truth)).max(-1)[rows]
        ledger.compare("bounded least squares over structures", errors, tolerance, "the mean", rows.tolist())
        if subject.structures().table is None:
            ledger.note(f"the mean was not compared with enumeration: {subject.structures().source}")
        mask = subject.regularized
        if mask is not None:
            values = [(scores * mu).sum(-1) - np.square(mu[:, mask]).sum(-1) / 2 for mu in (mean, truth)]
            # A difference dt of scores changes the maximum by at most |dt| times the size of structures.
            noise = 1e-13 * np.abs(scores).sum(-1) if subject.dtype == torch.float64 else 1e-5 * np.abs(scores).sum(-1)
            errors = (np.abs(values[0] - values[1]) - noise)[rows]
            ledger.compare("maximum of the objective", errors, tolerance, "the objective at the mean", rows.tolist())
        elif subject.has(SupportsProjection):
            # The same numbers up to the rounding of scores that large.
            closed = projected(subject, scores)
            allowed = np.maximum(np.abs(scores).max(-1) * 1e-15 - tolerance, 0)
            ledger.compare("closed form (project)", np.abs(mean - closed).max(-1) - allowed, tolerance, "the mean")
        best = subject.best(scores)
        ledger.require("finite", np.isfinite(mean).all(-1), "the mean is not finite")
        if not rows.size and not subject.has(SupportsProjection):
            # Nothing but the oracle: where a score is so clear that no other structure is near, the mean is the MAP structure.
            scaled = scores * (1e6 / np.maximum(np.abs(scores).max(-1, keepdims=True), 1e-300))
            limit = subject.solved(scaled, self.solver).mean().double().cpu().numpy()
            moved = (scaled * (best - limit)).sum(-1)
            noise = 1e-9 * np.abs(scaled).sum(-1) + subject.dim
            ledger.compare("MAP as scores grow", np.maximum(moved - noise, 0), 0.0, "the mean's score")


class MeanByCvxpy(SolverCheck):
    """The mean against cvxpy's QP over the vertices and over the halfspaces."""

    title = "mean by cvxpy"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        representations = subject.representations()
        if not representations:
            raise Skip(f"write {subject.name}.vertices or {subject.name}.halfspaces")
        rows = [row for row in sample.few(1) if sample.scores[row].abs().max() <= LARGEST]
        scores = sample.scores[rows].numpy()
        mean = subject.solved(sample.scores.numpy(), self.solver).mean().double().cpu().numpy()[rows]
        for over in representations:
            means, statuses = _by_cvxpy(subject, over, scores)
            bad = {status for status in statuses if status != "optimal"}
            if bad & {"infeasible", "unbounded", "infeasible_inaccurate", "unbounded_inaccurate"}:
                raise broken(subject.name, over, f"describes a set over which the projection is {bad.pop()}")
            if bad:
                lost = sum(status in bad for status in statuses)
                ledger.note(f"cvxpy over {over} says {', '.join(sorted(bad))} on {lost} of {len(rows)} rows, left out")
            solved = [place for place in range(len(rows)) if np.isfinite(means[place]).all()]
            errors = np.abs(subject.determined(mean - means))[solved].max(-1)
            close = subject.tolerance(CVXPY)
            ledger.compare(f"cvxpy over {over}", errors, close, "the mean", [rows[place] for place in solved])
        if len(representations) < 2:
            absent = ({"vertices", "halfspaces"} - set(representations)).pop()
            ledger.note(f"write {subject.name}.{absent} to compare with cvxpy over {absent}")


def _by_cvxpy(subject: Subject, over: str, scores: Array) -> tuple[Array, list[str]]:
    try:
        return subject.remember(("by cvxpy", over, scores.tobytes()), lambda: subject.quadratic_program(over).solve(scores))
    except Unavailable as error:
        raise Skip(str(error)) from error


class SupportIsValid(SolverCheck):
    """At most D + 1 structures, each there once, independent, with probabilities that sum to 1 and give the mean."""

    title = "support"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        distribution = subject.solved(sample.scores.numpy(), self.solver)
        atoms, probs = (part.double().cpu().numpy() for part in distribution.padded())
        mean = distribution.mean().double().cpu().numpy()
        size = distribution.support_size().cpu().numpy()
        most = 1 + (subject.dim if subject.regularized is None else int(subject.regularized.sum()))
        ledger.require("at most D + 1 atoms", size <= most, f"the support has more than {most} atoms")
        check_combination(ledger, subject, atoms, probs, mean, "sparsemap", subject.dtype)


class Certificate(SolverCheck):
    """Converged, with KKT residuals near zero, and a reported gap that is not below the true one."""

    title = "certificate"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        scores = sample.scores.numpy()
        found = subject.solved(scores, self.solver)
        stats = found.stats
        gaps, converged = getattr(stats, "gap", None), getattr(stats, "converged", None)
        if gaps is None or converged is None:
            raise Broken("stats", f"{self.solver} reported {type(stats).__name__}; it should report SolverStats")
        reported, done = gaps.cpu().numpy(), converged.cpu().numpy()
        worst = f"{reported[~done].max():.1e}" if (~done).any() else ""
        ledger.require("converged", done, f"{self.label} did not converge (gap {worst}); raise its max_iter or tol")
        atoms, probs = (part.double().cpu().numpy() for part in found.padded())
        mean = np.einsum("bs,bsd->bd", probs, atoms)
        table = subject.structures().table
        mask = subject.regularized
        best = subject.best(scores - (mean if mask is None else np.where(mask, mean, 0.0)))
        tolerance = GAP[subject.dtype]
        exact = []
        for row in range(len(scores)):
            candidates = best[row : row + 1] if table is None else table
            on = probs[row] > 0
            exact.append(kkt.residuals(atoms[row][on], probs[row][on], scores[row], candidates, mask))
        size = float(np.abs(atoms).max(initial=1))
        # Rounding of the products, from the coordinates on which atoms differ, and what the dtype of the weights loses.
        spread = np.abs((best if table is None else table)[None, :, :] - mean[:, None]).max(1)
        eps = np.finfo(np.float64).eps if subject.dtype == torch.float64 else 1e-7
        noise = 64 * eps * ((np.abs(scores) + size) * spread).sum(-1)
        true = np.array([one.gap for one in exact])
        allowed = tolerance * size**2
        ledger.compare("Wolfe gap", np.maximum(true - noise, 0), allowed, "the gap of the mean, which is 0 at the projection,")
        under = np.maximum(true - reported - noise, 0)
        ledger.compare("reported gap", under, allowed, "stats.gap is too small: the true gap")
        slack = np.array([one.slackness for one in exact])
        ledger.compare("KKT slackness", np.maximum(slack - noise, 0), allowed, "the slackness of the support's atoms")


class SameBits(SolverCheck):
    """The same scores give the same distribution, bit for bit."""

    title = "deterministic"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        scores = subject.to_tensor(sample.scores).to(subject.dtype)
        atoms, probs = subject.solved(sample.scores.numpy(), self.solver).padded()
        again, weights = subject.sparsemap(scores, self.solver).padded()
        same = atoms.shape == again.shape and torch.equal(atoms, again) and torch.equal(probs, weights)
        ledger.require("itself, again", [same], f"{self.label} returned another distribution for the same scores", [-1])


class SinglePrecision(SolverCheck):
    """float32 scores give a float32 distribution with the mean of float64."""

    title = "float32"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        can_solve(subject, self.solver)
        sizes = sample.scores.abs().amax(-1)
        # Of scores of 1e-5 and less any mean near the origin's would pass.
        rows = [row for row in sample.few(2) if 1e-5 < sizes[row] <= LARGEST]
        if not rows:
            raise Skip(f"no scores between 1e-5 and {LARGEST:g} were given")
        single = sample.scores[rows].to(subject.device, torch.float32)
        found = subject.sparsemap(single, self.solver)
        if found.probs.dtype != torch.float32 or found.atoms.dtype != torch.float32:
            raise Broken("sparsemap", f"sparsemap returned probs of {found.probs.dtype} for float32 scores")
        wanted = subject.sparsemap(single.double(), self.solver).mean()
        errors = np.abs(subject.determined((found.mean().double() - wanted).cpu().numpy())).max(-1)
        ledger.compare("float64", errors, subject.tolerance(MEAN, torch.float32), "the float32 mean", rows)


@dataclass(frozen=True)
class SolversAgree(Check):
    """All solvers that can work on the polytope find the same mean."""

    solvers: tuple[tuple[str, Solver], ...]

    @property
    def name(self) -> str:
        return "solvers agree"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        able = []
        for label, solver in self.solvers:
            try:
                can_solve(subject, solver)
            except Skip:
                continue
            able.append((label, subject.solved(sample.scores.numpy(), solver).mean().double().cpu().numpy()))
        if len(able) < 2:
            raise Skip("only one solver can work on this polytope; pass two or more in solvers=")
        for label, mean in able[1:]:
            errors = np.abs(subject.determined(mean - able[0][1])).max(-1)
            ledger.compare(f"{label} and {able[0][0]}", errors, subject.tolerance(MEAN), f"the mean of {label}")


@dataclass(frozen=True)
class TopKSparsemax(Check):
    """Top-k sparsemax is sparsemax of the k best totals, and of all where its certificate says so."""

    @property
    def name(self) -> str:
        return "topk_sparsemax"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        table = subject.structures().table
        if table is None:
            raise Skip(subject.structures().source)
        rows = [row for row in range(len(sample.scores)) if sample.scores[row].abs().max() <= LARGEST]
        if not rows:
            raise Skip(f"no scores of at most {LARGEST:g} were given")
        scores = sample.scores[rows].numpy()
        full = enumeration.sparsemax(enumeration.totals(table, scores)) @ table
        for k in sorted({1, min(3, len(table)), min(len(table) + 1, 40)}):
            try:
                found = topk_sparsemax(subject.to_tensor(scores), subject.polytope, k)
            except Exception as error:
                raise Broken("topk", f"topk_sparsemax with k={k} raised {first_line(error)}") from error
            probs = found.padded()[1].cpu().numpy()
            wanted = enumeration.sparsemax(enumeration.best_totals(table, scores, k))
            width = max(probs.shape[1], wanted.shape[1])
            probs, wanted = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (probs, wanted))
            errors = np.abs(-np.sort(-probs) - -np.sort(-wanted)).max(-1)
            # A probability moves as the totals do, which have the digits that products so large leave.
            noise = rounding(scores, subject.size) if subject.size > 1 else 0
            ledger.compare("sparsemax of the k best totals", errors - noise, MEAN[torch.float64], "topk_sparsemax", rows)
            exact = getattr(found.stats, "exact", torch.zeros(len(rows), dtype=torch.bool)).cpu().numpy()
            places = np.flatnonzero(exact)
            errors = np.abs(found.mean().cpu().numpy() - full).max(-1)[places]
            what = "the mean of topk_sparsemax where stats.exact"
            ledger.compare("sparsemax of all totals", errors, MEAN[torch.float64], what, [rows[place] for place in places])
