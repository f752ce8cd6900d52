"""Top-k sparsemax: sparsemax over the k best structures."""

import math

import torch
from torch import Tensor, nn

from ..kernels import readable
from ..oracles import KBest, Polytope, Simplex, SupportsFlips, supports
from ..oracles.checks import cannot_branch, check_count, check_dimension, check_finite
from ..oracles.kbest import k_best
from ..oracles.simplex_projection import project_simplex
from .distribution import SparseDistribution, starts_of
from .packed_weights import packed_distribution
from .solvers.flips import in_one_pass
from .stats import TopKStats


def topk_sparsemax(scores: Tensor, polytope: Polytope, k: int, *, check: bool = True) -> SparseDistribution:
    """argmin ||xi - s||^2 over distributions xi on the structures Z with at most k atoms, s_z = <a_z, t> (paper eq. 3).

    The solution is sparsemax of the k largest s_z. Where it gives fewer than k of them mass it is the sparsemax over all of
    Z: `stats.exact` says so. The gradient flows through the scores s_z of the k structures, not through their choice.

    Args:
        scores: t, [*B, D] float; `-inf` forbids the structures with a_i != 0.
        polytope: whose structures; see `sparsemarg.oracles.topk` for how they are found.
        k: how many structures at most, at least 1. More than there are is all of them.
        check: see `functional.sparsemax`.

    Returns:
        A distribution with at most k atoms a row, in the dtype of `scores` (computed in float64), `TopKStats` in `stats`.

    Raises:
        ValueError: NaN or +inf scores, a row that allows no structure, k below 1, a wrong last dimension.

    Ties at the k-th place are broken by the polytope's rule, deterministically. Where the polytope has `flips` (the cube), only
    the structures that have mass are written down; on the CPU with Numba installed in one compiled pass (`solvers.flips`).

    >>> from sparsemarg.oracles import BernoulliCube
    >>> topk_sparsemax(torch.tensor([[0.2, -3.0]]), BernoulliCube(2), k=3).padded()
    (tensor([[[1., 0.],
             [0., 0.]]]), tensor([[0.6000, 0.4000]]))
    """
    check_dimension(scores, polytope)
    if supports(polytope, SupportsFlips):
        return _of_flips(scores, polytope, check_count("k", k, 1), check)
    best = k_best(polytope, scores.resolve_neg().double(), k, check=check)
    if check:
        _check_allowed(best.valid, polytope)
    probs = project_simplex(best.scores)
    support = (probs.detach() > 0) & best.valid
    packed = SparseDistribution.pack(
        best.vertices.to(scores.dtype), probs.to(scores.dtype), support, TopKStats(_is_exact(support, best.valid, k))
    )
    if isinstance(polytope, Simplex):
        packed.index = packed.atoms.argmax(-1)
    return packed


class TopKSparsemax(nn.Module):
    """The module of `functional.topk_sparsemax`.

    Args:
        polytope: whose structures.
        k: how many at most.
        check: see `functional.sparsemax`.
    """

    def __init__(self, polytope: Polytope, k: int, *, check: bool = True) -> None:
        super().__init__()
        KBest(polytope, k)  # a bad k is said here, not in the first batch
        self.polytope, self.k, self.check = polytope, k, check

    def forward(self, scores: Tensor) -> SparseDistribution:
        """The distribution of scores [*B, D]."""
        return topk_sparsemax(scores, self.polytope, self.k, check=self.check)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.polytope}, k={self.k}"


def _of_flips(scores: Tensor, polytope: SupportsFlips, k: int, check: bool) -> SparseDistribution:
    """The same where structures are told by what they flip: only the atoms that have mass are written down.

    The scores s_z count from the best one's, which changes neither the projection nor its derivative.
    """
    flat = scores.reshape(math.prod(scores.shape[:-1]), scores.shape[-1])
    if readable(flat):
        support = in_one_pass(flat.detach().double(), polytope, k, scores.dtype)  # None if there is NaN or +inf
        if support is not None:
            return packed_distribution(scores, support)
    if check:
        check_finite(scores)
    found = polytope.flips(flat.detach(), k)
    if check:
        _check_allowed(found.valid, polytope)
    change = 1 - 2 * found.best.gather(-1, found.order)
    flipped = flat.gather(-1, found.order).double()
    gain = change * torch.where(flipped.isneginf(), 0, flipped)
    totals = (found.flips.double() @ gain[..., None])[..., 0]
    probs = project_simplex(totals.masked_fill(~found.valid, -torch.inf))
    support = (probs.detach() > 0) & found.valid
    place = support.reshape(-1).nonzero()[:, 0]
    row = place.div(support.shape[-1], rounding_mode="floor")
    changes = (change[:, None] * found.flips).flatten(0, 1).index_select(0, place)
    atoms = found.best.index_select(0, row).scatter_add_(1, found.order.index_select(0, row), changes)
    stats = TopKStats(_is_exact(support, found.valid, k).reshape(scores.shape[:-1]))
    return SparseDistribution(
        atoms,
        probs.reshape(-1)[place].to(scores.dtype),
        row,
        scores.shape[:-1],
        stats=stats,
        first=starts_of(row, scores.shape[:-1]),
    )


def _is_exact(support: Tensor, valid: Tensor, k: int) -> Tensor:
    """`TopKStats.exact`, [*B], for what was found, [*B, n] bool: whether it has mass, and whether it is a structure at all."""
    return (support.sum(-1) < k) | ~valid.all(-1)


def _check_allowed(valid: Tensor, polytope: object) -> None:
    nothing = ~valid[..., 0]
    if not cannot_branch(valid) and nothing.any():
        row = tuple(torch.nonzero(nothing)[0].tolist())
        raise ValueError(
            f"scores row {row[0] if len(row) == 1 else row} allows no structure of {polytope!r}: every one needs a "
            f"coordinate whose score is -inf; leave at least one structure allowed"
        )
