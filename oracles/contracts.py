"""What a polytope's own methods returned, checked where the library calls them: each error says what breaks the contract."""

import torch
from torch import Tensor

from .base import Polytope, SupportsDecomposition, SupportsProjection
from .checks import all_finite, cannot_branch


def checked_maximize(polytope: Polytope, scores: Tensor) -> Tensor:
    """`polytope.maximize(scores)`, or a ValueError that says how its result breaks the contract."""
    name = type(polytope).__name__
    try:
        vertices = polytope.maximize(scores)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("dtype", "scalar type")):
            raise
        raise ValueError(
            f"{name}.maximize failed on {scores.dtype} scores ({error}); solvers work in float64, so convert the polytope's "
            f"own tensors, e.g. `self.weights.to(scores)`"
        ) from error
    if not isinstance(vertices, Tensor) or vertices.shape != scores.shape:
        got = list(vertices.shape) if isinstance(vertices, Tensor) else type(vertices).__name__
        raise ValueError(
            f"{name}.maximize must return one structure a row, a tensor of the scores' shape {list(scores.shape)}; "
            f"it returned {got}"
        )
    if vertices.dtype != scores.dtype or vertices.device != scores.device:
        raise ValueError(
            f"{name}.maximize returned {vertices.dtype} on {vertices.device} for scores of {scores.dtype} on "
            f"{scores.device}; return `vertices.to(scores)`"
        )
    return vertices


# To a polytope that does not take `-inf` a forbidden coordinate scores so many times what bits at all others could be worth: an
# entry there may be as small as one over that, relative to the largest of a structure.
_FORBIDDING = 2.0**10


def best_allowed(polytope: Polytope, scores: Tensor, forbidden: Tensor | None) -> Tensor:
    """A structure of maximal score, without what is forbidden where there is one: [B, D] -> [B, D].

    Args:
        polytope: see `Polytope.takes_forbidden`.
        scores: [B, D], finite but for coordinates that are forbidden.
        forbidden: [B, D] bool, or None.
    """
    if forbidden is not None:
        # A structure with a forbidden coordinate loses to any without.
        penalty: Tensor | float = torch.inf
        if not getattr(polytope, "takes_forbidden", False):
            penalty = _FORBIDDING * (1 + 2 * torch.where(forbidden, 0, scores).abs().sum(-1, keepdim=True))
        scores = torch.where(forbidden, -penalty, scores)
    return checked_maximize(polytope, scores)


def checked_project(polytope: SupportsProjection, scores: Tensor, finite: bool = True) -> Tensor:
    """`polytope.project(scores)` for scores [B, D], or a ValueError that says how its result breaks the contract.

    With `finite` that it has no NaN and no infinity, too, where data can be seen: a host synchronisation.
    """
    name = type(polytope).__name__
    mean = polytope.project(scores)
    if not isinstance(mean, Tensor) or mean.shape != scores.shape:
        got = list(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
        raise ValueError(f"{name}.project must return a tensor of shape {list(scores.shape)}; it returned {got}")
    if mean.dtype != scores.dtype or mean.device != scores.device:
        raise ValueError(
            f"{name}.project returned {mean.dtype} on {mean.device} for scores of {scores.dtype} on {scores.device}; return "
            f"`mean.to(scores)`"
        )
    if not finite or cannot_branch(mean) or all_finite(mean):
        return mean
    wrong = ~mean.isfinite().all(-1) & (scores < torch.inf).all(-1)  # of NaN that nobody checked for nothing can be made
    if wrong.any():
        row = int(wrong.nonzero()[0])
        masked = " (which has -inf: forbidden coordinates, whose mean is 0)" if scores[row].isneginf().any() else ""
        raise ValueError(
            f"{name}.project returned NaN or infinity for scores row {row}{masked}; it must return a point of the polytope"
        )
    return mean


def checked_decompose(polytope: SupportsDecomposition, mean: Tensor) -> tuple[Tensor, Tensor]:
    """`polytope.decompose(mean)` for means [B, D], or a ValueError that says how its result breaks the contract."""
    found, name = polytope.decompose(mean), f"{type(polytope).__name__}.decompose"
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(each, Tensor) for each in found):
        raise ValueError(f"{name} must return (vertices, probs), two tensors, not {type(found).__name__}")
    vertices, probs = found
    batch, dim = mean.shape
    expected = (batch, probs.shape[-1] if probs.dim() else 1, dim)
    if vertices.shape != expected or probs.shape != expected[:2] or not vertices.dtype == probs.dtype == mean.dtype:
        raise ValueError(
            f"{name} must return vertices [{batch}, S, {dim}] and probs [{batch}, S] in {mean.dtype}; it returned "
            f"{list(vertices.shape)} in {vertices.dtype} and {list(probs.shape)} in {probs.dtype}"
        )
    return vertices, probs


def check_structures(polytope: Polytope, vertices: Tensor) -> None:
    """Raises ValueError if a structure that `maximize` returned is not finite. A host synchronisation."""
    if not cannot_branch(vertices) and not all_finite(vertices):
        raise ValueError(
            f"{type(polytope).__name__}.maximize returned NaN or infinity; it must return structures, and finite ones: "
            f"scores may be large (forbidden entries are very negative), so look for an overflow or 0 * inf"
        )


def check_allowed(polytope: Polytope, vertices: Tensor, forbidden: Tensor | None) -> None:
    """Raises ValueError if the best structures [B, D] have a coordinate on that is forbidden. A host synchronisation."""
    if forbidden is None or cannot_branch(vertices):
        return
    blocked = ((vertices != 0) & forbidden).any(-1)
    if blocked.any():
        row = int(blocked.nonzero()[0])
        if (vertices[row] < 0).any() and not getattr(polytope, "takes_forbidden", False):
            raise ValueError(
                f"scores row {row} has -inf, but structures of {polytope!r} have negative entries, of which a forbidden one is "
                f"not told from a good one: forbid none, or list the structures in an Explicit"
            )
        raise ValueError(
            f"scores row {row} allows no structure of {polytope!r}: every one needs a coordinate whose score is -inf; leave at "
            f"least one structure allowed"
        )
