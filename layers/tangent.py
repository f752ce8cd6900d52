"""The derivative of the mean of a factor graph: the projector on what all factors' faces have in common.

On the faces of the solution the problem is max <t, mu> + sum_f <t_f, u_f> - 1/2 ||mu||^2 over an affine set. A factor's own
mean moves with its scores by J_f dz_f + K_f dt_f, where J_f is the orthogonal projector on the directions of its face (as any
SparseMAP's derivative). Multipliers are not unique, but drop out:

    d mu = P (dt + sum_f K_f dt_f),      P the orthogonal projector on {d : (I - J_f) d_f = 0 for all f} = null(G),
    G = sum_f (I - J_f) on the factor's variables,

so that the implicit derivative asks the factors for Jacobian-vector products, and for nothing else.
"""

from typing import Any

import torch
from torch import Tensor

# Conjugate gradients stop at this residual, relative to the vector: below what the factors' Jacobians are good for.
SMALL = 1e-13


class Tangent:
    """P of a batch of problems, as an operator.

    Args:
        index: [F, n] of every group of factors: their variables.
        points: [B, F, n] of every group, the factors' scores, which require grad; `means` [B, F, n] were computed from them.
        degree: [V] in how many factors each variable is.
    """

    def __init__(self, index: list[Tensor], points: list[Tensor], means: list[Tensor], degree: Tensor) -> None:
        # A polytope of one point may answer with a constant, whose Jacobian is zero.
        moving = [place for place, mean in enumerate(means) if mean.requires_grad]
        self.index, self.degree = [index[place] for place in moving], degree
        self.points, self.means = [points[place] for place in moving], [means[place] for place in moving]

    def project(self, change: Tensor) -> Tensor:
        """P d = d - x for the least-squares solution of G x = G d, by conjugate gradients: [B, V] -> [B, V].

        Cost: one vector-Jacobian product of every factor an iteration, at most V + a few; eigenvalues of G are angles between
        the factors' faces, of which there are few.
        """
        part = torch.zeros_like(change)
        residual = self.outside(change)
        direction = residual
        size = residual.square().sum(-1, keepdim=True)
        enough = SMALL**2 * change.square().sum(-1, keepdim=True)
        for _ in range(2 * change.shape[-1] + 10):
            going = size > enough
            if not going.any():
                break
            bent = self.outside(direction)
            curve = (direction * bent).sum(-1, keepdim=True)
            step = torch.where(going & (curve > 0), size / curve, 0)
            part = part + step * direction
            residual = residual - step * bent
            smaller = residual.square().sum(-1, keepdim=True)
            direction = residual + torch.where(going, smaller / size, 0) * direction
            size = torch.where(going & (curve > 0), smaller, 0)
        return change - part

    def outside(self, change: Tensor) -> Tensor:
        """G d = deg d - sum_f J_f d_f: [B, V] -> [B, V]. J_f is symmetric, so that reverse mode is enough."""
        here = [change[:, index] for index in self.index]
        if not here:
            return self.degree * change
        moved = torch.autograd.grad(self.means, self.points, here, retain_graph=True, materialize_grads=True)
        total = self.degree * change
        for index, each in zip(self.index, moved, strict=True):
            total = total.index_add(1, index.flatten(), each.flatten(1), alpha=-1)
        return total


class _Projected(torch.autograd.Function):
    """P as a differentiable function: linear, and its own adjoint."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, tangent: Tangent) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.tangent = tangent
        return tangent.project(change)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Projected.apply(gradient, ctx.tangent), None  # pyright: ignore[reportReturnType]


def projected(change: Tensor, tangent: Tangent) -> Tensor:
    """P d, differentiable in d any number of times: [B, V] -> [B, V]."""
    found = _Projected.apply(change, tangent)
    assert isinstance(found, Tensor)
    return found
