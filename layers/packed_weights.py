"""Step two where the solver knows how its weights depend on the scores: nothing has to be computed again.

On a fixed support the weights are linear in the scores (paper eq. 13), so that a solver's Jacobian and its transpose are all
derivatives of every order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..oracles.checks import cannot_branch
from .distribution import SparseDistribution
from .solvers.base import Jacobian, PackedSupport


def takes_packed(scores: Tensor) -> bool:
    """Whether `packed_distribution` differentiates for such scores: not in forward mode, nor in `torch.func` or compiled."""
    return not cannot_branch(scores) and forward_ad.unpack_dual(scores).tangent is None


def packed_distribution(scores: Tensor, support: PackedSupport, shape: torch.Size) -> SparseDistribution:
    """The distribution on a support, as a function of the scores t, [B, D] float64; `shape` is the batch's, of B rows."""
    probs: Any = _Weights.apply(scores, support.probs, support.jacobian)
    stats = support.stats.reshape(shape)
    return SparseDistribution(support.atoms, probs.to(support.atoms.dtype), support.row, shape, stats=stats)


class _Weights(torch.autograd.Function):
    """Weights that were found, as a function of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, probs: Tensor, jacobian: Jacobian) -> Tensor:
        ctx.jacobian = jacobian
        return probs.view_as(probs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None, None]:
        return _Pull.apply(*gradients, ctx.jacobian), None, None


class _Pull(torch.autograd.Function):
    """`Jacobian.pull`, whose derivative is `_Push`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, jacobian: Jacobian) -> Tensor:
        ctx.jacobian = jacobian
        return jacobian.pull(gradient.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None]:
        return _Push.apply(*gradients, ctx.jacobian), None


class _Push(torch.autograd.Function):
    """`Jacobian.push`, whose derivative is `_Pull`."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, jacobian: Jacobian) -> Tensor:
        ctx.jacobian = jacobian
        return jacobian.push(change.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None]:
        return _Pull.apply(*gradients, ctx.jacobian), None
