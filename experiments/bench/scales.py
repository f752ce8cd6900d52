"""What the size of the scores and their dtype do: nearly flat scores have large supports, large ones a single structure."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...layers import SparseDistribution
from ...layers.functional import sparsemap, sparsemax
from ...layers.solvers import ActiveSet, SortedDecomposition
from ...oracles import BernoulliCube, Budget, Polytope
from .case import Candidates, Case
from .operators import gradient_of, normal_scores, sparsemax_candidates, statistics_of

SUITE = "score scale"
FORWARD = "ours, forward alone"
SCALES = (0.01, 0.1, 1.0, 10.0)


def cases(device: torch.device) -> Iterator[Case]:
    """All cases of this suite on a device: scores N(0, scale^2), each size in float32 and one in float64."""
    for scale, dtype in [*((scale, torch.float32) for scale in SCALES), (1.0, torch.float64)]:
        for count in (256, 10_000):
            scores = scale * normal_scores(512, count, device).to(dtype)
            yield Case(
                SUITE,
                f"sparsemax, {_short(dtype)}",
                {"B": 512, "K": count, "scale": scale},
                lambda scores=scores: sparsemax_candidates(scores) | {FORWARD: lambda: sparsemax(scores)},
                quick=(count, scale, dtype) == (256, 0.1, torch.float32),
            )
        for name, polytope in (("cube", BernoulliCube(128)), ("budget D/2", Budget(128, 64))):
            for solver in (ActiveSet(), SortedDecomposition()):
                scores = scale * normal_scores(64, 128, device).to(dtype)
                yield _sparsemap(name, polytope, solver, scores, scale)


def _sparsemap(name: str, polytope: Polytope, solver: ActiveSet | SortedDecomposition, scores: Tensor, scale: float) -> Case:
    def layer(t: Tensor) -> SparseDistribution:
        return sparsemap(t, polytope, coding="pairs", solver=solver)

    def candidates() -> Candidates:
        return {"ours": gradient_of(scores, layer), FORWARD: lambda: layer(scores)}

    operation = f"SparseMAP, {name}, {'ActiveSet' if isinstance(solver, ActiveSet) else 'sorted'}, {_short(scores.dtype)}"
    sizes = {"B": len(scores), "D": polytope.dim, "scale": scale}
    return Case(SUITE, operation, sizes, candidates, describe=statistics_of(scores, layer))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
