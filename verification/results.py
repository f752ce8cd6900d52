"""The polytopes that ship, and the table of how well each is verified."""

import datetime
from collections.abc import Sequence

import torch
from torch import Tensor

from ..oracles import BernoulliCube, Budget, Explicit, Polytope, Product, Simplex
from .report import Report


class RingRuns(Polytope):
    """Two neighbours on a ring of six: a user's polytope, with `dim` and `maximize` and nothing else."""

    dim = 6

    def __repr__(self) -> str:
        return "RingRuns()"

    def maximize(self, scores: Tensor) -> Tensor:
        """The best of six runs."""
        first = torch.nn.functional.one_hot((scores + scores.roll(-1, dims=-1)).argmax(-1), self.dim)
        return (first + first.roll(1, dims=-1)).to(scores)


def _points(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


SHIPPED: tuple[Polytope, ...] = (
    Simplex(5),
    Simplex(1),
    BernoulliCube(6),
    BernoulliCube(1),
    Budget(6, 3),
    Budget(4, 0),
    Budget(5, 5),
    Budget(6, 3, exactly=True),
    Budget(4, 4, exactly=True),
    Explicit(_points(9, 4)),
    Product(Simplex(3), Budget(4, 2)),
    Product(RingRuns(), BernoulliCube(2)),
    RingRuns(),
)


def as_markdown(reports: Sequence[Report]) -> str:
    """The worst and median error of every pair (polytope, solver) against every reference that gives numbers.

    What is true or false (membership, order, determinism) is not a number and only counted in the first table.
    """
    if not reports:
        raise ValueError("there is no report to write")
    used = ", ".join(f"{name} {version}" for name, version in reports[0].versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in reports[0].settings.items())
    lines = [
        "# Verification results",
        "",
        "Written by `sparsemarg verify --all --write verification/RESULTS.md`; do not edit.",
        "",
        f"{datetime.date.today().isoformat()}. {used}. {settings}.",
        "",
        "| polytope | passed | failed | skipped |",
        "|---|---|---|---|",
    ]
    for report in reports:
        passed, failed, skipped = (len(report.with_status(status)) for status in ("passed", "failed", "skipped"))
        lines.append(f"| `{report.polytope}` | {passed} | {failed} | {skipped} |")
    lines += [
        "",
        "Errors are absolute. Redraws are rows left out because a derivative does not exist there, or too near to such a",
        "place. Tolerances are those of the library's promises, not of what was measured.",
        "",
        "| polytope | check | against | worst | median | tolerance | rows | redraws |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        for result in report.results:
            for found in result.comparisons:
                if found.tolerance:
                    numbers = (
                        f"{found.worst:.1e} | {found.median:.1e} | {found.tolerance:.0e} | {found.rows} | {result.redraws}"
                    )
                    lines.append(f"| `{report.polytope}` | {result.check} | {found.reference} | {numbers} |")
    skipped = {(report.polytope, result.message) for report in reports for result in report.with_status("skipped")}
    lines += ["", "Skipped, by polytope:", ""]
    lines += [f"- `{polytope}`: {message}" for polytope, message in sorted(skipped)]
    return "\n".join([*lines, ""])
