"""The mean of SparseMAP alone, with all of its derivative."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..kernels import readable, uncompiled
from ..oracles import Parts, Polytope, SupportsProjection, supports
from ..oracles.checks import check_dimension, check_finite, outside_transforms, refuse_vmap
from ..oracles.contracts import checked_project
from .face import completed, face_directions, moved
from .solvers.active_set import ActiveSet
from .solvers.base import Solver
from .solvers.oracle import Oracle, allowed
from .sparsemap import Coding, check_coding, coded, sparsemap
from .stats import SolverStats


def sparsemap_marginals(
    scores: Tensor,
    polytope: Polytope,
    *,
    coding: Coding = "bits",
    solver: Solver | None = None,
    check: bool = True,
) -> Tensor:
    """The mean alone: mu* = argmin_{mu in conv(polytope)} ||mu - t||^2, [*B, D], differentiable.

    By the polytope's own `project` where it has one, regularises all coordinates and no solver is given; else that of
    `sparsemap`. Arguments and errors are those of `sparsemap`.

    Without a solver the derivative is all of it: the projector on the directions of the face that holds the mean, which is
    unique where no structure outside of the face ties with it. With a solver it is that of `sparsemap(...).mean()`, the
    projector on what the support's structures span, which with more than some 25 fractional coordinates may be less (see
    `solvers.ActiveSet`). The difference is asked of the oracle: one more call, and where something is missing about one for
    each direction, in memory of O(B D) for each.

    >>> from sparsemarg.oracles import SpanningTree
    >>> sparsemap_marginals(torch.tensor([[0.5, 0.4, 0.3]]), SpanningTree([(0, 1), (1, 2), (0, 2)]))
    tensor([[0.7667, 0.6667, 0.5667]])
    """
    if solver is not None:
        return sparsemap(scores, polytope, coding=coding, solver=solver, check=check).mean()
    check_dimension(scores, polytope)
    check_coding(coding)
    if check:
        check_finite(scores)
    target = coded(scores.resolve_neg().double(), polytope, coding).reshape(scores.shape[:-1].numel(), scores.shape[-1])
    if supports(polytope, SupportsProjection) and Parts.of(polytope) is None:
        if check:
            with torch.no_grad():
                if allowed(target)[1] is not None:
                    Oracle.of(polytope, target).start()  # says which row allows nothing
        mean = checked_project(polytope, target, check)
    else:
        mean = mean_by_support(target, polytope, check)
    return mean.reshape(scores.shape).to(scores.dtype)


@uncompiled
def mean_by_support(scores: Tensor, polytope: Polytope, check: bool) -> Tensor:
    """The mean [B, D] of scores [B, D] float64 for any polytope, with its whole derivative; see `sparsemap_marginals`."""
    refuse_vmap(scores, "sparsemap_marginals")
    if readable(scores):
        inner = scores.view_as(scores)  # no leaf, whose hooks would run when its derivative is looked at
        # What a checkpoint would drop until the backward pass is looked at here and now.
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            found = sparsemap(inner, polytope, solver=ActiveSet(), check=check)
            mean = found.mean()
            if not (torch.is_grad_enabled() and inner.requires_grad):
                return mean
            assert isinstance(found.stats, SolverStats)
            oracle = Oracle.of(polytope, inner.detach())
            return completed(mean, inner, oracle, found.stats.converged, lambda rows: found[rows].padded())
    with outside_transforms(scores, "sparsemap_marginals") as values:
        found = sparsemap(values, polytope, solver=ActiveSet(), check=check)
        mean, directions = found.mean(), face_directions(Oracle.of(polytope, values), *found.padded())
    return mean + moved(directions, scores)
