"""Seeded defects of polytopes, and the check whose business each is."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from mutation_cases import Wrapped
from sparsemarg.oracles import BernoulliCube, Budget, Halfspaces, Polytope

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


@caught_by("on another device")
class StaysOnTheCpu(Wrapped):
    bonus = torch.zeros(5, dtype=torch.float64)

    def maximize(self, scores):
        return self.right.maximize(scores + self.bonus)


@caught_by("on another device")
class ReadsTheMemoryOfTheCpu(Wrapped):
    def project(self, scores):
        return torch.from_numpy(self.right.project(scores).detach().numpy())


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


@caught_by("project")
class ProjectDoesNotForbid(Wrapped):
    def project(self, scores):
        return self.right.project(torch.where(scores.isneginf(), 0.5, scores))


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
class EntropyWithoutGradient(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        return Changed(right, entropy=lambda: right.entropy().detach())


@caught_by("gibbs")
class EntropyWithHalfOfItsGradient(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        return Changed(right, entropy=lambda: (right.entropy() + right.entropy().detach()) / 2)


@caught_by("gibbs")
class MarginalsOfAnotherTemperature(Wrapped):
    def gibbs(self, scores):
        return Changed(self.right.gibbs(scores), marginals=self.right.gibbs(scores / 2).marginals)


@caught_by("gibbs")
class MarginalsWithHalfOfTheirGradient(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        return Changed(right, marginals=lambda: (right.marginals() + right.marginals().detach()) / 2)


@caught_by("gibbs")
class SamplesFromAnotherTemperature(Wrapped):
    def gibbs(self, scores):
        return Changed(self.right.gibbs(scores), sample=self.right.gibbs(scores / 2).sample)


@caught_by("gibbs")
class GibbsWithoutEntropy(Wrapped):
    def gibbs(self, scores):
        return object()


@caught_by("gibbs")
class PointsOffTheSetHaveMass(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        some = self.right.vertices()[0].to(scores)
        listed = self.right.vertices().to(scores)

        def log_prob(structures):
            known = (structures[..., None, :] == listed).all(-1).any(-1, keepdim=True)
            return right.log_prob(torch.where(known, structures, some))

        return Changed(right, log_prob=log_prob)


@caught_by("gibbs")
class SamplesWithoutTheGenerator(Wrapped):
    def gibbs(self, scores):
        right = self.right.gibbs(scores)
        return Changed(right, sample=lambda shape=(), generator=None: right.sample(shape))


@caught_by("gibbs")
class GibbsOfOneBatchDimension(Wrapped):
    def gibbs(self, scores):
        assert scores.dim() == 2
        return self.right.gibbs(scores)


@caught_by("topk")
class KBestOfSomeRows(Wrapped):
    def topk(self, scores, k):
        return self.right.topk(scores + 0 * scores[0], k)


@caught_by("topk")
class KBestOfSeveralRows(Wrapped):
    def topk(self, scores, k):
        return self.right.topk(scores if len(scores) != 1 else -scores, k)


@caught_by("topk")
class KBestInPlace(Wrapped):
    def topk(self, scores, k):
        found = self.right.topk(scores, k)
        scores.zero_()
        return found


@caught_by("project")
class ProjectionInPlace(Wrapped):
    def project(self, scores):
        found = self.right.project(scores)
        scores.detach().zero_()
        return found


@caught_by("project")
class ProjectionOfSomeRows(Wrapped):
    def project(self, scores):
        return self.right.project(scores + 0 * scores[0])


@caught_by("decompose")
class DecompositionOfSomeRows(Wrapped):
    def decompose(self, mean):
        return self.right.decompose(mean + 0 * mean[0])
