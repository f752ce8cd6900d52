"""The mean of SparseMAP alone, with all of its derivative."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..kernels import readable, uncompiled
from ..oracles import Parts, Polytope, SupportsProjection, supports
from ..oracles.checks import check_dimension, check_finite, outside_transforms, refuse_vmap
from ..oracles.contracts import checked_project
from .convergence import warn_unconverged
from .face import face_directions, first_order, incomplete_rows
from .solvers.active_set import ActiveSet
from .solvers.admm import ADMM
from .solvers.base import FindsMean, Solver, check_solver
from .solvers.oracle import Oracle, allowed
from .sparsemap import Coding, check_coding, coded, sparsemap

# How many numbers, about, are worked on at once, beside those that are kept for the derivative.
ENTRIES = 2**24


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

    Without a solver the derivative is all of it: the projector on the directions of the face that holds the mean. With a solver
    it is that of `sparsemap(...).mean()`, the projector on what the support's structures span, which with more than some 25
    fractional coordinates may be less (see `solvers.ActiveSet`). What is missing is asked of the oracle: one structure a row to
    see whether anything is, for a tenth to half more time; where something is, about one for each direction, with O(B D) memory
    for each, which takes many times as long as the rest where hundreds of coordinates are fractional. Where no derivative is
    wanted, as under `torch.no_grad`, 0/1 structures are not written either; the mean has the same bits.

    Ties: where structures outside of the face of the mean tie with it there is a kink, such as at a score of exactly 0 on the
    cube, and the derivative is that of one side in some of these directions and of the other side in others.

    >>> from sparsemarg.oracles import SpanningTree
    >>> sparsemap_marginals(torch.tensor([[0.5, 0.4, 0.3]]), SpanningTree([(0, 1), (1, 2), (0, 2)]))
    tensor([[0.7667, 0.6667, 0.5667]])
    """
    if solver is not None and (_derived(scores) or not readable(scores)):
        return sparsemap(scores, polytope, coding=coding, solver=solver, check=check).mean()
    check_dimension(scores, polytope)
    check_coding(coding)
    if check:
        check_finite(scores)
    target = coded(scores.resolve_neg().double(), polytope, coding).reshape(math.prod(scores.shape[:-1]), scores.shape[-1])
    if solver is not None:
        check_solver(solver, ADMM)
        mean = mean_alone(target, polytope, solver, check)
    elif supports(polytope, SupportsProjection) and Parts.of(polytope) is None:
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
    if not readable(scores):  # by torch.func, forward mode: a derivative that any transform can go through
        with outside_transforms(scores, "sparsemap_marginals") as values:
            found = sparsemap(values, polytope, check=check)
            mean, directions = found.mean(), face_directions(found, Oracle.of(polytope, values))
        return mean + first_order(directions, scores)

    inner = scores.view_as(scores)  # not the caller's tensor: its hooks are to run in the backward pass only
    if not _derived(inner):
        return mean_alone(inner, polytope, ActiveSet(), check)
    with _kept_as_it_is():
        found = sparsemap(inner, polytope, check=check)
        mean = found.mean()
        oracle = Oracle.of(polytope, inner.detach())
        rows = incomplete_rows(found, mean, inner, oracle)
    if len(rows) == 0:
        return mean
    at_once = max(1, ENTRIES // scores.shape[-1] ** 2)
    steps = [first_order(face_directions(found.detach()[some], oracle.rows(some)), inner[some]) for some in rows.split(at_once)]
    return mean.index_copy(0, rows, mean.detach()[rows] + torch.cat(steps))


def mean_alone(scores: Tensor, polytope: Polytope, solver: Solver, check: bool) -> Tensor:
    """The mean [B, D] of scores [B, D] float64 without derivative, and without its structures if the solver can do so."""
    scores = scores.detach()
    found = solver.solve_mean(scores, polytope, check) if supports(solver, FindsMean) else None
    if found is None:
        return sparsemap(scores, polytope, solver=solver, check=check).mean()
    mean, stats = found
    if check:
        warn_unconverged(stats, solver)
    return mean


def _derived(scores: Tensor) -> bool:
    """Whether a derivative in these scores may be asked for."""
    return torch.is_grad_enabled() and scores.requires_grad


@contextmanager
def _kept_as_it_is() -> Iterator[None]:
    """Tensors saved for the backward pass can be used before it, which a checkpoint's hooks would not allow."""
    with ExitStack() as stack:
        with suppress(RuntimeError):  # hooks are disabled, and so are a checkpoint's
            stack.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        yield
