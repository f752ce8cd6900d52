"""`verify`: every check that a polytope's methods allow, one report."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..layers.solvers import ActiveSet, PairwiseFrankWolfe, Solver, SortedDecomposition
from ..oracles import Polytope
from . import device_checks, gradient_checks, layer_checks, method_checks, oracle_checks
from .broken import Broken, in_words
from .check import Check, Skip
from .ledger import Ledger
from .report import Report, Result
from .score_kinds import Sample, draw, given
from .shrink import reproduction, smallest_case
from .subject import Subject

# Slow references: left out by `skip=SLOW` where hundreds of polytopes are verified.
SLOW = ("by cvxpy",)
_PACKAGES = ("sparsemarg", "torch", "numpy", "scipy", "cvxpy", "cvxpylayers", "diffcp")


def verify(
    polytope: Polytope,
    *,
    scores: Tensor | None = None,
    batch: int = 4,
    seed: int = 0,
    solvers: Sequence[Solver] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
    skip: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
) -> Report:
    """Cross-checks a polytope, and every operator on it, against references that share no code with the library.

    Args:
        polytope: anything with `dim` and `maximize`. More methods mean more checks; a check that needs a method which is absent
            is reported as skipped, with the method to write.
        scores: [N, D] to check with, instead of the kinds of `score_kinds.KINDS`; derivatives are then taken at those of them
            that are far from a kink.
        batch: rows of each kind.
        seed: of the random scores.
        solvers: of SparseMAP; by default every solver that ships.
        device, dtype: of the scores that the layers are given. float32 has wider tolerances.
        skip, only: names of checks, or parts of names, to leave out, or to run alone; one or several.

    Returns:
        A report. Nothing that the polytope does wrong raises: it is a line in the report.

    Raises:
        ValueError: `polytope` is a class or has no `maximize`, scores of another shape, a batch below 1, an unknown
            dtype, or no check of that name.

    >>> from sparsemarg.oracles import Budget
    >>> verify(Budget(5, 2), only=["topk"]).ok
    True
    """
    subject = _subject(polytope, torch.device(device), dtype)
    if batch < 1:
        raise ValueError(f"verify: batch must be at least 1, not {batch}")
    checks = [check for check in checks_for(subject, solvers) if _wanted(check.name, skip, only)]
    if not checks:
        names = ", ".join(check.name for check in checks_for(subject, solvers))
        raise ValueError(f"verify: skip={skip!r} and only={only!r} leave no check; their names are: {names}")
    try:
        sample = _sample(subject, scores, batch, seed)
        results = tuple(_run(check, subject, sample) for check in checks)
    except Broken as error:
        name = "dim" if error.method == "dim" else "maximize: contract"
        results = (Result(name, "failed", error.message, reproduction(subject, "maximize: contract", None)),)
    settings = {"batch": str(batch), "seed": str(seed), "dtype": str(dtype), "device": str(device)}
    return Report(in_words(polytope), results, versions(), settings)


def checks_for(subject: Subject, solvers: Sequence[Solver] | None = None) -> list[Check]:
    """All checks, in the order in which they run: what later ones rest on comes first."""
    able = tuple(DEFAULT_SOLVERS) if solvers is None else tuple(solvers)
    labelled = _labels(able)
    found: list[Check] = [
        oracle_checks.Contract(),
        oracle_checks.Deterministic(),
        oracle_checks.Optimal(),
        oracle_checks.Vertices(),
        oracle_checks.HalfspacesMatch(),
        oracle_checks.TopK(),
        method_checks.Project(),
        method_checks.Decompose(),
        method_checks.Gibbs(),
        device_checks.AnotherDevice(),
        layer_checks.TopKSparsemax(),
        gradient_checks.ProjectJacobian(),
        gradient_checks.MarginalsJacobian(),
        layer_checks.SolversAgree(labelled),
    ]
    for label, solver in labelled:
        found += [
            layer_checks.Mean(solver, label),
            layer_checks.SupportIsValid(solver, label),
            layer_checks.Certificate(solver, label),
            layer_checks.SameBits(solver, label),
            layer_checks.SinglePrecision(solver, label),
            gradient_checks.MeanJacobian(solver, label),
            gradient_checks.ExpectationGradient(solver, label),
            layer_checks.MeanByCvxpy(solver, label),
            gradient_checks.JacobianByCvxpylayers(solver, label),
            gradient_checks.GradientByCvxpylayers(solver, label),
        ]
    return found


DEFAULT_SOLVERS: tuple[Solver, ...] = (ActiveSet(), PairwiseFrankWolfe(), SortedDecomposition())


@dataclass(frozen=True)
class PolytopeCheck:
    """A polytope and the name of a check: one test of `parametrize_with_checks`. Calling it runs the check."""

    polytope: Polytope
    check: str
    arguments: dict[str, Any]

    def __call__(self) -> Result:
        """Runs the check alone.

        Raises:
            VerificationError: it failed.
            pytest.skip.Exception: it cannot run; the reason names the method to write.
        """
        report = verify(self.polytope, only=[f"={self.check}"], **self.arguments)
        (result,) = report.results
        if result.status == "skipped":
            import pytest

            pytest.skip(result.message)
        report.raise_if_failed()
        return result

    def __repr__(self) -> str:
        return f"{self.polytope!r}-{self.check}"


def parametrize_with_checks(polytopes: Sequence[Polytope], **arguments: Any) -> Callable[[Any], Any]:
    """A pytest decorator: the test runs once for each polytope and check, each with its own id.

        @parametrize_with_checks([MyPolytope(5)])
        def test_my_polytope(check):
            check()

    Args:
        polytopes: instances.
        arguments: passed on to `verify`: batch, seed, solvers, device, dtype, skip, only.
    """
    import pytest

    skip, only = arguments.pop("skip", ()), arguments.pop("only", ())
    cases = []
    for polytope in polytopes:
        subject = _subject(polytope, torch.device("cpu"), torch.float64)
        for check in checks_for(subject, arguments.get("solvers")):
            if _wanted(check.name, skip, only):
                case = PolytopeCheck(polytope, check.name, arguments)
                cases.append(pytest.param(case, id=repr(case)))
    return pytest.mark.parametrize("check", cases)


def versions() -> dict[str, str]:
    """Of the packages that results depend on; "absent" where one is not installed."""
    return {package: _version(package) for package in _PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _subject(polytope: Polytope, device: torch.device, dtype: torch.dtype) -> Subject:
    if isinstance(polytope, type):
        raise ValueError(f"verify needs an instance, not the class {polytope.__name__}: write {polytope.__name__}(...)")
    if not callable(getattr(polytope, "maximize", None)):
        name = type(polytope).__name__
        raise ValueError(f"{name} has no method maximize(scores [B, D]) -> structures [B, D], so nothing can be verified")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"verify: dtype must be torch.float64 or torch.float32, not {dtype}")
    return Subject(polytope, device, dtype)


def _sample(subject: Subject, scores: Tensor | None, batch: int, seed: int) -> Sample:
    if scores is not None:
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] != subject.dim or len(scores) == 0:
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"verify: scores must be a tensor [N, {subject.dim}] with N >= 1, not {shape}")
        if not scores.isfinite().all():
            raise ValueError("verify: scores must be finite")
        return given(scores.to(subject.dtype))
    normal = np.random.default_rng(seed).standard_normal((max(8, batch), subject.dim))
    tiny = subject.regularized is None
    return draw(subject.dim, torch.from_numpy(subject.best(normal)), batch, seed, subject.dtype, tiny)


def _run(check: Check, subject: Subject, sample: Sample) -> Result:
    started = time.perf_counter()
    ledger = Ledger()
    status, message, code = "passed", "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of references; what they say is in their status
        try:
            check.run(subject, sample, ledger)
            if ledger.failures:
                status, message = "failed", ledger.failures[0][1]
            elif not ledger.comparisons:
                status, message = "skipped", "; ".join(ledger.notes) or "there was nothing to compare"
        except Skip as error:
            # What was compared before it stopped is kept, but a check that did not finish has not passed.
            status, message = ("failed", ledger.failures[0][1]) if ledger.failures else ("skipped", str(error))
        except Broken as error:
            status, message = "failed", error.message
        if status == "failed":
            code = smallest_case(check, subject, sample, ledger)
    seconds = time.perf_counter() - started
    return Result(check.name, status, message, code, ledger.comparisons, ledger.redraws, tuple(ledger.notes), seconds)  # pyright: ignore[reportArgumentType]


def _wanted(name: str, skip: str | Sequence[str], only: str | Sequence[str]) -> bool:
    """Names match by parts; "=name" is the whole name. A single one may stand alone."""
    skip, only = ([given] if isinstance(given, str) else given for given in (skip, only))

    def matches(pattern: str) -> bool:
        return name == pattern[1:] if pattern.startswith("=") else pattern in name

    return not any(map(matches, skip)) and (not only or any(map(matches, only)))


def _labels(solvers: Sequence[Solver]) -> tuple[tuple[str, Solver], ...]:
    """Short names: the class where that is enough."""
    classes = [type(solver).__name__ for solver in solvers]
    return tuple(
        (name if classes.count(name) == 1 else repr(solver), solver) for name, solver in zip(classes, solvers, strict=True)
    )
