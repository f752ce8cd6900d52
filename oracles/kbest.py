"""The k best structures of any polytope."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Polytope, SupportsTopk, SupportsVertices, supports
from .checks import all_finite, cannot_branch, check_count, check_dimension, check_finite
from .contracts import check_structures, checked_maximize
from .explicit import Explicit


def topk(polytope: Polytope, scores: Tensor, k: int, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """The k distinct structures of highest score <a_z, t>, best first.

    By the polytope's own `topk` if it has one; else by enumeration if it lists its `vertices`; else by Lawler's partition
    (1972), which needs only `maximize` and 0/1 structures.

    Args:
        polytope: whose structures.
        scores: [*B, D] float; `-inf` forbids the structures with a_i != 0.
        k: how many, at least 1; may exceed the number of structures.
        check: look for NaN and +inf (a host synchronisation).

    Returns:
        vertices [*B, k, D] in the dtype of `scores`, and valid [*B, k] bool: false, with a zero vertex, beyond the number
        of structures. Neither has a gradient.

    Raises:
        ValueError: k below 1, NaN or +inf scores, scores of another width, structures that are not 0/1 where Lawler's
            partition needs them.

    Ties are broken deterministically, by a rule that is the polytope's own. Where all structures are enumerated (`Explicit`,
    and polytopes with `vertices` and no `topk` of their own), sums that are equal on paper and not as rounded are ordered by
    their rounding, which may depend on the batch.
    """
    check_dimension(scores, polytope)
    k = check_count("k", k, 1)
    if check:
        check_finite(scores)
    flat = scores.detach().reshape(math.prod(scores.shape[:-1]), polytope.dim)
    name, shape = type(polytope).__name__, (flat.shape[0], k, polytope.dim)
    with torch.no_grad():  # structures have no gradient, though a table that is a parameter would give them one
        if supports(polytope, SupportsTopk):
            vertices, valid = polytope.topk(flat, k)
        elif supports(polytope, SupportsVertices):
            vertices, valid = Explicit(polytope.vertices()).topk(flat, k)
        else:
            vertices, valid = lawler(polytope, flat, k)
    if vertices.shape != shape or valid.shape != shape[:2] or valid.dtype != torch.bool:
        raise ValueError(
            f"{name}.topk must return vertices [B, k, D] = {list(shape)} and valid [B, k] = {list(shape[:2])} bool; "
            f"it returned {list(vertices.shape)} and {list(valid.shape)} {str(valid.dtype).removeprefix('torch.')}"
        )
    if check and not cannot_branch(vertices) and not all_finite(vertices):
        raise ValueError(f"{name}.topk returned NaN or infinity; it must return structures, and zeros where there are no more")
    return vertices.reshape(*scores.shape[:-1], *shape[1:]), valid.reshape(*scores.shape[:-1], k)


class KBestStructures(NamedTuple):
    """What `KBest` returns: vertices [*B, k, D], their scores [*B, k] (-inf if not valid), valid [*B, k]."""

    vertices: Tensor
    scores: Tensor
    valid: Tensor


@dataclass(frozen=True)
class KBest:
    """The k-best enumerator of a polytope: scores -> the k best structures and their scores.

    The structures' scores s_j = <a_j, t> carry the gradient; which structures they are does not.

    >>> from sparsemarg.oracles import BernoulliCube
    >>> KBest(BernoulliCube(2), k=3)(torch.tensor([[1.0, -0.5]])).scores
    tensor([[1.0000, 0.5000, 0.0000]])
    """

    polytope: Polytope
    k: int
    check: bool = True

    def __post_init__(self) -> None:
        check_count("KBest: k", self.k, 1)

    def __call__(self, scores: Tensor) -> KBestStructures:
        """For scores [*B, D]; see `topk`."""
        return k_best(self.polytope, scores, self.k, check=self.check)


def k_best(polytope: Polytope, scores: Tensor, k: int, *, check: bool = True) -> KBestStructures:
    """`KBest` as a function of scores [*B, D]; without an object, which torch.compile of torch 2.11 cannot make."""
    vertices, valid = topk(polytope, scores, k, check=check)
    finite = torch.where(scores.isneginf(), 0, scores)
    totals = (vertices.double() @ finite.double()[..., None])[..., 0].to(scores.dtype)  # autocast leaves float64 alone
    return KBestStructures(vertices, totals.masked_fill(~valid, -torch.inf), valid)


def lawler(polytope: Polytope, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best 0/1 structures from `maximize` alone, for scores [B, D]: `partition` of what the polytope's oracle finds.

    Raises:
        ValueError: see `check_moderate`.
    """
    check_moderate(scores, k)
    return partition(lambda forced, _: _binary(polytope, checked_maximize(polytope, forced)), scores, k)


# Beside a score that exceeds all totals the others keep six digits at least, in float64.
_LARGEST = 1e9


def check_moderate(scores: Tensor, k: int) -> None:
    """Raises ValueError if scores [B, D] are so large that a sum of one of them and of others has no digits of the others.

    For `partition` where `maximize` takes sums or differences; the single best is found without forcing any bit. A host
    synchronisation.
    """
    if k == 1 or cannot_branch(scores) or scores.numel() == 0:
        return
    largest = scores.double().masked_fill(scores.isneginf(), 0).abs().amax(-1)
    if (largest > _LARGEST).any():
        row = int((largest > _LARGEST).nonzero()[0])
        raise ValueError(
            f"the k best are found by forcing bits with scores beyond all totals, but those of row {row} reach "
            f"{float(largest[row]):.2g}: float64 could not tell the others apart; forbid bits by -inf, not by low scores"
        )


def partition(
    maximize: Callable[[Tensor, Tensor], Tensor], scores: Tensor, k: int, *, antichain: bool = False
) -> tuple[Tensor, Tensor]:
    """The k best 0/1 structures by partitioning the set (Lawler 1972; Murty 1968).

    An open part of the set is described by bits that are fixed, and known by its best structure. Each round takes the best
    open part of each problem and splits what remains of it by the first free bit that differs from its best structure: a new
    part for each free bit, whose best structures are found by one `maximize` of scores in which a fixed bit scores +-P, P
    above any total. Only as many open parts are kept as there are structures left to take.

    Args:
        maximize: best structures [n, D] for scores [n, D] float64 and the problem [n] int64, of 0..B - 1, that each is of.
        scores: [B, D] float; `-inf` forbids the structures with a_i != 0.
        k: how many, at least 1.
        antichain: that no structure contains another (all have equally many bits, say). Another one then lacks a bit that
            the best has, so only those are split by: as many parts as a structure has bits.

    Cost: k calls of `maximize` with n <= B D. Ties: deterministic.
    """
    precise = scores.double()
    batch, dim = precise.shape
    problems = torch.arange(batch, device=scores.device)
    bit = torch.arange(dim, device=scores.device)
    forbidden = precise.isneginf()
    finite = torch.where(forbidden, 0, precise)
    penalty = 1 + 2 * finite.abs().sum(-1, keepdim=True)

    def best_of(problem: Tensor, fixed: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """The best structures with z = bits where fixed, and their scores, -inf where there is none: [n, D], [n]."""
        values, limit = finite[problem], penalty[problem]
        forced = torch.where(fixed, torch.where(bits, limit, -limit), values)
        found = maximize(forced, problem) if len(problem) else forced
        agrees = ((found == bits) | ~fixed).all(-1)
        return found, torch.where(agrees, (found * values).sum(-1), -torch.inf)

    best, total = best_of(problems, forbidden, torch.zeros_like(forbidden))
    parts = _OpenParts(best[:, None], forbidden[:, None], total[:, None])
    vertices = torch.zeros(batch, k, dim, dtype=torch.float64, device=scores.device)
    valid = torch.zeros(batch, k, dtype=torch.bool, device=scores.device)
    for step in range(k):
        chosen = parts.total.argmax(-1)
        best, fixed = parts.best[problems, chosen], parts.fixed[problems, chosen]
        valid[:, step] = parts.total[problems, chosen] > -torch.inf
        vertices[:, step] = best * valid[:, step, None]
        if step + 1 == k:
            break
        # A part agrees with the structure taken on the free bits before one, and differs at that one.
        on = best > 0
        free = ~fixed & valid[:, step, None] & (on if antichain else True)
        problem, split = free.nonzero(as_tuple=True)
        flip = bit == split[:, None]
        part_fixed = fixed[problem] | free[problem] & (bit < split[:, None]) | flip
        part_best, part_total = best_of(problem, part_fixed, on[problem] ^ flip)
        parts.total[problems, chosen] = -torch.inf
        place = free.cumsum(-1)[problem, split] - 1
        parts = parts.joined(_OpenParts(part_best, part_fixed, part_total), problem, place, k - step - 1)
    return vertices.to(scores.dtype), valid


class _OpenParts(NamedTuple):
    """Parts of the sets of structures, m of each problem.

    Attributes:
        best: [B, m, D] the best structure of each.
        fixed: [B, m, D] bool, the bits that all structures of a part have in common with its best.
        total: [B, m] the score of the best, -inf for a part that is empty or closed.
    """

    best: Tensor
    fixed: Tensor
    total: Tensor

    def joined(self, new: "_OpenParts", problem: Tensor, place: Tensor, keep: int) -> "_OpenParts":
        """The `keep` best of these and of new ones ([n, D], [n, D], [n]), each the place-th new one of a problem [n].

        Ties: these first, then the new ones by place.
        """
        batch, held = self.total.shape
        shape = (batch, int(place.amax()) + 1 if len(place) else 0)
        total = self.total.new_full(shape, -torch.inf).index_put((problem, place), new.total)
        number = torch.arange(batch * held + len(place), device=place.device)  # of all parts, these first
        added = number.new_zeros(shape).index_put((problem, place), number[batch * held :])
        total, order = torch.cat([self.total, total], -1).sort(dim=-1, descending=True, stable=True)
        kept = torch.cat([number[: batch * held].reshape(batch, held), added], -1).gather(1, order[:, :keep])
        best, fixed = torch.cat([self.best.flatten(0, 1), new.best]), torch.cat([self.fixed.flatten(0, 1), new.fixed])
        return _OpenParts(best[kept], fixed[kept], total[:, :keep].clone())


def _binary(polytope: Polytope, vertices: Tensor) -> Tensor:
    check_structures(polytope, vertices)
    fraction = (vertices != 0) & (vertices != 1)
    if fraction.any():
        value = vertices[fraction][0].item()
        raise ValueError(
            f"k-best by Lawler's partition needs structures of 0s and 1s, but {type(polytope).__name__}.maximize returned "
            f"{value:g}; give the polytope a `topk(scores, k)` or a `vertices()` method"
        )
    return vertices
