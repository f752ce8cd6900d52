"""The k best structures of any polytope."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Polytope, SupportsTopk, SupportsVertices, supports
from .checks import all_finite, cannot_branch, check_count, check_dimension, check_finite, check_structures, checked_maximize
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

    Ties are broken deterministically, by a rule that is the polytope's own.
    """
    check_dimension(scores, polytope)
    k = check_count("k", k, 1)
    if check:
        check_finite(scores)
    flat = scores.detach().reshape(scores.shape[:-1].numel(), polytope.dim)
    name, shape = type(polytope).__name__, (len(flat), k, polytope.dim)
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
    """The k best 0/1 structures from `maximize` alone, for scores [B, D]: `partition` of what the polytope's oracle finds."""

    def maximize(forced: Tensor) -> Tensor:
        return _binary(polytope, checked_maximize(polytope, forced.flatten(0, 1))).reshape(forced.shape)

    return partition(maximize, scores, k)


def partition(
    maximize: Callable[[Tensor], Tensor], scores: Tensor, k: int, *, antichain: bool = False
) -> tuple[Tensor, Tensor]:
    """The k best 0/1 structures by partitioning the set (Lawler 1972; Murty 1968).

    An open part of the set is described by bits that are fixed, and known by its best structure. Each round takes the best
    open part and splits what remains of it by the first free bit that differs from its best structure: D new parts, whose
    best structures are found by one `maximize` of scores in which a fixed bit scores +-P, P above any total. Only the best
    k open parts are kept.

    Args:
        maximize: best structures for scores [B, n, D] float64, n for each problem, in the same shape.
        scores: [B, D] float; `-inf` forbids the structures with a_i != 0.
        k: how many, at least 1.
        antichain: that no structure contains another (all have equally many bits, say). Another one then lacks a bit that
            the best has, so only those are split by: as many parts as a structure has bits.

    Cost: k calls of `maximize` with n <= D. Ties: deterministic.
    """
    precise = scores.double()
    batch, dim = precise.shape
    rows = torch.arange(batch, device=scores.device)
    bit = torch.arange(dim, device=scores.device)
    forbidden = precise.isneginf()
    finite = torch.where(forbidden, 0, precise)
    penalty = 1 + 2 * finite.abs().sum(-1, keepdim=True)

    def best_of(fixed: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """The best structure with z = bits where fixed, and its score, -inf if there is none: [B, n, D], [B, n]."""
        found = maximize(torch.where(fixed, (2 * bits - 1) * penalty[:, None], finite[:, None]))
        agrees = ((found == bits) | ~fixed).all(-1)
        return found, torch.where(agrees, (found * finite[:, None]).sum(-1), -torch.inf)

    open_fixed = forbidden[:, None].clone()
    open_best, open_total = best_of(open_fixed, torch.zeros_like(precise)[:, None])
    vertices = torch.zeros(batch, k, dim, dtype=torch.float64, device=scores.device)
    valid = torch.zeros(batch, k, dtype=torch.bool, device=scores.device)
    for step in range(k):
        chosen = open_total.argmax(-1)
        best, fixed, total = open_best[rows, chosen], open_fixed[rows, chosen], open_total[rows, chosen]
        valid[:, step] = total > -torch.inf
        vertices[:, step] = best * valid[:, step, None]
        if step + 1 == k:
            break
        open_total.scatter_(1, chosen[:, None], -torch.inf)
        # Part i agrees with the structure taken on the bits split by before, and differs at the i-th of them.
        on = best > 0
        if antichain:
            most = int(on.sum(-1).amax()) if batch else 0
            splits = on.sort(dim=-1, descending=True, stable=True).indices[:, :most]
            agreed = on[:, None]
        else:
            splits = bit.expand(batch, -1)
            agreed = torch.ones_like(on)[:, None]
        flip = bit == splits[..., None]  # [B, n, D]
        part_fixed = fixed[:, None] | (agreed & (bit < splits[..., None])) | flip
        part_bits = torch.where(flip, 1 - best[:, None], best[:, None])
        part_best, part_total = best_of(part_fixed, part_bits)
        # A bit that was already fixed has no other side, and one that is off is not split by in an antichain.
        closed = fixed.gather(-1, splits) | ~valid[:, step, None] | (antichain & ~on.gather(-1, splits))
        part_total = part_total.masked_fill(closed, -torch.inf)
        open_total, kept = torch.cat([open_total, part_total], -1).sort(dim=-1, descending=True, stable=True)
        open_total, kept = open_total[:, :k].clone(), kept[:, :k]
        index = kept[..., None].expand(-1, -1, dim)
        open_best = torch.cat([open_best, part_best], 1).gather(1, index)
        open_fixed = torch.cat([open_fixed, part_fixed], 1).gather(1, index)
    return vertices.to(scores.dtype), valid


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
