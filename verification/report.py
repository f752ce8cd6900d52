"""What `verify` found: one result a check, with the worst and median error against every reference."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Comparison:
    """Errors against one reference, over all rows that were compared.

    Attributes:
        reference: what was compared with, e.g. "cvxpy over vertices".
        worst, median: absolute errors, in the units of the quantity; 0 and 1 for what is true or false.
        tolerance: the largest error that passes.
        rows: how many rows were compared.
    """

    reference: str
    worst: float
    median: float
    tolerance: float
    rows: int


@dataclass(frozen=True)
class Result:
    """The outcome of one check.

    Attributes:
        check: its name, with the solver in brackets where it has one.
        status: "passed" only if something was compared and every comparison held; what could not run is "skipped".
        message: why it failed or was skipped, one line.
        code: the smallest failing case that was found, as code to paste; "" if it did not fail.
        comparisons: errors by reference.
        redraws: rows left out because a derivative does not exist there, or too near to a place where it does not.
        notes: what part of the check could not run, and which method to write for it.
        seconds: how long it took.
    """

    check: str
    status: Status
    message: str = ""
    code: str = ""
    comparisons: tuple[Comparison, ...] = ()
    redraws: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class VerificationError(AssertionError):
    """Raised by `Report.raise_if_failed`; its text is the failing part of the report."""


@dataclass(frozen=True)
class Report:
    """The results of `verify`, in the order in which the checks ran. `print(report)` shows a table.

    Attributes:
        polytope: its repr.
        results: one a check.
        versions: of the packages that matter, "" where absent.
        settings: batch, seed, dtype, device.
    """

    polytope: str
    results: tuple[Result, ...]
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def with_status(self, status: Status) -> list[Result]:
        """The results that have it."""
        return [result for result in self.results if result.status == status]

    @property
    def failed(self) -> list[Result]:
        """The results that failed."""
        return self.with_status("failed")

    @property
    def ok(self) -> bool:
        """Whether nothing failed and something passed."""
        return not self.failed and bool(self.with_status("passed"))

    def raise_if_failed(self) -> "Report":
        """Returns the report if `ok`.

        Raises:
            VerificationError: a check failed, or none could run.
        """
        if not self.ok:
            reason = _failures(self.failed) if self.failed else "no check could run, so nothing is verified"
            raise VerificationError(f"{self.polytope}: {reason}\n{self}" if not self.failed else f"{self.polytope}\n{reason}")
        return self

    def to_json(self) -> str:
        """The whole report as JSON; a number that is not finite is a string."""
        return json.dumps(_plain(asdict(self) | {"ok": self.ok}), indent=1)

    def __str__(self) -> str:
        count = {status: len(self.with_status(status)) for status in ("passed", "failed", "skipped")}
        head = f"{self.polytope}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped"
        used = ", ".join(f"{name} {value}" for name, value in (self.settings | self.versions).items())
        lines = [head, used, "", *_table(self.results)]
        notes: dict[str, list[str]] = {}
        for result in self.results:
            for note in (*result.notes, _reason(result)):
                notes.setdefault(note, []).append(result.check)
        notes.pop("", None)
        if notes:
            lines += ["", *(f"{note}\n    {', '.join(checks)}" for note, checks in notes.items())]
        if self.failed:
            lines += ["", _failures(self.failed)]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _reason(result: Result) -> str:
    return f"skipped, {result.message}" if result.status == "skipped" else ""


def _failures(failed: list[Result]) -> str:
    return "\n\n".join(
        f"FAILED {result.check}: {result.message}" + (f"\n{_indent(result.code)}" if result.code else "") for result in failed
    )


def _indent(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())


def _table(results: tuple[Result, ...]) -> list[str]:
    rows: list[tuple[str, ...]] = [("check", "status", "against", "worst", "median", "tolerance", "rows", "redraws")]
    for result in results:
        first = (result.check, result.status)
        if not result.comparisons:
            rows.append((*first, "", "", "", "", "", ""))
        for place, found in enumerate(result.comparisons):
            if found.tolerance:
                errors = (f"{found.worst:.1e}", f"{found.median:.1e}", f"{found.tolerance:.0e}", str(found.rows))
            else:
                errors = ("holds" if found.worst == 0 else "fails", "", "", str(found.rows))
            redraws = str(result.redraws) if place == 0 and result.redraws else ""
            rows.append((*(first if place == 0 else ("", "")), found.reference, *errors, redraws))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
