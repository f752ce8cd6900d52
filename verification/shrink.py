"""The smallest failing case that can be found, as code to paste."""

import time
from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor

from ..oracles import Explicit, Matroid, Polytope, Product, ShortestPath, SpanningTree
from .broken import Broken, in_words
from .check import Check, Skip
from .ledger import Ledger
from .score_kinds import Sample, given
from .subject import Subject

# A search is for the reader's comfort; it must not take longer than the checks.
_SECONDS = 3.0
_SHOWN = 24


def smallest_case(check: Check, subject: Subject, sample: Sample, ledger: Ledger) -> str:
    """Code that reproduces the failure of a check.

    One row of the scores is looked for that fails alone; then its entries are rounded and set to zero as long as it fails.
    """
    deadline = time.perf_counter() + _SECONDS

    def fails(scores: Tensor) -> bool:
        return time.perf_counter() < deadline and _fails(check, subject, scores)

    source = check.source(sample)
    rows = [row for row, _ in ledger.failures if row >= 0]
    scores = _one_row(source, rows, fails)
    if scores is not None:
        scores = _simplify(scores, fails)
    return reproduction(subject, check.name, scores)


def _fails(check: Check, subject: Subject, scores: Tensor) -> bool:
    """Whether the check fails on these scores alone, with a subject that remembers nothing."""
    ledger = Ledger()
    try:
        check.run(Subject(subject.polytope, subject.device, subject.dtype), given(scores.to(subject.dtype)), ledger)
    except Broken:
        return True
    except Skip:
        pass
    return bool(ledger.failures)


def _one_row(scores: Tensor, failed: list[int], fails: Callable[[Tensor], bool]) -> Tensor | None:
    """A row that fails alone, as [1, D]; else as few rows as are found to fail together; None if no scores are to blame."""
    for row in failed[:3]:
        if fails(scores[row : row + 1]):
            return scores[row : row + 1]
    kept = scores
    if not fails(kept):
        return None
    while len(kept) > 1:
        half = len(kept) // 2
        smaller = next((part for part in (kept[:half], kept[half:]) if fails(part)), None)
        if smaller is None:
            break
        kept = smaller
    for row in reversed(range(len(kept))):
        without = torch.cat([kept[:row], kept[row + 1 :]])
        if len(without) and fails(without):
            kept = without
    return kept


def _simplify(scores: Tensor, fails: Callable[[Tensor], bool]) -> Tensor:
    for decimals in (0, 1, 2, 4):
        rounded = scores.round(decimals=decimals)
        if fails(rounded):
            scores = rounded
            break
    for row, place in scores.nonzero().tolist():
        without = scores.clone()
        without[row, place] = 0
        if fails(without):
            scores = without
    return scores


def reproduction(subject: Subject, check: str, scores: Tensor | None) -> str:
    """Code that runs one check on a polytope, with these scores [n, D] if there are any."""
    polytope = subject.polytope
    lines = ["import torch", "from sparsemarg.verification import verify"]
    classes = sorted(_classes(polytope))
    lines += [f"from {module} import {name}" for module, name in classes if module != "__main__"]
    expression = as_code(polytope)
    lines += ["", f"polytope = {f'...  # {in_words(polytope)}' if '...' in expression else expression}"]
    arguments = [f"only=[{'=' + check!r}]"]
    if scores is not None and scores.numel() <= _SHOWN * max(1, scores.shape[1]):
        lines.append(f"scores = torch.tensor({(scores + 0.0).tolist()}, dtype=torch.float64)")  # without -0.0
        arguments.insert(0, "scores=scores")
    if subject.dtype != torch.float64:
        arguments.append(f"dtype={subject.dtype}")
    if "[" in check and check.split("[")[1][:-1] not in ("ActiveSet", "PairwiseFrankWolfe", "SortedDecomposition"):
        arguments.append("solvers=[...]")
    return "\n".join([*lines, f"print(verify(polytope, {', '.join(arguments)}))"])


def _classes(polytope: Polytope) -> set[tuple[str, str]]:
    module = type(polytope).__module__
    public = "sparsemarg.oracles" if module.startswith("sparsemarg.oracles.") else module
    parts = polytope.parts if isinstance(polytope, Product) else ()
    return {(public, type(polytope).__name__)}.union(*(_classes(part) for part in parts))


def as_code(polytope: Polytope) -> str:
    """An expression for the polytope; its repr unless that is known not to be one. "..." in it is for the reader to fill in."""
    if type(polytope) is Explicit:
        table = polytope.vertices()
        partly = "" if polytope.regularized is None else f", regularized={_as_code(polytope.regularized)}"
        return f"Explicit({_as_code(table) if len(table) <= _SHOWN else '...'}{partly})"
    if type(polytope) is Product:
        return f"Product({', '.join(map(as_code, polytope.parts))})"
    if type(polytope) is SpanningTree:
        return f"SpanningTree({list(polytope.edges)}, nodes={polytope.nodes})"
    if type(polytope) is ShortestPath:
        return f"ShortestPath({list(polytope.arcs)}, {polytope.source}, {polytope.target})"
    if type(polytope) is Matroid:
        return f"Matroid({polytope.dim}, ..., bases={polytope.bases})"
    if type(polytope).__repr__ is Polytope.__repr__:  # which does not know what its constructor takes
        taken = [each.name for each in signature(type(polytope)).parameters.values()]
        given = f"dim={polytope.dim}" if taken == ["dim"] else "..." if taken else ""
        return f"{type(polytope).__name__}({given})"
    text = in_words(polytope)
    if not text.startswith("<"):
        return text
    return f"{type(polytope).__name__}({'...' if vars(polytope) else ''})"


def _as_code(given: slice | Tensor) -> str:
    return f"torch.tensor({given.tolist()}, dtype={given.dtype})" if isinstance(given, Tensor) else repr(given)
