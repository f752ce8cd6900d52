"""Fenchel-Young losses: convex losses on scores whose gradient is prediction minus target.

    L(t; y) = max_{mu in P} (<t, mu> - 1/2 ||mu||^2) + 1/2 ||y||^2 - <t, y>  =  <t, mu* - y> - 1/2 ||mu*||^2 + 1/2 ||y||^2

with mu* the projection of t on the polytope P (Blondel, Martins and Niculae 2020). It is zero exactly if mu* = y, and its
gradient in t is mu* - y. Where only the coordinates R of a polytope are regularised, 1/2 ||.||^2 is of those; the loss is
then zero exactly if y too is a maximiser.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import readable
from ..oracles import Parts, Polytope
from ..oracles.checks import cannot_branch, check_dimension, check_polytope, check_probabilities
from .marginals import sparsemap_marginals
from .solvers.admm import ADMM
from .solvers.base import Solver, check_solver
from .sparsemap import Coding, check_coding, coded
from .sparsemax import sparsemax

# A loss this far below 0, relative to its terms, is not rounding, not even that of a target in bfloat16.
NEGATIVE = 1e-2


def sparsemax_loss(scores: Tensor, target: Tensor, *, check: bool = True) -> Tensor:
    """The sparsemax loss of each row (Martins and Astudillo 2016, eq. 19).

    Args:
        scores: [*B, K] float.
        target: the categories, [*B] int64, or a distribution over them, [*B, K] float.
        check: see `functional.sparsemax`; of the target too.

    Returns:
        [*B] in the dtype of the scores, computed in float32 for float16 and bfloat16; at least 0 up to rounding, and `inf`
        where the target has mass on a category whose score is `-inf`.

    Raises:
        ValueError: a target of another shape, a category out of range, a target that is no distribution, or bad scores.
    """
    precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    probs = sparsemax(precise, check=check)
    # A number that is added to all scores changes nothing on paper; large, it would leave few digits of the rest.
    below = precise - precise.detach().amax(-1, keepdim=True)
    wanted = _as_distribution(target, precise, check)
    return _fenchel_young(below, wanted, probs, lambda given: sparsemax(given, check=False)).to(scores.dtype)


def sparsemap_loss(
    scores: Tensor,
    target: Tensor,
    polytope: Polytope,
    *,
    coding: Coding = "bits",
    solver: Solver | None = None,
    check: bool = True,
) -> Tensor:
    """The SparseMAP loss of each row (Niculae et al. 2018, section 4).

    Args:
        scores: [*B, D] float.
        target: the structure wanted, or a point of the polytope, [*B, D].
        polytope, coding, solver, check: see `functional.sparsemap_marginals`. With "pairs" the loss is that of scores
            (1 + t) / 2, and its gradient in t is half of mu* - y.

    Returns:
        [*B] in the dtype of the scores, computed in float64; at least 0 up to rounding if the target lies in the polytope.
        That is not checked but by this: of a point outside the loss may be negative, which with `check` a warning says.

    Raises:
        ValueError: a target of another shape or with NaN, or bad scores.

    Ties: the gradient mu* - y is exact there too; its own derivative, that of the mean, is not.

    Cost: that of the mean, without its structures where `ActiveSet` has a kernel, and without its derivative, which is asked
    for by second derivatives alone: then all is solved again.
    """
    check_dimension(scores, polytope)
    if not isinstance(target, Tensor) or target.shape != scores.shape:
        got = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"sparsemap_loss needs one target a row, a tensor [*B, D] = {list(scores.shape)}, not {got}")
    if check and not cannot_branch(target) and bool(target.isnan().any()):
        raise ValueError("sparsemap_loss: a target holds NaN; targets are structures, or means of some")
    # The mean as it was found, not rounded to the dtype: off the polytope, large scores would count what it is off by.
    shown, wanted = coded(scores.resolve_neg().double(), polytope, coding), target.double()
    mean_of = partial(sparsemap_marginals, polytope=polytope, solver=solver, check=check)
    direct = readable(shown) and readable(wanted)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not direct):  # see `_fenchel_young`
        mean = mean_of(shown)
    loss = _fenchel_young(shown, wanted, mean, mean_of, Parts.of(polytope, scores.device))
    if check and not cannot_branch(loss):
        warn_if_negative(loss.detach(), shown.detach(), mean.detach(), wanted.detach(), polytope)
    return loss.to(scores.dtype)


class SparsemaxLoss(nn.Module):
    """The mean of `functional.sparsemax_loss` over the batch, for `nn.CrossEntropyLoss` on scores [B, K] and targets [B].

    Classes are in the last dimension, as in all of this library; in that of torch they are in dimension 1.

    Args:
        check: see `functional.sparsemax_loss`.
    """

    def __init__(self, check: bool = True) -> None:
        super().__init__()
        self.check = check

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """scores [*B, K], target [*B] int64 or [*B, K] -> scalar."""
        return sparsemax_loss(scores, target, check=self.check).mean()


class SparseMAPLoss(nn.Module):
    """The mean of `functional.sparsemap_loss` over the batch.

    Args:
        polytope, coding, solver, check: see `functional.sparsemap_loss`.
    """

    def __init__(self, polytope: Polytope, coding: Coding = "bits", solver: Solver | None = None, check: bool = True) -> None:
        super().__init__()
        check_polytope(polytope)
        check_coding(coding)
        if solver is not None:
            check_solver(solver, ADMM)
        self.polytope, self.solver = polytope, solver
        self.coding: Coding = coding
        self.check = check

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """scores and target [*B, D] -> scalar."""
        options = {"coding": self.coding, "solver": self.solver, "check": self.check}
        return sparsemap_loss(scores, target, self.polytope, **options).mean()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.polytope}, coding={self.coding!r}, solver={self.solver}"


def _fenchel_young(
    scores: Tensor, target: Tensor, mean: Tensor, mean_of: Callable[[Tensor], Tensor], parts: Parts | None = None
) -> Tensor:
    """The loss [*B] of scores and target [*B, D], given the mean, and how to find it as a function of the scores.

    Its gradient is mean - target at ties, too, where the mean has no derivative: it does not go through the mean, whose own
    derivative serves second derivatives alone.
    """
    if readable(scores) and readable(target):
        loss: Any = _Loss.apply(scores, target, mean.detach(), mean_of, parts)
    else:
        # The second term is 0, and so is its gradient; its second derivative is the mean's first.
        finite, held = torch.where(scores.isneginf(), 0, scores), mean.detach()
        loss = _value(scores, target, held, parts) + ((finite - finite.detach()) * (mean - held)).sum(-1) / 2
    impossible = (scores.isneginf() & (target != 0)).any(-1)
    return torch.where(impossible, torch.inf, loss)


def _value(scores: Tensor, target: Tensor, mean: Tensor, parts: Parts | None) -> Tensor:
    """The loss where it is finite, [*B]; all [*B, D]. Not as a difference of two sums, which large scores would swamp."""
    finite = torch.where(scores.isneginf(), 0, scores)
    linear = (finite * (mean - target)).sum(-1)
    if parts is not None:
        mean, target = mean[..., parts.regularized], target[..., parts.regularized]
    return linear - (mean.square() - target.square()).sum(-1) / 2


class _Loss(torch.autograd.Function):
    """`_value` [*B] as a function of scores and target [*B, D]: dL/dt = mu* - y (Danskin's theorem), dL/dy = y_R - t."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, target: Tensor, mean: Tensor, mean_of: Callable[[Tensor], Tensor], parts: Parts | None
    ) -> Tensor:
        ctx.save_for_backward(scores, target, mean)
        ctx.mean_of, ctx.parts = mean_of, parts
        return _value(scores, target, mean, parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scores, target, mean = ctx.saved_tensors
        outer, forbidden = gradients[0][..., None], scores.isneginf()
        if torch.is_grad_enabled():  # a second derivative is wanted
            mean = ctx.mean_of(scores)
        by_scores = torch.where(forbidden, 0, outer * (mean - target)) if ctx.needs_input_grad[0] else None
        by_target = None
        if ctx.needs_input_grad[1]:
            bent = target if ctx.parts is None else ctx.parts.penalized(target)
            by_target = outer * (bent - torch.where(forbidden, 0, scores))
        return by_scores, by_target, None, None, None


def warn_if_negative(
    loss: Tensor, scores: Tensor, mean: Tensor, target: Tensor, polytope: Polytope, stacklevel: int = 3
) -> None:
    """Warns of targets outside of the polytope where losses are below 0: loss [*B]; scores, mean and target [*B, D] float64."""
    if not (loss < 0).any():
        return
    size = (torch.where(scores.isneginf(), 0, scores).abs() * (mean.abs() + target.abs())).sum(-1) + mean.square().sum(-1)
    negative = loss < -NEGATIVE * (size + target.square().sum(-1))
    if negative.any():
        worst = loss[negative].min().item()
        warnings.warn(
            f"a loss is {worst:.3g}, and for a point of {polytope} it is never negative: unless the solver has not converged, "
            "a target is not in the polytope. A target is a structure, or a mean of structures, with all of its coordinates "
            "(those of transitions, too): `structures` of chains, segmentations and trees writes them",
            stacklevel=stacklevel,
        )


def _as_distribution(target: Tensor, scores: Tensor, check: bool) -> Tensor:
    if not isinstance(target, Tensor):
        raise ValueError(f"sparsemax_loss needs a tensor of targets, not {type(target).__name__}; see torch.tensor")
    seen = check and not cannot_branch(target)
    if target.is_floating_point() and target.shape == scores.shape:
        if seen:
            check_probabilities("sparsemax_loss: float targets", target, "; categories are to be int64")
        return target.to(scores.dtype)
    if target.dtype != torch.int64 or target.shape != scores.shape[:-1]:
        raise ValueError(
            f"sparsemax_loss needs targets {list(scores.shape[:-1])} int64 (categories) or {list(scores.shape)} float "
            f"(distributions), not {list(target.shape)} {target.dtype}"
        )
    categories = scores.shape[-1]
    if seen and target.numel() and (target.min() < 0 or target.max() >= categories):
        raise ValueError(f"sparsemax_loss: categories must lie in 0..{categories - 1}; got {target.min()}..{target.max()}")
    # Not one_hot, which looks at its values: `vmap` cannot.
    return (target[..., None] == torch.arange(categories, device=target.device)).to(scores.dtype)
