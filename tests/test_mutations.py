"""Seeded defects: each must be caught, and by the check whose business it is. And no alarm where nothing is wrong."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sparsemarg.layers.refit import refit
from sparsemarg.layers.solvers import ActiveSet, Solver
from sparsemarg.layers.solvers.base import Support
from sparsemarg.layers.solvers.compiled_rows import PackedJacobian
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, Halfspaces, Polytope, Product, Simplex
from sparsemarg.verification import Report, verify
from torch import Tensor


class Wrapped(Polytope):
    """`Budget(5, 2)`, correct and with every method; defects replace one of them."""

    right = Budget(5, 2)
    dim = 5

    def maximize(self, scores):
        return self.right.maximize(scores)

    def topk(self, scores, k):
        return self.right.topk(scores, k)

    def project(self, scores):
        return self.right.project(scores)

    def decompose(self, mean):
        return self.right.decompose(mean)

    def gibbs(self, scores):
        return self.right.gibbs(scores)

    def halfspaces(self):
        return self.right.halfspaces()

    def vertices(self):
        return self.right.vertices()


DEFECTS: list[tuple[type[Polytope], str]] = []


def caught_by(check: str) -> Callable[[type[Polytope]], type[Polytope]]:
    """Registers a defect and the check that is to catch it."""

    def register(defect: type[Polytope]) -> type[Polytope]:
        DEFECTS.append((defect, check))
        return defect

    return register


@caught_by("maximize: optimal")
class AllOfTheTied(Polytope):
    """On ties turns on every tied category."""

    dim = 4

    def maximize(self, scores):
        return (scores == scores.amax(-1, keepdim=True)).to(scores)

    def vertices(self):
        return torch.eye(4, dtype=torch.float64)


@caught_by("maximize: optimal")
class TiesAreWorthless(Wrapped):
    """On ties for the budget's last place takes neither."""

    def maximize(self, scores):
        ordered = scores.sort(dim=-1, descending=True).values
        return (scores > ordered[:, 2:3]).to(scores) * (scores > 0)


@caught_by("maximize: optimal")
class OracleBudgetOneMore(Wrapped):
    def maximize(self, scores):
        return Budget(5, 3).maximize(scores)


@caught_by("maximize: optimal")
class OracleBudgetOneLess(Wrapped):
    def maximize(self, scores):
        return Budget(5, 1).maximize(scores)


@caught_by("maximize: optimal")
class Minimizes(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(-scores)


@caught_by("maximize: optimal")
class MinimizesAlone(Polytope):
    """The same without any other method: found without a list of structures."""

    dim = 6

    def maximize(self, scores):
        return torch.nn.functional.one_hot(scores.argmin(-1), 6).to(scores)


@caught_by("maximize: optimal")
class SinglePrecisionInside(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores.float()).to(scores)


@caught_by("maximize: optimal")
class OracleUsesAbsoluteScores(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores.abs())


@caught_by("maximize: deterministic")
class RandomOnTies(Wrapped):
    generator = torch.Generator().manual_seed(0)

    def maximize(self, scores):
        noise = torch.rand(scores.shape, generator=self.generator, dtype=torch.float64).to(scores)
        return self.right.maximize(scores + 1e-13 * noise)


@caught_by("maximize: deterministic")
class DependsOnTheBatch(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores - (scores.amax() if len(scores) else 0) * 1e-3)


@caught_by("maximize: contract")
class ReturnsBool(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores) > 0


@caught_by("maximize: contract")
class ReturnsOneRow(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores)[0]


@caught_by("maximize: contract")
class OverwritesScores(Wrapped):
    def maximize(self, scores):
        best = self.right.maximize(scores)
        scores.zero_()
        return best


@caught_by("maximize: contract")
class RaisesOnTies(Wrapped):
    def maximize(self, scores):
        if len(scores) and (scores[:, 0] == scores[:, 1]).any():
            raise RuntimeError("a tie\nwith a long explanation")
        return self.right.maximize(scores)


@caught_by("maximize: contract")
class DoubleOnly(Wrapped):
    def maximize(self, scores):
        return self.right.maximize(scores @ torch.eye(5, dtype=torch.float64))


@caught_by("dim")
class DimIsAFloat(Wrapped):
    dim = 5.0  # pyright: ignore


@caught_by("maximize: contract")
class DimIsWrong(Wrapped):
    """Says 4, works on 5."""

    dim = 4

    def maximize(self, scores):
        return self.right.maximize(scores + torch.zeros(5).to(scores))


@caught_by("vertices")
class InfeasibleVertex(Wrapped):
    def vertices(self):
        return torch.cat([self.right.vertices(), torch.ones(1, 5, dtype=torch.float64)])


@caught_by("vertices")
class VertexMissing(Wrapped):
    def vertices(self):
        return self.right.vertices()[:-1]


@caught_by("vertices")
class VertexTwice(Wrapped):
    def vertices(self):
        listed = self.right.vertices()
        return torch.cat([listed, listed[:1]])


@caught_by("vertices")
class VerticesTransposed(Wrapped):
    def vertices(self):
        return self.right.vertices().T


@caught_by("vertices")
class VerticesFloat32(Wrapped):
    def vertices(self):
        return self.right.vertices().float()


@caught_by("halfspaces")
class EqualityForInequality(Wrapped):
    def halfspaces(self):
        return Budget(5, 2, exactly=True).halfspaces()


@caught_by("halfspaces")
class HalfspaceDropped(Wrapped):
    def halfspaces(self):
        half = self.right.halfspaces()
        return replace(half, a_ub=half.a_ub[:-1], b_ub=half.b_ub[:-1])


@caught_by("halfspaces")
class HalfspaceBudgetOneMore(Wrapped):
    def halfspaces(self):
        return Budget(5, 3).halfspaces()


@caught_by("halfspaces")
class HalfspacesInfeasible(Wrapped):
    def halfspaces(self):
        half = self.right.halfspaces()
        return replace(half, a_eq=torch.ones(1, 5, dtype=torch.float64), b_eq=torch.tensor([-1.0], dtype=torch.float64))


@caught_by("halfspaces")
class HalfspacesUnbounded(Wrapped):
    def halfspaces(self):
        half = self.right.halfspaces()
        return Halfspaces(half.a_ub[5:], half.b_ub[5:], half.a_eq, half.b_eq)


@caught_by("halfspaces")
class HalfspacesWrongShape(Wrapped):
    def halfspaces(self):
        half = self.right.halfspaces()
        return replace(half, b_ub=half.b_ub[:, None])


@caught_by("topk")
class TopkUnsorted(Wrapped):
    def topk(self, scores, k):
        vertices, valid = self.right.topk(scores, k)
        return (vertices.flip(1), valid) if k <= 5 else (vertices, valid)


@caught_by("topk")
class TopkDuplicated(Wrapped):
    def topk(self, scores, k):
        vertices, valid = self.right.topk(scores, k)
        return torch.cat([vertices[:, :1], vertices[:, : k - 1]], 1), valid


@caught_by("topk")
class TopkMissingOne(Wrapped):
    """Never the second best."""

    def topk(self, scores, k):
        vertices, valid = self.right.topk(scores, k + 1)
        keep = [0, *range(2, k + 1)]
        return vertices[:, keep], valid[:, keep]


@caught_by("topk")
class TopkAlwaysValid(Wrapped):
    def topk(self, scores, k):
        vertices, valid = self.right.topk(scores, k)
        return vertices, torch.ones_like(valid)


@caught_by("topk")
class TopkWrongSignature(Wrapped):
    def topk(self, scores):  # pyright: ignore
        return self.right.topk(scores, 3)


@caught_by("project")
class WrongThreshold(Wrapped):
    """sum mu = budget + 0.01 where the budget binds."""

    def project(self, scores):
        mean = self.right.project(scores)
        return torch.where((mean.sum(-1, keepdim=True) > 1.99) & (mean < 0.9), mean + 0.002, mean)


@caught_by("project")
class ProjectForgetsTheBudget(Wrapped):
    def project(self, scores):
        return scores.clamp(0, 1)


@caught_by("project")
class ProjectScalesInstead(Wrapped):
    """Feasible, and on the right face, but not the nearest point."""

    def project(self, scores):
        clipped = scores.clamp(0, 1)
        return clipped * (2 / clipped.sum(-1, keepdim=True).clamp(min=2))


@caught_by("project: Jacobian")
class ProjectJacobianScaled(Wrapped):
    def project(self, scores):
        mean = self.right.project(scores)
        return 2 * mean - mean.detach()


@caught_by("project: Jacobian")
class ProjectThresholdDetached(Wrapped):
    """The right value, with the gradient of clipping alone."""

    def project(self, scores):
        mean = self.right.project(scores.detach())
        return mean + torch.where((mean > 0) & (mean < 1), scores - scores.detach(), 0)


@caught_by("decompose")
class ProbabilitiesSumToLess(Wrapped):
    def decompose(self, mean):
        vertices, probs = self.right.decompose(mean)
        return vertices, 0.999 * probs


@caught_by("decompose")
class DecomposesAnotherMean(Wrapped):
    def decompose(self, mean):
        return self.right.decompose(mean.flip(-1))


@caught_by("decompose")
class DecomposesIntoNoStructures(Wrapped):
    """The mean as its own atom."""

    def decompose(self, mean):
        return mean[:, None], torch.ones_like(mean[:, :1])


@caught_by("decompose")
class DecomposesWithAnAtomTwice(Wrapped):
    def decompose(self, mean):
        vertices, probs = self.right.decompose(mean)
        return torch.cat([vertices, vertices], 1), torch.cat([probs, probs], 1) / 2


@caught_by("decompose")
class NegativeProbability(Wrapped):
    """0 + (z1 + z2) - z1 - z2 = 0 added with a small weight."""

    def decompose(self, mean):
        vertices, probs = self.right.decompose(mean)
        square = torch.zeros(len(mean), 4, 5, dtype=mean.dtype)
        square[:, 1, 0] = square[:, 2, 1] = square[:, 3, 0] = square[:, 3, 1] = 1
        weights = torch.tensor([1.0, -1, -1, 1], dtype=mean.dtype).expand(len(mean), 4) * 1e-3
        return torch.cat([vertices, square], 1), torch.cat([probs, weights], 1)


@caught_by("gibbs")
class GibbsOverTheCube(Wrapped):
    def gibbs(self, scores):
        return BernoulliCube(5).gibbs(scores)


class Changed:
    """A distribution with one method replaced."""

    def __init__(self, right, **methods) -> None:
        self.right, self.methods = right, methods

    def __getattr__(self, name):
        return self.methods.get(name) or getattr(self.right, name)


@caught_by("gibbs")
class EntropyInBits(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        return Changed(right, entropy=lambda: right.entropy() / math.log(2))


@caught_by("gibbs")
class SamplesFromAnotherTemperature(Wrapped):
    def gibbs(self, scores):
        return Changed(self.right.gibbs(scores), sample=self.right.gibbs(scores / 2).sample)


@caught_by("gibbs")
class GibbsWithoutEntropy(Wrapped):
    def gibbs(self, scores):
        return object()


@pytest.mark.parametrize(("defect", "check"), DEFECTS, ids=[defect.__name__ for defect, _ in DEFECTS])
def test_defect_of_a_polytope(defect: Callable[[], Polytope], check: str) -> None:
    report = cheap(defect())
    assert check in [result.check for result in report.failed], str(report)
    (result,) = [result for result in report.failed if result.check == check]
    assert "\n" not in result.message
    assert "verify(polytope" in result.code


def cheap(polytope: Polytope, batch: int = 4, seed: int = 0, solver: Solver = ActiveSet()) -> Report:  # noqa: B008 (frozen)
    """`verify` with one solver and without cvxpy."""
    return verify(polytope, batch=batch, seed=seed, solvers=[solver], skip=["by cvxpy"])


class Spoiled(Solver):
    """`ActiveSet` with its answer spoiled."""

    def __init__(self, spoil: Callable[[Support, Tensor], Support], max_iter: int | None = None) -> None:
        self.spoil, self.right = spoil, ActiveSet(max_iter)

    def solve(self, scores: Tensor, polytope: Polytope) -> Support:
        return self.spoil(self.right.solve(scores, polytope), scores)


def claims_success(found: Support, scores: Tensor) -> Support:
    stats = found.stats
    done = replace(stats, gap=torch.zeros_like(stats.gap), converged=torch.ones_like(stats.converged))
    return replace(found, stats=done)


def drops_small_weights(found: Support, scores: Tensor) -> Support:
    probs = torch.where(found.probs < 0.05, 0, found.probs)
    return replace(found, probs=probs / probs.sum(-1, keepdim=True))


def uniform_weights(found: Support, scores: Tensor) -> Support:
    used = (found.probs > 0).double()
    return replace(found, probs=used / used.sum(-1, keepdim=True))


def splits_an_atom(found: Support, scores: Tensor) -> Support:
    half = torch.cat([found.probs[:, :1] / 2, found.probs[:, 1:], found.probs[:, :1] / 2], 1)
    return replace(found, atoms=torch.cat([found.atoms, found.atoms[:, :1]], 1), probs=half)


def moves_an_atom(found: Support, scores: Tensor) -> Support:
    return replace(found, atoms=found.atoms * 0.5)


class Shuffles:
    """Another order of the atoms every time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, found: Support, scores: Tensor) -> Support:
        order = torch.randperm(found.probs.shape[1], generator=self.generator)
        return replace(found, atoms=found.atoms[:, order], probs=found.probs[:, order])


def reports_a_smaller_gap(found: Support, scores: Tensor) -> Support:
    return replace(found, stats=replace(found.stats, gap=found.stats.gap * 1e-6))


SPOILED = {
    "stops early and claims success": (Spoiled(claims_success, max_iter=3), "certificate"),
    "stops early, mean": (Spoiled(claims_success, max_iter=3), "mean"),
    "stops early and says so": (ActiveSet(max_iter=3), "certificate"),
    "gap under-reported": (Spoiled(reports_a_smaller_gap, max_iter=3), "certificate"),
    "support dropped too early": (Spoiled(drops_small_weights), "certificate"),
    "atoms that are no structures": (Spoiled(moves_an_atom), "support"),
    "an atom twice": (Spoiled(splits_an_atom), "support"),
    "another order every time": (Spoiled(Shuffles()), "deterministic"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_defect_of_a_solver(name: str) -> None:
    solver, check = SPOILED[name]
    report = cheap(Explicit(points(20, 5)), solver=solver)
    assert any(result.check.startswith(f"{check} [") for result in report.failed), str(report)


def points(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def scaled(scores, atoms, probs, *rest):
    right = refit(scores, atoms, probs, *rest)
    return right.detach() + 1.1 * (right - right.detach())


def no_equality_row(scores, atoms, probs, *rest):
    """p = pinv(A) t without the row 1'p = 1, at the right value."""
    used = (probs > 0).to(atoms)
    matrix = (atoms * used[..., None]).mT
    free = (torch.linalg.pinv(matrix) @ scores[..., None])[..., 0] * used
    return refit(scores, atoms, probs, *rest).detach() + free - free.detach()


def transposed(scores, atoms, probs, *rest):
    """The Jacobian's columns reversed."""
    right = refit(scores.flip(-1), atoms.flip(-1), probs, *rest)
    wrong = refit(scores.flip(-1), atoms, probs, check=False)
    return right.detach() + wrong - wrong.detach()


def sparsemax_jacobian(scores, atoms, probs, *rest):
    """The weights as if they were sparsemax of the atoms' totals: eq. 10 where eq. 17 is due."""
    used = (probs > 0).to(atoms)
    totals = (atoms * scores[:, None]).sum(-1) * used
    centred = (totals - totals.sum(-1, keepdim=True) / used.sum(-1, keepdim=True)) * used
    return refit(scores, atoms, probs, *rest).detach() + centred - centred.detach()


def detached(scores, atoms, probs, *rest):
    return probs + 0 * scores.sum(-1, keepdim=True)


@pytest.mark.parametrize("defect", [scaled, no_equality_row, transposed, sparsemax_jacobian, detached])
@pytest.mark.parametrize("check", ["mean: Jacobian", "expectation: gradient"])
def test_defect_of_the_gradient(defect, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ActiveSet, "solve_packed")
    monkeypatch.setattr("sparsemarg.layers.sparsemap.refit", defect)
    report = cheap(Budget(5, 2))
    assert "TypeError" not in str(report)
    assert f"{check} [ActiveSet]" in [result.check for result in report.failed], str(report)


PULLED = {
    "scaled": lambda jacobian, gradient: 1.1 * pull(jacobian, gradient),
    "transposed": lambda jacobian, gradient: pull(jacobian, gradient).flip(-1),
    "sums only": lambda jacobian, gradient: pull(jacobian, gradient) * 0 + pull(jacobian, gradient).sum(-1, keepdim=True),
    "another order": lambda jacobian, gradient: pull(jacobian, gradient.flip(0)),
    "detached": lambda jacobian, gradient: 0 * pull(jacobian, gradient),
}
pull = PackedJacobian.pull


@pytest.mark.parametrize("defect", PULLED)
@pytest.mark.parametrize("check", ["mean: Jacobian", "expectation: gradient"])
def test_defect_of_the_packed_gradient(defect: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedJacobian, "pull", PULLED[defect])
    report = cheap(Budget(5, 2))
    assert f"{check} [ActiveSet]" in [result.check for result in report.failed], str(report)


def test_the_gradient_of_other_weights_with_the_same_mean() -> None:
    """The mean's Jacobian is right; that of the distribution is not."""
    polytope = Budget(5, 2)

    def other(scores, atoms, probs, *rest):
        right = refit(scores, atoms, probs, *rest)
        used = (probs > 0).to(atoms)
        # Adds to d p a direction along which the weights' sum stays, so that only E[f] and the sum of atoms see it.
        wobble = (right - right.detach()) * torch.linspace(1, 2, probs.shape[1], dtype=probs.dtype)
        return right + (wobble - used * wobble.sum(-1, keepdim=True) / used.sum(-1, keepdim=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(ActiveSet, "solve_packed")
        patch.setattr("sparsemarg.layers.sparsemap.refit", other)
        report = cheap(polytope)
    assert "TypeError" not in str(report)
    assert "expectation: gradient [ActiveSet]" in [result.check for result in report.failed]


def test_defect_of_top_k_sparsemax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemarg.layers.topk_sparsemax.project_simplex", lambda scores: scores.softmax(-1))
    assert [result.check for result in cheap(Budget(5, 2)).failed] == ["topk_sparsemax"]


def test_defect_of_the_scores_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemarg.layers.sparsemap.coded", lambda scores, *_: -scores)
    assert "mean [ActiveSet]" in [result.check for result in cheap(Budget(5, 2)).failed]


def test_the_unspoiled_polytope_passes() -> None:
    report = cheap(Wrapped())
    assert report.ok, str(report)
    assert [result.check for result in report.with_status("skipped")] == ["solvers agree"]


def random_instance(seed: int) -> Polytope:
    """A small correct polytope."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def part(kind: int, largest: int) -> Polytope:
        dim = integer(1, largest)
        match kind:
            case 0:
                return Explicit(torch.randn(integer(1, 12), dim, generator=generator, dtype=torch.float64))
            case 1:
                bits = torch.rand(integer(1, 12), dim, generator=generator) < 0.5
                return Explicit(bits.double().unique(dim=0))
            case 2:
                return BernoulliCube(dim)
            case 3:
                return Budget(dim, integer(0, dim), exactly=bool(integer(0, 1)))
            case _:
                return Simplex(dim)

    kind = integer(0, 5)
    if kind < 5:
        return part(kind, 5)
    return Product(part(integer(1, 4), 3), part(integer(1, 4), 3))


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))])
def test_no_false_alarm(seed: int) -> None:
    polytope = random_instance(seed)
    report = verify(polytope, batch=2, seed=seed, solvers=[ActiveSet()], skip=["by cvxpy"])
    assert report.ok, str(report)
