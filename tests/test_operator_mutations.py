"""Seeded defects of solvers, gradients and operators: each must be caught, and by the check whose business it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from mutation_cases import cheap
from sparsemarg.layers.refit import refit
from sparsemarg.layers.solvers import ActiveSet, Solver
from sparsemarg.layers.solvers.kernels.compiled_rows import PackedJacobian
from sparsemarg.layers.solvers.supports import Support
from sparsemarg.oracles import Budget, Explicit, Polytope
from torch import Tensor


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
