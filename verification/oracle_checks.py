"""Checks of the oracle and of what the polytope says of itself: no layer is involved."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize

from ..oracles import SupportsHalfspaces, SupportsTopk, SupportsVertices, topk
from . import enumeration
from .broken import Broken, broken, first_line
from .check import Check, Skip, need
from .enumeration import Array
from .ledger import Ledger
from .score_kinds import Sample
from .subject import MOST_BITS, Subject

# Two totals of D products of scores of size s differ by rounding of about D s eps; 64 times that is no rounding.
_ROUNDING = 64 * np.finfo(np.float64).eps
# An LP's optimum over the halfspaces, and a vertex's constraints.
_LINEAR = 1e-8


def rounding(scores: Array, size: float = 1.0) -> Array:
    """What rounding may add to a total <a_z, t> of structures with entries up to `size`: [B, D] -> [B]."""
    return _ROUNDING * size * np.abs(scores).sum(-1)


@dataclass(frozen=True)
class Contract(Check):
    """`maximize` takes float64 and float32, any batch size, and returns what it should, without touching its input."""

    @property
    def name(self) -> str:
        return "maximize: contract"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        for dtype in (torch.float64, torch.float32):
            for rows in (sample.scores, sample.scores[:1], sample.scores[:0]):
                subject.maximize(rows.to(subject.device, dtype))
        scores = subject.to_tensor(sample.scores)
        ledger.require("shape, dtype, device", np.ones(len(scores), dtype=bool), "")


@dataclass(frozen=True)
class Deterministic(Check):
    """The same scores give the same structures, again and again, and whatever else is in the batch."""

    @property
    def name(self) -> str:
        return "maximize: deterministic"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        scores = sample.scores.numpy()
        first = subject.best(scores)
        for _ in range(3):
            same = (subject.best(scores) == first).all(-1)
            ledger.require("itself, again", same, "maximize returned another structure for the same scores")
        ledger.require(
            "itself, batch reversed",
            (subject.best(scores[::-1].copy())[::-1] == first).all(-1),
            "maximize returned another structure when the batch was reversed",
        )
        for row in sample.few(1):
            alone = subject.best(scores[row : row + 1])[0]
            same = [bool((alone == first[row]).all())]
            ledger.require("itself, alone", same, "maximize returned another structure for a row alone", [row])


@dataclass(frozen=True)
class Optimal(Check):
    """What `maximize` returns is a structure, and no structure scores more."""

    @property
    def name(self) -> str:
        return "maximize: optimal"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        scores = sample.scores.numpy()
        found = subject.best(scores)
        reached = (found * scores).sum(-1)
        noise = rounding(scores, float(np.abs(found).max(initial=1)))
        # Needs no list: what it found for one row must not beat what it found for another.
        others = np.unique(found, axis=0)
        totals = scores @ others.T
        least = len(others) > 1 and bool((totals.min(-1) >= reached - noise).all())

        def better(place: int) -> str:
            returned, other = _shown(found[place]), _shown(others[totals[place].argmax()])
            text = f"it returned {returned}, and {other}, which it returned for other scores, has more"
            return text + ("; of all that it returned it has the least, always: does it minimise?" if least else "")

        lost, what = totals.max(-1) - reached, "the total of maximize's structure"
        ledger.compare("its answers to other rows", lost - noise, 0.0, what, example=better)
        table = subject.structures().table
        if table is None:
            ledger.note(f"optimality was not checked by enumeration: {subject.structures().source}")
            return
        listed = enumeration.index_of(found, table) >= 0
        ledger.require(
            "membership", listed, f"maximize returned a point that is not among the structures of {subject.structures().source}"
        )
        lost = enumeration.best_totals(table, scores, 1)[:, 0] - reached

        def best(place: int) -> str:
            return f"it returned {_shown(found[place])}, and {_shown(table[(table @ scores[place]).argmax()])} is best"

        ledger.compare("enumeration", np.abs(lost) - noise, 0.0, what, example=best)


@dataclass(frozen=True)
class Vertices(Check):
    """`vertices` lists every structure once, and only structures."""

    @property
    def name(self) -> str:
        return "vertices"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsVertices)
        structures = subject.structures()
        if structures.table is None:
            if "too many" in structures.source or "more than" in structures.source:
                raise Skip(structures.source)
            raise Broken("vertices", structures.source)
        table = structures.table
        distinct = len(np.unique(table, axis=0)) == len(table)
        ledger.require("distinct", [distinct], "vertices() lists a structure twice", [-1])
        if np.isin(table, (0, 1)).all():
            # A 0/1 structure is the only maximiser of 2z - 1, so the oracle can be asked whether it is one.
            reached = (subject.best(2 * table - 1) == table).all(-1)
            alien = "" if reached.all() else f" {table[~reached][0].tolist()}"
            what = f"vertices() lists{alien}, which maximize does not return for scores 2z - 1: it is not a structure"
            ledger.require("maximize of 2z - 1", reached, what, [-1] * len(table))
            if subject.dim <= MOST_BITS:
                found = subject.found_by_oracle()
                if found.table is not None:
                    lacking = enumeration.index_of(found.table, table) < 0
                    example = f" {found.table[lacking][0].tolist()}" if lacking.any() else ""
                    what = f"vertices() lacks the structure{example}, which maximize returns"
                    ledger.require("every bit vector", ~lacking, what, [-1] * len(lacking))
        else:
            ledger.note("the structures are not 0/1, so only those that maximize returned were compared with the list")


@dataclass(frozen=True)
class HalfspacesMatch(Check):
    """The halfspaces are the hull of the structures: feasible, bounded, satisfied by every structure, and no larger."""

    @property
    def name(self) -> str:
        return "halfspaces"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        need(subject, SupportsHalfspaces)
        half = subject.halfspaces()
        scores = sample.scores.numpy()
        found = subject.best(scores)
        structures = subject.structures().table
        # Rows of the sample first, so that a violation can be traced to scores.
        points = found if structures is None else np.concatenate([found, structures])
        over = (points @ half.a_ub.numpy().T - half.b_ub.numpy()).max(-1, initial=0.0)
        off = np.abs(points @ half.a_eq.numpy().T - half.b_eq.numpy()).max(-1, initial=0.0)
        numbers = [place if place < len(found) else -1 for place in range(len(points))]
        ledger.compare("structures inside", np.maximum(over, off), _LINEAR, "a structure's halfspaces() constraint", numbers)
        rows = sample.few(2)
        if np.isfinite(np.abs(scores[rows]).max(-1)).all():
            for row in rows:
                direction = scores[row] / max(1e-300, float(np.abs(scores[row]).max())) if scores[row].any() else scores[row]
                best = _maximum(subject, direction)
                vertex = float(direction @ found[row])
                ledger.compare("linear programme", [abs(best - vertex)], _LINEAR, "max <t, x> over halfspaces()", [row])


def _maximum(subject: Subject, direction: Array) -> float:
    """max <c, x> over the halfspaces by SciPy's HiGHS; Broken if there is none."""
    half = subject.halfspaces()
    empty = {"A_eq": half.a_eq.numpy(), "b_eq": half.b_eq.numpy()} if len(half.a_eq) else {}
    upper = {"A_ub": half.a_ub.numpy(), "b_ub": half.b_ub.numpy()} if len(half.a_ub) else {}
    # HiGHS stops at 1e-7 by default, which may pick the second best of two structures that are nearly tied.
    accuracy = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    solved = optimize.linprog(-direction, **upper, **empty, bounds=(None, None), method="highs", options=accuracy)
    if solved.status == 0:
        return -float(solved.fun)
    kind = {2: "infeasible", 3: "unbounded", 4: "numerically difficult or unbounded"}.get(solved.status, "not solved")
    raise broken(subject.name, "halfspaces", f"describes a set that is {kind} (a linear programme over it has no optimum)")


@dataclass(frozen=True)
class TopK(Check):
    """The k best structures: structures, distinct, sorted, complete, and `valid` where they exist; of any number of rows."""

    @property
    def name(self) -> str:
        return "topk"

    def run(self, subject: Subject, sample: Sample, ledger: Ledger) -> None:
        table = subject.structures().table
        if not subject.has(SupportsTopk):
            if table is None:
                need(subject, SupportsTopk)
            ledger.note(f"{subject.name} has no topk; checked what `sparsemarg.oracles.topk` makes of its other methods")
        scores = sample.scores.numpy()
        size = len(table) if table is not None else None
        counts = {1, 2, 5} if size is None else {1, 2, min(5, size), min(size + 2, 40)}
        for k in sorted(counts):
            rows = list(range(len(scores))) if k <= 5 else sample.few(2)
            vertices, valid = self._call(subject, sample.scores[rows], k)
            _compare(ledger, scores[rows], vertices, valid, table, rows)
        self._call(subject, sample.scores[:0], 2)
        for row in sample.few(1)[:3]:
            _compare(ledger, scores[[row]], *self._call(subject, sample.scores[[row]], 2), table, [row])
        if size is None:
            ledger.note(f"that none is missing was not checked: {subject.structures().source}")

    def _call(self, subject: Subject, scores: torch.Tensor, k: int) -> tuple[Array, Array]:
        tensor = subject.to_tensor(scores)
        if subject.has(SupportsTopk):
            vertices, valid = subject.pair("topk", subject.call("topk", tensor, k), tensor)
            if vertices.shape[1] != k or valid.dtype != torch.bool:
                what = f"returned vertices {list(vertices.shape)} and valid {valid.dtype} for k={k}"
                raise broken(subject.name, "topk", what)
        else:
            try:
                vertices, valid = topk(subject.polytope, tensor, k)
            except Exception as error:
                raise Skip(f"write {subject.name}.topk: {first_line(error)}") from error
        return vertices.cpu().numpy(), valid.cpu().numpy()


def _compare(ledger: Ledger, scores: Array, vertices: Array, valid: Array, table: Array | None, rows: list[int]) -> None:
    k = vertices.shape[1]
    reached = np.where(valid, np.einsum("bkd,bd->bk", vertices, scores), -np.inf)
    noise = 2 * rounding(scores, float(np.abs(vertices).max(initial=1)))
    with np.errstate(invalid="ignore"):
        falls = np.nan_to_num(np.diff(reached, axis=-1), nan=0.0).max(-1, initial=0.0)
    ledger.compare("sorted", np.maximum(falls - noise, 0), 0.0, "topk's order", rows)
    distinct = [len(np.unique(v[ok], axis=0)) == ok.sum() for v, ok in zip(vertices, valid, strict=True)]
    ledger.require("distinct", distinct, "topk returned a structure twice", rows)
    if table is None:
        return
    count = min(k, len(table))
    ledger.require(
        "valid",
        (valid == (np.arange(k) < count)).all(-1),
        f"topk's `valid` is not true for exactly the first {count} of {k} ({len(table)} structures exist)",
        rows,
    )
    found = [(enumeration.index_of(v[ok], table) >= 0).all() for v, ok in zip(vertices, valid, strict=True)]
    ledger.require("membership", found, "topk returned a point that is not a structure", rows)
    wanted = enumeration.best_totals(table, scores, k)
    lost = np.nan_to_num(np.abs(reached[:, :count] - wanted), nan=np.inf).max(-1)
    ledger.compare("enumeration", np.maximum(lost - noise, 0), 0.0, "the totals of topk's structures", rows)


def _shown(structure: Array) -> str:
    """A structure [D] in a message: whole if it is short, else the coordinates where it is not 0."""
    if len(structure) <= 12:
        return "[" + ", ".join(f"{value:.4g}" for value in structure) + "]"
    return f"the structure that is not 0 at {np.flatnonzero(structure).tolist()}"
