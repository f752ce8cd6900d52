"""Checks of the optional methods that make distributions: `project`, `decompose` and `gibbs`."""

from dataclasses import dataclass

import numpy as np
import torch

from ..oracles import SupportsDecomposition, SupportsGibbs, SupportsProjection
from . import enumeration
from .broken import broken, first_line
from .check import Check, Skip, need
from .enumeration import Array
from .ledger import Ledger
from .score_kinds import Sample
from .subject import Subject

MEAN = 1e-8  # the library's promise for means in float64
SUM = 1e-10  # of probabilities: far above rounding of a sum, far below any mistake
_DRAWS = 4000
# Of a frequency in standard errors. The seed is fixed, so this is no flakiness but a limit on what a sampler may hide.
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Project(Check):
    """`project` is the Euclidean projection: against bounded least squares, and by the optimality condition; of any batch."""

    @property
    def name(self) -> str:
        return "project"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsProjection)
        scores = sample.scores.numpy()
        mean = projected(subject, scores)
        truth, known = subject.projection(scores)
        rows = np.flatnonzero(known)
        if len(rows):
            errors = np.abs(mean - truth)[rows].max(-1)
            ledger.compare("bounded least squares over structures", errors, MEAN, "project", rows.tolist())
        # <t - mu, v - mu> <= 0 for the best v: optimal if mu is feasible. Ordered so that agreeing coordinates cancel.
        best = subject.best(scores - mean)
        gap = ((scores - mean) * (best - mean)).sum(-1)
        noise = 1e-9 + 64 * np.finfo(float).eps * (np.abs(scores) * (np.abs(best) + np.abs(mean))).sum(-1)
        ledger.compare("optimality by the oracle", np.maximum(gap - noise, 0), 0.0, "the gap of project")
        # Idempotence says that what it returned is a point of the polytope, where there is no list to say so.
        again = projected(subject, mean)
        ledger.compare("itself, projected again", np.abs(again - mean).max(-1), MEAN, "project of a projection")
        projected(subject, scores[:0])
        for row in sample.few(1):
            errors = np.abs(projected(subject, scores[[row]]) - mean[[row]]).max(-1)
            ledger.compare("itself, alone", errors, MEAN, "project of a row alone", [row])
        _check_forbidden(ledger, subject, scores, sample.few(1))


def _check_forbidden(ledger: Ledger, subject: Subject, scores: Array, rows: list[int]) -> None:
    """Scores of `-inf` project on the hull of the structures that are 0 there; for structures that are nonnegative."""
    table = subject.structures().table
    if table is None or (table < 0).any():
        return
    candidates = np.flatnonzero((table == 0).any(0) & (table != 0).any(0))
    for place, row in enumerate(rows if len(candidates) else []):
        forbidden = candidates[place % len(candidates)]
        given = scores[[row]].copy()
        given[0, forbidden] = 0.0
        wanted, known = enumeration.projection(table[table[:, forbidden] == 0], given)
        given[0, forbidden] = -np.inf
        if known[0]:
            errors, what = np.abs(projected(subject, given) - wanted).max(-1), f"project with -inf for score {forbidden}"
            ledger.compare("the structures that are not forbidden", errors, MEAN, what, [row])


@dataclass(frozen=True)
class Decompose(Check):
    """`decompose` writes a mean as a convex combination of affinely independent structures."""

    @property
    def name(self) -> str:
        return "decompose"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsDecomposition)
        scores = sample.scores.numpy()
        if subject.has(SupportsProjection):
            mean = projected(subject, scores)
        else:
            corners = subject.best(scores)
            mean = (corners + corners[::-1] + corners[::-1].mean(0)) / 3
        tensor = subject.to_tensor(mean)
        vertices, probs = subject.pair("decompose", subject.call("decompose", tensor), tensor)
        if probs.dtype != tensor.dtype:
            raise broken(subject.name, "decompose", f"returned probs of {probs.dtype} for a mean of {tensor.dtype}")
        check_combination(ledger, subject, vertices.cpu().numpy(), probs.cpu().numpy(), mean, "decompose")
        subject.pair("decompose", subject.call("decompose", tensor[:0]), tensor[:0])


def check_combination(
    ledger: Ledger, subject: Subject, atoms: Array, probs: Array, mean: Array, what: str, dtype: torch.dtype = torch.float64
) -> None:
    """That sum_s p_s a_s = mean with structures a_s, p >= 0, sum p = 1 and independent a_s: [B, S, D], [B, S], [B, D]."""
    total, exact = (SUM, MEAN) if dtype == torch.float64 else (1e-6, 1e-5 * subject.size)
    ledger.compare("probabilities sum to 1", np.abs(probs.sum(-1) - 1), total, f"the sum of {what}'s probabilities")
    ledger.compare("probabilities >= 0", np.maximum(-probs.min(-1), 0), total, f"{what}'s smallest probability")
    combined = np.einsum("bs,bsd->bd", probs, atoms)
    ledger.compare("the mean", np.abs(combined - mean).max(-1), exact, f"the mean of {what}'s distribution")
    used = probs > 1e-12
    table = subject.structures().table
    if table is None:
        # A 0/1 structure is the only maximiser of 2a - 1, so the oracle can say what is one.
        given = atoms[used]
        if np.isin(given, (0, 1)).all():
            asked = np.zeros(used.shape, dtype=bool)
            asked[used] = (subject.best(2 * given - 1) == given).all(-1)
            ledger.require(
                "atoms are structures", (asked | ~used).all(-1), f"{what} gave mass to a point that is not a structure"
            )
        else:
            ledger.note(f"that atoms are structures was not checked: {subject.structures().source}")
    else:
        # float32 atoms are the structures rounded.
        rounded = 0.0 if dtype == torch.float64 else 1e-6 * float(np.abs(table).max())
        inside = [(enumeration.index_of(a[on], table, rounded) >= 0).all() for a, on in zip(atoms, used, strict=True)]
        ledger.require("atoms are structures", inside, f"{what} gave mass to a point that is not a structure")
    independent = []
    for row, on in zip(atoms, used, strict=True):
        kept = row[on]
        rank = np.linalg.matrix_rank(kept[1:] - kept[:1]) if len(kept) > 1 else 0
        independent.append(rank == len(kept) - 1)
    ledger.require("independent atoms", independent, f"{what}'s atoms are affinely dependent (or one is there twice)")


@dataclass(frozen=True)
class Gibbs(Check):
    """`gibbs` is softmax over the structures' totals: log-probabilities, normalisation, entropy, gradients, samples.

    Log-probabilities are -inf off the set, samples follow the generator, and scores have any batch shape. Marginals are checked
    where there are any.
    """

    @property
    def name(self) -> str:
        return "gibbs"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsGibbs)
        table = subject.structures().table
        if table is None:
            raise Skip(subject.structures().source)
        rows = [row for row in sample.few(2) if sample.scores[row].abs().max() <= 1e3]
        if not rows:
            raise Skip("no scores of at most 1e3 were given")
        scores = sample.scores[rows].numpy()
        wanted = enumeration.gibbs_log_probs(table, scores)
        leaf = subject.to_tensor(scores).requires_grad_()
        gibbs = subject.call("gibbs", leaf)
        for method in ("log_prob", "entropy", "sample"):
            if not callable(getattr(gibbs, method, None)):
                raise broken(subject.name, "gibbs", f"returned {type(gibbs).__name__}, which has no {method}")
        try:
            listed = subject.to_tensor(table)[:, None].expand(-1, len(rows), -1)
            logs = gibbs.log_prob(listed)
            entropy = gibbs.entropy()
            (gradient,) = torch.autograd.grad(logs[0].sum(), leaf, retain_graph=True)
            (change,) = torch.autograd.grad(entropy.sum(), leaf, retain_graph=True)
            means, slope, weights = None, None, np.linspace(0.5, 1, table.shape[1])
            if callable(getattr(gibbs, "marginals", None)):
                means = gibbs.marginals()
                (slope,) = torch.autograd.grad((means * torch.from_numpy(weights).to(means)).sum(), leaf)
            drawn, few, again = (
                gibbs.sample((count,), torch.Generator(subject.device).manual_seed(0)).detach().cpu().numpy()
                for count in (_DRAWS, 20, 20)
            )
            beyond = gibbs.log_prob(subject.to_tensor(table.max(0) + 1).expand(len(rows), -1)).detach().cpu().numpy()
        except Exception as error:
            raise broken(subject.name, "gibbs", f"returned a distribution that raised {first_line(error)}") from error
        logs, entropy = logs.detach().cpu().numpy().T, entropy.detach().cpu().numpy()
        if logs.shape != wanted.shape or drawn.shape != (_DRAWS, *scores.shape) or entropy.shape != (len(rows),):
            what = f"gave log_prob {list(logs.T.shape)}, sample {list(drawn.shape)}, entropy {list(entropy.shape)}"
            raise broken(subject.name, "gibbs", what)
        ledger.compare("log-softmax", np.abs(logs - wanted).max(-1), MEAN, "gibbs().log_prob", rows)
        ledger.compare("normalisation", np.abs(np.exp(logs).sum(-1) - 1), SUM, "the sum of gibbs() probabilities", rows)
        difference = np.abs(entropy - enumeration.entropy(wanted))
        ledger.compare("entropy", difference, MEAN, "gibbs().entropy", rows)
        expected = table[0] - np.exp(wanted) @ table
        errors = np.abs(gradient.cpu().numpy() - expected).max(-1)
        ledger.compare("gradient a_z - E[a]", errors, MEAN, "the gradient of gibbs().log_prob", rows)
        errors = np.abs(change.cpu().numpy() - enumeration.entropy_gradient(wanted, table)).max(-1)
        ledger.compare("gradient of the entropy", errors, MEAN, "the gradient of gibbs().entropy", rows)
        if means is not None and slope is not None:
            if means.shape != scores.shape:
                raise broken(subject.name, "gibbs", f"gave marginals {list(means.shape)} for scores {list(scores.shape)}")
            errors = np.abs(means.detach().cpu().numpy() - np.exp(wanted) @ table).max(-1)
            ledger.compare("marginals", errors, MEAN, "gibbs().marginals", rows)
            errors = np.abs(slope.cpu().numpy() - enumeration.mean_gradient(wanted, table, weights)).max(-1)
            ledger.compare("gradient of the marginals", errors, MEAN, "the gradient of gibbs().marginals", rows)
        what = "gibbs().log_prob of a point that is not a structure is not -inf"
        ledger.require("-inf off the set", np.isneginf(beyond), what, rows)
        _check_samples(ledger, drawn, np.exp(wanted), table, rows)
        what = "gibbs().sample returned other samples for a generator of the same seed"
        ledger.require("samples of the generator", (few == again).all((0, 2)), what, rows)
        for shape in ((1, len(rows)), ()):
            given = subject.to_tensor(scores.reshape(1, *scores.shape) if shape else scores[0])
            one = subject.call("gibbs", given)
            try:
                found = one.log_prob(subject.to_tensor(table[0]).expand_as(given)).detach().cpu().numpy()
                size = one.sample((), torch.Generator(subject.device).manual_seed(0)).shape
            except Exception as error:
                what = f"returned a distribution for scores {list(given.shape)} that raised {first_line(error)}"
                raise broken(subject.name, "gibbs", what) from error
            if found.shape != shape or size != given.shape:
                what = f"gave log_prob {list(found.shape)} and sample {list(size)} for scores {list(given.shape)}"
                raise broken(subject.name, "gibbs", what)
            errors = np.abs(found.reshape(-1) - wanted[: found.size, 0])
            ledger.compare(f"scores {list(given.shape)}", errors, MEAN, "gibbs().log_prob", rows[: found.size])


def _check_samples(ledger: Ledger, drawn: Array, probs: Array, table: Array, rows: list[int]) -> None:
    for place, row in enumerate(rows):
        which = enumeration.index_of(drawn[:, place], table)
        what = "gibbs().sample returned a point that is not a structure"
        ledger.require("samples are structures", [(which >= 0).all()], what, [row])
        seen = np.bincount(which[which >= 0], minlength=len(table))
        chance = probs[place]
        error = np.sqrt(np.maximum(chance * (1 - chance), 0) / _DRAWS) + 1 / _DRAWS
        off = (np.abs(seen / _DRAWS - chance) / error).max()
        ledger.compare("sampled frequencies (std errors)", [off], _DEVIATIONS, "a frequency of gibbs().sample", [row])


def projected(subject: Subject, scores: Array) -> Array:
    """What `project` returns for float64 scores, checked."""
    tensor = subject.to_tensor(scores)
    return subject.tensor("project", subject.call("project", tensor), tuple(tensor.shape), tensor).cpu().numpy()
