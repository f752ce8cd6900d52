"""Step two where the solver knows how its weights depend on the scores: nothing has to be computed again.

On a fixed support the weights are linear in the scores (paper eq. 13), so that a solver's Jacobian and its transpose are all
derivatives of every order: by its kernels where these can be used, else, as inside of `torch.func` transforms, as a matrix.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels import readable
from .distribution import SparseDistribution
from .solvers.supports import PackedSupport


def packed_distribution(scores: Tensor, support: PackedSupport[Any], slope: float = 1.0) -> SparseDistribution:
    """The distribution on a support, as a function of the scores [*B, D]; the solver had `slope` times them, and something."""
    probs: Any = _Weights.apply(scores, support, slope)
    shape = scores.shape[:-1]
    return SparseDistribution(support.atoms, probs, support.row, shape, stats=support.stats.reshape(shape), first=support.first)


class _Weights(torch.autograd.Function):
    """Weights that were found, in the dtype of the atoms, as a function of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, support: PackedSupport[Any], slope: float) -> Tensor:
        ctx.support, ctx.slope, ctx.shape, ctx.dtype = support, slope, scores.shape, scores.dtype
        return support.probs.to(support.atoms.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None, None]:
        found = _apply(gradients[0].resolve_neg().double(), ctx.support, True)
        if ctx.slope != 1:
            found = found * ctx.slope if torch.is_grad_enabled() else found.mul_(ctx.slope)
        return found.to(ctx.dtype).reshape(ctx.shape), None, None


class _Applied(torch.autograd.Function):
    """`Jacobian.push`, or `pull` if transposed: each is linear, and the other is its derivative's transpose."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, support: PackedSupport[Any], transposed: bool) -> Tensor:
        ctx.support, ctx.transposed = support, transposed
        jacobian = support.jacobian
        return (jacobian.pull if transposed else jacobian.push)(vector.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None, None]:
        return _apply(gradients[0], ctx.support, not ctx.transposed), None, None


def _apply(vector: Tensor, support: PackedSupport[Any], transposed: bool) -> Any:
    """From the scores [B, D] to the weights [N], or transposed the other way."""
    if readable(vector):
        if torch.is_grad_enabled():
            return _Applied.apply(vector, support, transposed)
        return (support.jacobian.pull if transposed else support.jacobian.push)(vector)
    matrix, batch = _matrix(support), len(support.first) - 1
    if transposed:
        return matrix.new_zeros(batch, matrix.shape[1]).index_add(0, support.row, vector[:, None] * matrix)
    return (matrix * vector[support.row]).sum(-1)


def _matrix(support: PackedSupport[Any]) -> Tensor:
    """The derivative of each weight in the scores of its row, [N, D]: a call of `pull` for each place in a row."""
    place = torch.arange(len(support.row), device=support.row.device) - support.first[support.row]
    matrix = support.probs.new_empty(support.atoms.shape)
    for number in range(int(place.amax()) + 1 if len(place) else 0):
        here = place == number
        matrix[here] = support.jacobian.pull(here.double())[support.row[here]]
    return matrix
