"""The polytopes that ship, and the table of how well each is verified."""

import datetime
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..oracles import (
    Arborescence,
    AtLeastOne,
    AtMostOne,
    BernoulliCube,
    Budget,
    ExactlyOne,
    Explicit,
    Implies,
    Knapsack,
    LinearChain,
    Matching,
    Matroid,
    OracleFromSolver,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
)
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


def _partition(sets: Tensor) -> Tensor:
    """At most one of items 0 and 1, and at most two of the others."""
    return (sets[:, :2].sum(-1) <= 1) & (sets[:, 2:].sum(-1) <= 2)


def _best_pair(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The best two neighbours in a row, as somebody's solver returns them."""
    first = int((scores[:-1] + scores[1:]).argmax())
    return np.isin(np.arange(len(scores)), (first, first + 1)).astype(np.float64)


# Small enough that all structures are listed, and that each takes a few seconds at most.
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
    LinearChain(3, 2),
    ShortestPath.grid(2, 3),
    Segmentation(3, labels=2, width=2),
    Knapsack([2, 1, 3, 2], capacity=4),
    ProjectiveTree(3),
    ProjectiveTree(3, single_root=True),
    Arborescence(3),
    Arborescence(3, single_root=True),
    SpanningTree([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]),
    Matroid(5, _partition),
    Matroid(5, _partition, bases=False),
    Matching(3),
    Matching(2, 4),
    Permutahedron([3, 2, 1]),
    ExactlyOne(4, negated=[False, True, False, False]),
    AtMostOne(4),
    AtLeastOne(4),
    Implies(3),
    Product(*[LinearChain(2, 2)] * 2),
    OracleFromSolver(_best_pair, 5),
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
