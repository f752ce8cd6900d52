"""`model_check`: estimators that are exact, unbiased and biased."""

import re
from typing import Any

import pytest
import torch
from cases import Ring
from sparsemarg.layers import SparseMAP, Sparsemax, TopKSparsemax
from sparsemarg.models.estimators import Estimate, Estimator, Marginalize
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, Simplex
from sparsemarg.verification import model_check
from torch import Tensor


def cost(atoms: Tensor, row: Tensor) -> Tensor:
    return (atoms.cumsum(-1) - 0.3 * row[:, None]).square().sum(-1)


class Categorical(torch.nn.Module):
    """Sparsemax as a layer that returns a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = TopKSparsemax(Simplex(4), 4)
        self.probs = Sparsemax()

    def forward(self, scores: Tensor):
        return self.layer(scores)


@pytest.mark.parametrize("layer", [SparseMAP(Budget(4, 2)), TopKSparsemax(Budget(4, 2), 3)], ids=["sparsemap", "top-k"])
def test_deterministic_estimators_are_exact(layer) -> None:
    report = model_check(Marginalize(layer), Budget(4, 2), cost)
    assert report.ok, str(report)


def test_deterministic_estimator_of_a_known_distribution() -> None:
    report = model_check(Marginalize(Categorical()), Simplex(4), cost, probs=Sparsemax())
    assert report.ok, str(report)


class ScoreFunction(Estimator):
    """One sample of the Gibbs distribution and REINFORCE, with a defect: a factor of the gradient."""

    def __init__(self, polytope: BernoulliCube, factor: float = 1.0) -> None:
        super().__init__()
        self.polytope, self.factor = polytope, factor

    def forward(self, scores, cost, *, context=None) -> Estimate:
        gibbs = self.polytope.gibbs(scores)
        drawn = gibbs.sample()
        value = cost(drawn, torch.arange(len(scores))).detach()
        surrogate = value * gibbs.log_prob(drawn) * self.factor
        ones = torch.ones(len(scores), dtype=torch.int64)
        return Estimate(value, surrogate, gibbs.entropy(), len(scores), ones, drawn)

    def distribution(self, scores):
        return self.polytope.gibbs(scores)


def test_stochastic_estimators() -> None:
    cube = BernoulliCube(3)
    report = model_check(ScoreFunction(cube), cube, cost, kind="unbiased")
    assert report.ok, str(report)
    report = model_check(ScoreFunction(cube, 1.3), cube, cost, kind="unbiased")
    assert [result.check for result in report.failed] == ["gradient"]
    report = model_check(ScoreFunction(cube, 1.3), cube, cost, kind="biased")
    assert not report.failed
    assert "bias of the gradient: largest" in str(report)


def test_estimator_of_an_unknown_distribution() -> None:
    with pytest.raises(ValueError, match="pass probs, a function of scores"):
        model_check(ScoreFunction(BernoulliCube(2)), NoGibbs(torch.eye(2)), cost)
    with pytest.raises(ValueError, match=re.escape("model_check needs Ring.vertices")):
        model_check(ScoreFunction(BernoulliCube(2)), Ring(), cost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.zeros(3)}, "scores must be [B, 3] with B >= 1, not [3]"),
        ({"scores": torch.zeros(2, 4)}, "scores has 4 columns"),
        ({"kind": "bias"}, "kind must be one of 'deterministic', 'unbiased', 'biased', not 'bias'"),
        ({"kind": "unbiased", "draws": 1}, "draws must be at least 2, not 1"),
        ({"rows": 0}, "rows must be at least 1, not 0"),
    ],
)
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    cube = BernoulliCube(3)
    with pytest.raises(ValueError, match=re.escape(message)):
        model_check(ScoreFunction(cube), cube, cost, **arguments)


def test_structures_that_the_polytope_does_not_have() -> None:
    estimator = Marginalize(SparseMAP(BernoulliCube(3)))
    with pytest.raises(ValueError, match=re.escape("found [1.0, 1.0, 1.0], which is none of polytope.vertices()")):
        model_check(estimator, Budget(3, 2), cost, scores=torch.ones(1, 3))


class NoGibbs(Explicit):
    gibbs = None  # pyright: ignore
