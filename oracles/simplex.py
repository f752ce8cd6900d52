"""The probability simplex: one-hot structures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Halfspaces, Polytope
from .checks import check_count, check_dimension
from .gibbs import CategoricalGibbs
from .selection import first_few
from .simplex_projection import project_simplex


@dataclass(frozen=True)
class Simplex(Polytope):
    """conv{e_1, ..., e_D} = {x >= 0, sum x = 1}: one of `dim` categories. Ties go to the lower index."""

    takes_forbidden = True
    dim: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_count("Simplex: dim", self.dim, 1))

    def maximize(self, scores: Tensor) -> Tensor:
        """The one-hot vector of the largest score; O(D)."""
        check_dimension(scores, self)
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1)

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best categories: see `first_few`."""
        check_dimension(scores, self)
        count = min(k, self.dim)
        values, order = first_few(scores, count, descending=True)
        vertices = scores.new_zeros(*scores.shape[:-1], k, self.dim)
        valid = scores.new_zeros(*scores.shape[:-1], k, dtype=torch.bool)
        valid[..., :count] = values > -torch.inf
        vertices[..., :count, :].scatter_(-1, order[..., None], valid[..., :count, None].to(scores))
        return vertices, valid

    def project(self, scores: Tensor) -> Tensor:
        """sparsemax(scores): max(t - tau, 0) (Held et al. 1974; paper eq. 8-9); see `simplex_projection`."""
        check_dimension(scores, self)
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
