"""The probability simplex: one-hot structures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Halfspaces, Polytope
from .checks import check_count, check_dimension
from .gibbs import CategoricalGibbs


@dataclass(frozen=True)
class Simplex(Polytope):
    """conv{e_1, ..., e_D} = {x >= 0, sum x = 1}: one of `dim` categories. Ties go to the lower index."""

    takes_forbidden = True
    dim: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_count("Simplex: dim", self.dim, 1))

    def maximize(self, scores: Tensor) -> Tensor:
        """The one-hot vector of the largest score; O(D)."""
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best categories by a stable sort; O(D log D)."""
        count = min(k, self.dim)
        values, order = scores.sort(dim=-1, descending=True, stable=True)
        vertices = scores.new_zeros(*scores.shape[:-1], k, self.dim)
        valid = scores.new_zeros(*scores.shape[:-1], k, dtype=torch.bool)
        valid[..., :count] = values[..., :count] > -torch.inf
        vertices[..., :count, :].scatter_(-1, order[..., :count, None], valid[..., :count, None].to(scores))
        return vertices, valid

    def project(self, scores: Tensor) -> Tensor:
        """sparsemax(scores): max(t - tau, 0) with tau by sorting (Held et al. 1974; paper eq. 8-9); O(D log D)."""
        return project_simplex(scores)

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Every point of the simplex is its own list of weights."""
        identity = torch.eye(self.dim, dtype=mean.dtype, device=mean.device)
        return identity.expand(*mean.shape, self.dim), mean.clamp(min=0)

    def gibbs(self, scores: Tensor) -> CategoricalGibbs:
        """The categorical distribution softmax(scores)."""
        check_dimension(scores, self)
        return CategoricalGibbs(scores)

    def halfspaces(self) -> Halfspaces:
        """x >= 0, sum x = 1."""
        return Halfspaces(
            a_ub=-torch.eye(self.dim, dtype=torch.float64),
            b_ub=torch.zeros(self.dim, dtype=torch.float64),
            a_eq=torch.ones(1, self.dim, dtype=torch.float64),
            b_eq=torch.ones(1, dtype=torch.float64),
        )

    def vertices(self) -> Tensor:
        """The identity, [D, D] float64."""
        return torch.eye(self.dim, dtype=torch.float64)


def project_simplex(scores: Tensor) -> Tensor:
    """The projection of [..., D] on the simplex along the last dimension, differentiable.

    The support is found without gradient; one differentiable step tau = (sum of supported scores - 1) / |support|
    (paper eq. 9) then gives the Jacobian of eq. 10. Scores are first shifted by their maximum, to which the answer is
    invariant, so that scores of 1e8 keep the precision of their differences. float16 and bfloat16 are computed in
    float32. `-inf` gets 0.
    """
    precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    support, peak = _simplex_support(precise.detach())
    kept = torch.where(support, precise - peak, 0)
    tau = (kept.sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    # Off the support 0, or NaN in a row with NaN or with nothing allowed: never a silent zero.
    return torch.where(support, (kept - tau).clamp(min=0), 0 * peak).to(scores.dtype)


def _simplex_support(scores: Tensor) -> tuple[Tensor, Tensor]:
    peak = scores.amax(-1, keepdim=True)
    shifted = scores - peak
    ordered = shifted.sort(dim=-1, descending=True).values
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    # The largest rank r with 1 + r s_(r) > s_(1) + ... + s_(r). Below peak - 1 nothing is supported, and cutting there
    # keeps -inf out of the sums.
    ordered = ordered.clamp(min=-2)
    count = (1 + rank * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    tau = (torch.where(rank <= count, ordered, 0).sum(-1, keepdim=True) - 1) / count
    return shifted > tau, peak
