"""Sparsemax: the projection of scores on the probability simplex."""

import math

from torch import Tensor, nn

from ..oracles.checks import cannot_branch, check_finite, check_float
from ..oracles.simplex_projection import project_simplex


def sparsemax(scores: Tensor, dim: int = -1, *, check: bool = True) -> Tensor:
    """argmin_{xi in simplex} ||xi - scores||^2 along `dim` = max(scores - tau, 0) (Martins and Astudillo 2016; paper eq. 7-9).

    The support is found by sorting, without gradient; tau = (sum of supported scores - 1) / |support| then carries the
    gradient, whose Jacobian is diag(s) - s s' / |s| for the support's indicator s (paper eq. 10). Differentiable any number
    of times, in forward mode, under `torch.func.vmap` and `torch.compile`. float32 and float64 take a compiled kernel that
    sorts nothing, on the CPU with Numba installed and on a GPU with Triton; see `kernels`.

    Args:
        scores: [..., K, ...] float, of any scale; float16 and bfloat16 are computed in float32. `-inf` forbids a category.
        dim: the dimension of the categories.
        check: look for NaN, +inf and rows with nothing allowed (a host synchronisation; never under compile or vmap).

    Returns:
        Probabilities, in the shape, dtype and device of `scores`. Tied scores get equal probabilities.

    Raises:
        ValueError: a row holds NaN or +inf, or nothing but `-inf`; or scores are not floating point.

    Cost: O(K log K); with the kernel two passes over the scores, and O(K) memory.

    >>> import torch
    >>> sparsemax(torch.tensor([1.0, 0.8, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """
    check_float(scores)
    if not -scores.dim() <= dim < scores.dim() or scores.shape[dim] == 0:
        raise ValueError(f"sparsemax needs at least one category along dim={dim}; scores has shape {list(scores.shape)}")
    last = dim in (-1, scores.dim() - 1)  # a view is cheap, but for small scores its derivative is not
    probs = project_simplex(scores if last else scores.movedim(dim, -1))
    if check and not cannot_branch(probs) and math.isnan(probs.detach()[..., 0].sum()):  # as rows without a projection are
        check_finite(scores, dim, some_allowed=True)
    return probs if last else probs.movedim(-1, dim)


class Sparsemax(nn.Module):
    """The module of `functional.sparsemax`.

    Args:
        dim: the dimension of the categories.
        check: see `functional.sparsemax`.
    """

    def __init__(self, dim: int = -1, *, check: bool = True) -> None:
        super().__init__()
        self.dim, self.check = dim, check

    def forward(self, scores: Tensor) -> Tensor:
        """Probabilities of the shape of `scores`."""
        return sparsemax(scores, self.dim, check=self.check)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"dim={self.dim}"
