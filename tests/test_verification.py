"""`verify`: everything that ships passes; bad polytopes give a line; reports, the decorator, the command and `model_check`."""

import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import POLYTOPES, SOLVERS, Ring, enumerated, projection, scores_for
from sparsemarg import oracles
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, SortedDecomposition
from sparsemarg.oracles import (
    Budget,
    Explicit,
    Halfspaces,
    Implies,
    Knapsack,
    LinearChain,
    Permutahedron,
    Polytope,
    Product,
    ShortestPath,
    Simplex,
    SpanningTree,
)
from sparsemarg.verification import VerificationError, parametrize_with_checks, verify
from sparsemarg.verification.command import main
from sparsemarg.verification.cvxpy_references import DifferentiableProgram, QuadraticProgram
from sparsemarg.verification.enumeration import projection as reference_projection
from sparsemarg.verification.enumeration import sparsemax as reference_sparsemax
from sparsemarg.verification.kkt import face_projector, margin, sparsemax_jacobian, weights, weights_jacobian
from sparsemarg.verification.results import SHIPPED
from sparsemarg.verification.shrink import as_code
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:cvxpylayers")

# The shipped polytopes, once through the decorator that users have: one id a check.
QUICK = [POLYTOPES["simplex"], POLYTOPES["product of an opaque part"]]


@parametrize_with_checks(QUICK, batch=2, solvers=[ActiveSet(), SortedDecomposition()], skip=["by cvxpy"])
def test_each_check(check) -> None:
    check()


@pytest.mark.parametrize("name", [*POLYTOPES])
def test_everything_that_ships_passes(name: str) -> None:
    report = verify(POLYTOPES[name], batch=2, solvers=[ActiveSet(), SortedDecomposition()], skip=["by cvxpy"])
    assert report.ok, str(report)


# Frank-Wolfe walks for seconds where scores are tiny.
@pytest.mark.parametrize("name", [name if name == "bit" else pytest.param(name, marks=pytest.mark.slow) for name in POLYTOPES])
def test_everything_that_ships_passes_with_frank_wolfe(name: str) -> None:
    report = verify(POLYTOPES[name], batch=1, solvers=[PairwiseFrankWolfe(), ActiveSet()], skip=["by cvxpy"])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "name", [name if name == "budget" else pytest.param(name, marks=pytest.mark.slow) for name in POLYTOPES]
)
def test_everything_that_ships_agrees_with_cvxpy(name: str) -> None:
    report = verify(POLYTOPES[name], solvers=list(SOLVERS.values()), only=["by cvxpy"])
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["simplex", "cube", "budget", "exactly 3", "explicit", "ring"])
def test_float32_passes(name: str) -> None:
    report = verify(POLYTOPES[name], batch=2, dtype=torch.float32, solvers=[ActiveSet()], skip=["by cvxpy"])
    assert report.ok, str(report)


@pytest.mark.slow
def test_dimension_12_with_500_vertices_takes_under_30_seconds() -> None:
    bits = torch.rand(4000, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    started = time.perf_counter()
    report = verify(Explicit(bits.double().unique(dim=0)[:500]))
    seconds = time.perf_counter() - started
    assert report.ok, str(report)
    assert seconds < 30


def test_what_is_missing_is_skipped_with_the_method_to_write() -> None:
    report = verify(Ring(), batch=1, skip=["by cvxpy", "FrankWolfe"])
    assert report.ok
    reasons = {result.check: result.message for result in report.with_status("skipped")}
    for method, check in [("vertices",) * 2, ("halfspaces",) * 2, ("project",) * 2, ("decompose",) * 2, ("gibbs",) * 2]:
        assert reasons[check].startswith(f"write Ring.{method} (sparsemarg.oracles.Supports")
    assert "write Ring.project" in reasons["mean [SortedDecomposition]"]
    assert "Ring has no topk" in str(report)


class Opaque(Polytope):
    """Not 0/1, and only an oracle: nothing can be enumerated."""

    dim = 3
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def __repr__(self) -> str:
        return "Opaque()"

    def maximize(self, scores: Tensor) -> Tensor:
        table = self.table.to(scores)
        return table[(scores @ table.T).argmax(-1)]


def test_only_an_oracle_and_no_bits() -> None:
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    report = verify(Opaque(), scores=scores, solvers=[ActiveSet(), PairwiseFrankWolfe()])
    assert report.ok, str(report)
    passed = {result.check for result in report.with_status("passed")}
    wanted = {"solvers agree", "certificate [ActiveSet]", "mean: Jacobian [ActiveSet]", "expectation: gradient [ActiveSet]"}
    assert wanted <= passed
    assert "the structures are not 0/1 vectors, so they cannot be found by trying; write Opaque.vertices" in str(report)


class Raises(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        raise KeyError("weights")


class Tuple(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores), 0  # pyright: ignore


class Infinite(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores) / 0


class NoHalfspaces(Ring):
    def halfspaces(self) -> Halfspaces:
        return None  # pyright: ignore


class InfeasibleHalfspaces(Ring):
    def halfspaces(self) -> Halfspaces:
        one, no = torch.ones(1, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return Halfspaces(one, no - 1, one, no + 2)


class ProjectNeedsMore(Ring):
    def project(self, scores: Tensor, temperature: float) -> Tensor:
        return scores


@pytest.mark.parametrize(
    ("polytope", "check", "message"),
    [
        (
            Raises(),
            "maximize: contract",
            "Raises.maximize raised KeyError: 'weights' when called with (float64 [8, 6]); it should",
        ),
        (Tuple(), "maximize: contract", "Tuple.maximize returned tuple; it should take scores [B, D] and return one structure"),
        (Infinite(), "maximize: contract", "Infinite.maximize returned a value that is not finite; it should"),
        (
            NoHalfspaces(),
            "halfspaces",
            "NoHalfspaces.halfspaces returned NoneType; it should take nothing and return a Halfspaces",
        ),
        (InfeasibleHalfspaces(), "halfspaces", "InfeasibleHalfspaces.halfspaces describes a set that is infeasible (a linear"),
        (
            InfeasibleHalfspaces(),
            "mean by cvxpy [ActiveSet]",
            "describes a set over which the projection is infeasible; it should",
        ),
        (ProjectNeedsMore(), "project", "missing 1 required positional argument: 'temperature' when called with (float64 ["),
    ],
)
def test_bad_polytopes_give_a_line(polytope: Polytope, check: str, message: str) -> None:
    report = verify(polytope, batch=1, solvers=[ActiveSet()], skip=["Jacobian by", "gradient by"])
    (found,) = [result for result in report.failed if result.check == check]
    assert message in found.message
    assert "\n" not in found.message
    with pytest.raises(VerificationError, match=re.escape(message)):
        report.raise_if_failed()


class NotFitted(Ring):
    @property
    def project(self) -> None:
        raise RuntimeError("not fitted yet")


class NoDimension(Ring):
    @property
    def dim(self) -> int:  # pyright: ignore
        raise KeyError("size")


class Unprintable(Ring):
    def __repr__(self) -> str:
        raise RuntimeError("no name")


def test_what_raises_when_it_is_looked_up_is_a_line() -> None:
    report = verify(NotFitted(), batch=1, only=["project"], skip="Jacobian")
    assert "NotFitted raised RuntimeError: not fitted yet when it was asked" in report.failed[0].message
    assert "NoDimension.dim raised KeyError: 'size'; it should be an int" in verify(NoDimension()).failed[0].message
    report = verify(Unprintable(), batch=1, only="maximize")
    assert report.ok
    assert str(report).startswith("<Unprintable, whose __repr__ raised RuntimeError: no name>")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verify(Ring), "verify needs an instance, not the class Ring: write Ring(...)"),  # pyright: ignore
        (lambda: verify(object()), "object has no method maximize(scores [B, D])"),  # pyright: ignore
        (lambda: verify(Ring(), batch=0), "batch must be at least 1, not 0"),
        (lambda: verify(Ring(), dtype=torch.float16), "dtype must be torch.float64 or torch.float32"),
        (lambda: verify(Ring(), only=["nothing"]), "leave no check; their names are: maximize: contract, "),
        (lambda: verify(Ring(), scores=torch.zeros(2, 5)), "scores must be a tensor [N, 6] with N >= 1, not [2, 5]"),
        (lambda: verify(Ring(), scores=torch.full((1, 6), torch.nan)), "scores must be finite"),
    ],
)
def test_misuse(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_missing_cvxpy_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    report = verify(Budget(4, 2), batch=1, solvers=[ActiveSet()])
    assert report.ok
    reasons = {result.check: result.message for result in report.with_status("skipped")}
    for check in ("mean by cvxpy", "mean: Jacobian by cvxpylayers", "expectation: gradient by cvxpylayers"):
        assert reasons[f"{check} [ActiveSet]"] == "cvxpy is not installed; run pip install 'sparsemarg[verification]'"


def test_enumeration_checks_do_not_import_cvxpy() -> None:
    code = """
        import sys
        from sparsemarg.oracles import Budget
        from sparsemarg.verification import verify
        assert verify(Budget(4, 2), batch=1, skip=["by cvxpy"]).ok
        print({"cvxpy", "cvxpylayers"} & set(sys.modules))
        """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"


class SecondBest(Polytope):
    """Wrong where the first coordinate wins by much."""

    dim = 3

    def __repr__(self) -> str:
        return "SecondBest()"

    def maximize(self, scores: Tensor) -> Tensor:
        wrong = scores[:, 0] > scores[:, 1:].amax(-1) + 2.5
        best = torch.where(wrong, 1 + scores[:, 1:].argmax(-1), scores.argmax(-1))
        return torch.nn.functional.one_hot(best, 3).to(scores)


def test_the_failing_case_is_small_and_runs() -> None:
    report = verify(SecondBest(), only=["maximize: optimal"])
    (result,) = report.failed
    assert re.search(r"scores = torch.tensor\(\[\[\d\.0, 0\.0, 0\.0\]\], dtype=torch.float64\)", result.code), result.code
    printed = subprocess.run(
        [sys.executable, "-c", result.code], capture_output=True, text=True, check=False, cwd=str(__file__).rsplit("/", 1)[0]
    )
    assert "1 failed" in printed.stdout, printed.stderr


class Looks(Ring):
    """Reads whether there is anything to do."""

    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores if bool((scores != 0).any()) else scores.abs())


def test_who_makes_the_host_wait_is_told_and_nobody_else() -> None:
    check = ["on another device"]
    assert "would wait" not in str(verify(Ring(), only=check))
    assert "would wait for it in each call of maximize, 1 times for _local_scalar_dense" in str(verify(Looks(), only=check))


class Least(Ring):
    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(-scores)


def test_a_wrong_answer_is_shown_beside_a_better_one() -> None:
    found = str(verify(Least(), only=["maximize: optimal"]))
    assert re.search(r"it returned \[[01, ]*\], and \[[01, ]*\], which it returned for other scores, has more", found)
    assert "does it minimise?" in found
    scores = torch.tensor([[3.0, -0.0, -1.0]], dtype=torch.float64)
    found = str(verify(SecondBest(), scores=scores, only=["maximize: optimal"]))
    assert "it returned [0, 1, 0], and [1, 0, 0] is best" in found
    assert "minimise" not in found
    assert "-0.0" not in found


def test_report_round_trip() -> None:
    report = verify(Budget(4, 2), only=["topk", "project: Jacobian"])
    assert report.raise_if_failed() is report
    content = json.loads(report.to_json())
    assert content["ok"]
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {result["check"] for result in content["results"]} == {"topk", "topk_sparsemax", "project: Jacobian"}


def test_redraws_are_counted_and_kinks_never_pass() -> None:
    report = verify(Simplex(4), scores=torch.zeros(3, 4).index_fill(1, torch.tensor([0]), 1.0), only=["Jacobian [ActiveSet]"])
    (result,) = report.results
    assert result.status == "skipped"
    assert "none of 3 scores is far enough from a kink" in result.message
    assert result.redraws == 3
    with pytest.raises(VerificationError, match="nothing is verified"):
        report.raise_if_failed()


# The references against one another: no code of the library is involved.


@pytest.mark.parametrize("name", ["simplex", "budget", "explicit"])
def test_references_agree(name: str) -> None:
    polytope = POLYTOPES[name]
    vertices = enumerated(polytope)
    scores = scores_for(polytope, "normal", batch=3)
    mean, known = reference_projection(vertices.numpy(), scores.numpy())
    assert known.all()
    np.testing.assert_allclose(mean, projection(vertices, scores).numpy(), atol=1e-10)
    solved, status = QuadraticProgram(vertices.numpy()).solve(scores.numpy())
    assert set(status) == {"optimal"}
    np.testing.assert_allclose(solved, mean, atol=1e-6)
    reference = DifferentiableProgram(vertices.numpy())
    found, jacobians = reference.mean_and_jacobian(scores.numpy())
    np.testing.assert_allclose(found, mean, atol=1e-6)
    tangents = scores.flip(0).numpy()
    wanted = np.einsum("bij,bj->bi", jacobians, tangents)
    np.testing.assert_allclose(reference.jvp(scores.numpy(), tangents), wanted, atol=1e-7)
    _, products = reference.mean_and_vjps(scores.numpy(), tangents)
    np.testing.assert_allclose(products[[0, 1, 2], [0, 1, 2]], wanted, atol=1e-6)  # a projector is symmetric
    for row, target in enumerate(scores.numpy()):
        strict = margin(vertices.numpy(), target, mean[row])
        assert strict.is_at_least(1e-3)
        np.testing.assert_allclose(face_projector(vertices.numpy()[strict.face]), jacobians[row], atol=1e-5)


def test_kkt_of_the_simplex_is_sparsemax() -> None:
    scores = np.array([0.5, 0.4, 0.3, -2.0])
    probs = reference_sparsemax(scores[None])[0]
    support = np.flatnonzero(probs)
    atoms = np.eye(4)[support]
    np.testing.assert_allclose(weights(atoms, scores), probs[support], atol=1e-14)
    np.testing.assert_allclose(weights_jacobian(atoms), sparsemax_jacobian(probs)[support], atol=1e-14)


# The command line.


def test_command(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    quick = ["--only", "topk", "--batch", "1"]
    assert main(["sparsemarg.oracles:Budget", "--dim", "4", "--budget=2", "--exactly", *quick]) == 0
    assert "Budget(dim=4, budget=2, exactly=True): 2 passed, 0 failed" in capsys.readouterr().out
    written, raw = tmp_path / "results.md", tmp_path / "results.json"
    assert main(["--all", *quick, "--write", str(written), "--json", str(raw)]) == 0
    assert "33 of 33 polytopes passed" in capsys.readouterr().out
    assert "| `Simplex(dim=5)` | 2 | 0 | 0 |" in written.read_text()
    assert len(json.loads(raw.read_text())) == 33
    assert main(["test_verification:SecondBest", "--only", "maximize: optimal"]) == 1
    assert "FAILED maximize: optimal" in capsys.readouterr().out
    assert main(["test_verification:Window", "--n", "6", "--w", "2", "--s=1", *quick]) == 0  # not --write, --skip or --seed


class Window(Polytope):
    """Runs of w ones among n."""

    def __init__(self, n: int, w: int, s: int = 1) -> None:
        self.dim, self.runs = n, torch.eye(n).unfold(0, w, s).sum(-1)

    def maximize(self, scores: Tensor) -> Tensor:
        runs = self.runs.to(scores)
        return runs[(scores @ runs.T).argmax(-1)]


def test_polytopes_as_code() -> None:
    """What an inherited `__repr__` says is no code, unless the constructor takes the dimension."""
    assert as_code(Window(6, 2)) == "Window(...)"
    assert as_code(Simplex(3)) == "Simplex(dim=3)"
    assert as_code(SecondBest()) == "SecondBest()"
    assert as_code(Pair()) == "Pair()"
    assert as_code(Budget(4, 2)) == "Budget(dim=4, budget=2, exactly=False)"


@pytest.mark.parametrize(
    "polytope",
    [
        SpanningTree([(0, 1), (1, 2), (0, 2)], nodes=3),
        ShortestPath([(0, 1), (1, 3), (0, 2), (2, 3)], target=3),
        Explicit(torch.eye(3), regularized=torch.tensor([True, False, True])),
        Explicit(torch.eye(3), regularized=slice(0, 2)),
        Product(Permutahedron([1.0, 2.0]), Knapsack([1, 2, 3], 4), Implies(3, negated=[True, False, False])),
        LinearChain(2, 3, regularize_transitions=False),
    ],
    ids=repr,
)
def test_polytopes_as_code_are_made_by_it(polytope: Polytope) -> None:
    made = eval(as_code(polytope), vars(oracles) | {"torch": torch})
    assert torch.equal(made.vertices(), polytope.vertices())
    assert repr(made) == repr(polytope)


class Pair(Polytope):
    """One of two."""

    dim = 2

    def maximize(self, scores: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(scores.argmax(-1), 2).to(scores)


def test_a_module_that_is_no_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written.py").write_text("def maximize(:\n")
    monkeypatch.chdir(tmp_path)
    assert main(["half_written:Mine"]) == 2
    assert "cannot import 'half_written': invalid syntax (half_written.py, line 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a polytope as module:Class, or pass --all"),
        (["Budget"], "a polytope is named module:Class"),
        (["nowhere:Budget"], "cannot import 'nowhere'"),
        (["sparsemarg.oracles:Badget"], "has no 'Badget'"),
        (["sparsemarg.oracles:Budget", "--dim", "4"], "cannot make Budget(dim=4)"),
        (["sparsemarg.oracles:Budget", "--dim", "4", "--budget", "2", "--only", "none"], "leave no check"),
        (["--all", "sparsemarg.oracles:Budget"], "--all takes no polytope"),
        (["sparsemarg.oracles:Budget", "--write", "x.md"], "--write needs --all"),
    ],
)
def test_command_misused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_every_polytope_of_the_library_is_among_those_that_ship() -> None:
    classes = {value for value in vars(oracles).values() if isinstance(value, type) and issubclass(value, Polytope)}
    assert {Polytope, *map(type, SHIPPED)} >= classes
    names = [repr(polytope) for polytope in SHIPPED]
    assert len(set(names)) == len(names)


def test_the_command_is_on_the_command_line() -> None:
    from sparsemarg.experiments.cli import main as command_line

    with pytest.raises(SystemExit) as stop:
        command_line(["verify", "nowhere:Budget"])
    assert stop.value.code == 2


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparsemarg.oracles:Simplex", "--dim", "3", "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "--json takes a file to write to" in captured.err
    assert captured.out == ""
