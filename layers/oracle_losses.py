"""Losses that ask the oracle once for each row: how far the best structure by some scores s is above another one.

    G(s; y) = max_{z in P} <s, z> - <s, y>  >=  0

is convex in s, with gradient z* - y, and needs nothing but `maximize`: with s = t it is the structured perceptron's loss, and
each loss below asks with other scores than t. They find one structure a row, no distribution; that takes a fraction of the time
of the SparseMAP loss (`losses`), whose gradient moves between structures instead of jumping.
"""

import math
import warnings
from numbers import Real

import torch
from torch import Generator, Tensor, nn

from ..kernels import uncompiled
from ..oracles import Explicit, Polytope
from ..oracles.checks import (
    all_finite,
    broadcasts,
    cannot_branch,
    check_count,
    check_dimension,
    check_finite,
    check_polytope,
    outside_transforms,
    refuse_vmap,
)
from ..oracles.contracts import best_allowed, check_allowed, check_structures
from .losses import NEGATIVE, warn_if_negative
from .solvers.oracle import allowed


def structured_hinge_loss(
    scores: Tensor, target: Tensor, polytope: Polytope, *, margin: float | Tensor = 1.0, check: bool = True
) -> Tensor:
    """How far the target is from beating all other structures, each by its distance to it (a structured SVM's loss):

        L(t; y) = max_{z in P} (<t, z> + sum_i m_i |z_i - y_i|) - <t, y>

    (Tsochantaridis et al. 2005, margin rescaling; Taskar et al. 2003). For 0/1 structures the distance, a weighted Hamming
    distance, is linear in z, and the loss asks once, with scores t + m (1 - 2 y). It bounds the distance of the predicted
    structure from the target. A margin of 0 makes it the loss of the structured perceptron (Collins 2002).

    Args:
        scores: t, [*B, D] float. `-inf` forbids the structures with a_i != 0; structures are then taken to be nonnegative.
        target: y, the 0/1 structure wanted, [*B, D] of any dtype.
        polytope: anything with `maximize`, of 0/1 structures.
        margin: m at least 0, in the units of scores: a number, or a tensor that can be expanded to [*B, D], such as 0 where a
            chain's transitions are, to count tags alone. It gets no gradient.
        check: look for NaN, +inf, rows with nothing allowed, and for targets, structures found and tables of `Explicit` that
            are not 0/1 (host synchronisations; never under `torch.compile`).

    Returns:
        [*B] in the dtype of the scores, computed in float64; at least 0 up to rounding, and `inf` where the target has a
        coordinate that is forbidden.

    Raises:
        ValueError: a target of another shape, targets or structures that are not 0/1, a negative margin, or bad scores.

    Warns:
        UserWarning: a loss below 0, which is that of a target outside of the polytope.

    Ties: of several best structures one gives the gradient, a subgradient. Second derivatives are 0.

    Cost: one call of `maximize`.

    >>> from sparsemarg.oracles import Budget
    >>> structured_hinge_loss(torch.tensor([[0.5, 2.0, -1.0]]), torch.tensor([[1, 0, 0]]), Budget(3, 1))
    tensor([3.5000])
    """
    wanted = _target("structured_hinge_loss", scores, target, polytope)
    weights = _margin(margin, scores, check)
    if check:
        check_finite(scores)
        _check_bits("targets", wanted)
    shown, forbidden = allowed(scores.double())
    asked = shown + weights * (1 - 2 * wanted)  # <asked, z - y> is <t, z - y> + <m, |z - y|>, for bits
    best = _best(asked, forbidden, polytope, check)
    if check:
        listed = polytope.vertices() if isinstance(polytope, Explicit) else best
        _check_bits(f"structures of {type(polytope).__name__}", listed.double())
    above = _above(asked, best, wanted, forbidden)
    _warn(check, above, asked, best, wanted, polytope)
    return above.to(scores.dtype)


def perturbed_loss(
    scores: Tensor,
    target: Tensor,
    polytope: Polytope,
    *,
    samples: int = 1,
    scale: float = 1.0,
    generator: Generator | None = None,
    check: bool = True,
) -> Tensor:
    """The Fenchel-Young loss of a maximiser that noise smooths, estimated from S samples (Berthet et al. 2020, section 4):

        L(t; y) = E_e [max_{z in P} <t + e, z> - <t + e, y>],   e ~ N(0, scale^2 I),   dL/dt = E_e[z*(t + e)] - y

    up to a constant of the target, which makes the published loss 0 at its minimum. Each sample is at least 0, and the estimate
    and its gradient are unbiased. Of a target that is a mean of structures the loss is that of learning from unlabelled
    solutions: it is least where the mean of the perturbed maximisers is the target.

    Args:
        scores: t, [*B, D] float. `-inf` forbids the structures with a_i != 0; structures are then taken to be nonnegative.
        target: y, a structure, or a mean of structures, [*B, D].
        polytope: anything with `maximize`.
        samples: S, at least 1, of each row.
        scale: above 0, in the units of scores: the standard deviation of the noise.
        generator: of the noise, on the device of the scores; torch's own by default.
        check: look for NaN, +inf and rows with nothing allowed (host synchronisations; never under `torch.compile`).

    Returns:
        [*B] in the dtype of the scores, computed in float64; `inf` where the target has a coordinate that is forbidden.

    Raises:
        ValueError: a target of another shape, samples or a scale out of range, or bad scores.

    Warns:
        UserWarning: a sample below 0, which is that of a target outside of the polytope.

    Ties: have probability 0. Second derivatives are 0, which are not those of the expectation.

    Cost: one call of `maximize` with S times as many rows, and O(S B D) memory.

    >>> from sparsemarg.oracles import Budget
    >>> scores = torch.tensor([[9.0, 0.0, -9.0]])
    >>> perturbed_loss(scores, torch.tensor([[1, 0, 0]]), Budget(3, 1), samples=8, scale=0.1)
    tensor([0.])
    """
    wanted = _target("perturbed_loss", scores, target, polytope)
    _check_noise(samples, scale)
    refuse_vmap(scores, "perturbed_loss")
    if check:
        check_finite(scores)
        _check_numbers("perturbed_loss: targets", wanted)
    shown, forbidden = allowed(scores.double())
    noise = torch.randn(samples, *scores.shape, dtype=torch.float64, device=scores.device, generator=generator)
    asked = shown + scale * noise
    best = _best(asked, forbidden, polytope, check)
    above = _above(asked, best, wanted, forbidden)
    _warn(check, above, asked, best, wanted, polytope)
    return above.mean(0).to(scores.dtype)


def spo_plus_loss(
    scores: Tensor, values: Tensor, polytope: Polytope, *, best: Tensor | None = None, check: bool = True
) -> Tensor:
    """The SPO+ loss: a convex bound on what is lost by choosing structures by predicted scores instead of by their true values.

        L(t; w) = max_{z in P} <2 t - w, z> - <2 t - w, z*(w)>  >=  <w, z*(w)> - <w, z*(t)>,   z*(w) = argmax_{z in P} <w, z>

    (Elmachtoub and Grigas 2022, Definition 3, for maximisation: scores and values are minus their costs). What it bounds is
    `regret`; its gradient is 2 (z*(2 t - w) - z*(w)).

    Args:
        scores: t, [*B, D] float: predictions of the values. `-inf` forbids the structures with a_i != 0, which are then taken
            to be nonnegative.
        values: w, [*B, D] float, finite: what the parts of a structure are really worth.
        polytope: anything with `maximize`.
        best: z*(w), [*B, D], if it has been found before: data that are seen many times need it once.
        check: look for NaN, infinities and rows with nothing allowed (host synchronisations; never under `torch.compile`).

    Returns:
        [*B] in the dtype of the scores and the units of the values, computed in float64; at least 0 up to rounding.

    Raises:
        ValueError: values, or `best`, of another shape, or bad scores.

    Ties: of several best structures one gives the gradient, a subgradient. Second derivatives are 0. No gradient reaches the
    values.

    Cost: two calls of `maximize`; one with `best`.

    >>> from sparsemarg.oracles import Budget
    >>> values = torch.tensor([[1.0, 2.0, 3.0]])
    >>> spo_plus_loss(torch.zeros(1, 3), values, Budget(3, 1)), regret(torch.tensor([[1.0, 0.0, 0.0]]), values, Budget(3, 1))
    (tensor([3.]), tensor([2.]))
    """
    shown, forbidden, worth, chosen = _decided("spo_plus_loss", scores, values, polytope, best, check)
    asked = 2 * shown - worth
    found = _best(asked, forbidden, polytope, check)
    above = _above(asked, found, chosen, forbidden)
    _warn(check, above, asked, found, chosen, polytope)
    return above.to(scores.dtype)


def regret(scores: Tensor, values: Tensor, polytope: Polytope, *, best: Tensor | None = None, check: bool = True) -> Tensor:
    """What is lost by choosing a best structure by scores instead of by values: <w, z*(w)> - <w, z*(t)>, without gradient.

    Arguments and errors are those of `spo_plus_loss`. [*B] in the dtype of the scores, in the units of the values, at least 0
    up to rounding. Its sum over a test set, divided by that of |<w, z*(w)>|, is the normalised regret that papers report. Where
    several structures are best by the scores, that which `maximize` returns counts, not the worst of them. Below 0, `best` is
    not what it is to be, of which a warning tells.
    """
    shown, forbidden, worth, chosen = _decided("regret", scores, values, polytope, best, check)
    found = _best(shown.detach(), forbidden, polytope, check)
    lost = _above(worth, chosen, found, None)
    if check and not cannot_branch(lost) and (lost < -NEGATIVE * (worth.abs() * (chosen.abs() + found.abs())).sum(-1)).any():
        warnings.warn(
            f"a regret is {lost.min().item():.3g}, so that structures given as `best` are not: they are to be those of highest "
            f"value by `values`",
            stacklevel=2,
        )
    if forbidden is not None:
        lost = torch.where((forbidden & (chosen != 0)).any(-1), torch.inf, lost)
    return lost.to(scores.dtype)


class StructuredHingeLoss(nn.Module):
    """The mean of `functional.structured_hinge_loss` over the batch.

    Args:
        polytope, check: see `functional.structured_hinge_loss`.
        margin: likewise; the same for all rows, a number or [D].
    """

    def __init__(self, polytope: Polytope, margin: float | Tensor = 1.0, check: bool = True) -> None:
        super().__init__()
        check_polytope(polytope)
        _margin(margin, torch.empty(1, polytope.dim), True)
        # A tensor is no buffer, which `module.half()` would round.
        self.polytope, self.margin, self.check = polytope, margin, check

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """scores and target [*B, D] -> scalar."""
        return structured_hinge_loss(scores, target, self.polytope, margin=self.margin, check=self.check).mean()

    def extra_repr(self) -> str:
        """The arguments."""
        shown = list(self.margin.shape) if isinstance(self.margin, Tensor) and self.margin.dim() else float(self.margin)
        return f"{self.polytope}, margin={shown}"


class PerturbedLoss(nn.Module):
    """The mean of `functional.perturbed_loss` over the batch.

    Args:
        polytope, samples, scale, check: see `functional.perturbed_loss`.
    """

    def __init__(self, polytope: Polytope, samples: int = 1, scale: float = 1.0, check: bool = True) -> None:
        super().__init__()
        check_polytope(polytope)
        _check_noise(samples, scale)
        self.polytope, self.samples, self.scale, self.check = polytope, samples, scale, check

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """scores and target [*B, D] -> scalar."""
        options = {"samples": self.samples, "scale": self.scale, "check": self.check}
        return perturbed_loss(scores, target, self.polytope, **options).mean()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.polytope}, samples={self.samples}, scale={self.scale}"


class SPOPlusLoss(nn.Module):
    """The mean of `functional.spo_plus_loss` over the batch.

    Args:
        polytope, check: see `functional.spo_plus_loss`.
    """

    def __init__(self, polytope: Polytope, check: bool = True) -> None:
        super().__init__()
        check_polytope(polytope)
        self.polytope, self.check = polytope, check

    def forward(self, scores: Tensor, values: Tensor, best: Tensor | None = None) -> Tensor:
        """scores, values and, if it is known, the best structures by the values, all [*B, D] -> scalar."""
        return spo_plus_loss(scores, values, self.polytope, best=best, check=self.check).mean()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.polytope}"


def _above(asked: Tensor, best: Tensor, other: Tensor, forbidden: Tensor | None) -> Tensor:
    """<asked, best - other>, [..., D] -> [...], `inf` where the other structure is not allowed.

    Not a difference of two sums, which large scores would swamp.
    """
    above = (asked * (best - other)).sum(-1)
    return above if forbidden is None else torch.where((forbidden & (other != 0)).any(-1), torch.inf, above)


@uncompiled
def _best(asked: Tensor, forbidden: Tensor | None, polytope: Polytope, check: bool) -> Tensor:
    """A structure of maximal score for each row of asked [..., D], of forbidden [*B, D] the same for all that come before."""
    with outside_transforms(asked, "a loss that asks the oracle") as values:
        shape = values.shape  # a copy, for an oracle may work in place
        rows = values.reshape(math.prod(shape[:-1]), polytope.dim).clone()
        banned = None if forbidden is None else forbidden.detach().expand(shape).reshape(rows.shape)
        best = best_allowed(polytope, rows, banned)
        if check:
            check_structures(polytope, best)
            check_allowed(polytope, best, banned)
        return best.clone().reshape(shape)  # an oracle may use its output's memory again


def _warn(check: bool, above: Tensor, asked: Tensor, best: Tensor, other: Tensor, polytope: Polytope) -> None:
    """Of targets outside of the polytope, where the losses [...] of scores asked [..., D] tell."""
    if check and not cannot_branch(above):
        warn_if_negative(above.detach(), asked.detach(), best, other.detach().expand(asked.shape), polytope, stacklevel=4)


def _decided(
    name: str, scores: Tensor, values: Tensor, polytope: Polytope, best: Tensor | None, check: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Scores in float64, where they forbid something, values w in float64, and z*(w); all [*B, D]."""
    worth = _target(name, scores, values, polytope, "values").detach()
    if check:
        check_finite(scores)
        _check_numbers(f"{name}: values", worth)
    shown, forbidden = allowed(scores.double())
    if best is None:
        return shown, forbidden, worth, _best(worth, forbidden, polytope, check)
    known = _target(name, scores, best, polytope, "best").detach()
    if check:
        _check_numbers(f"{name}: best", known)
    return shown, forbidden, worth, known


def _target(name: str, scores: Tensor, target: Tensor, polytope: Polytope, what: str = "target") -> Tensor:
    """The target in float64, or a ValueError unless there is one for each row of scores [*B, D]."""
    check_dimension(scores, polytope)
    if not isinstance(target, Tensor) or target.shape != scores.shape or target.is_complex():
        got = f"{list(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"{name} needs {what} for each row, real numbers [*B, D] = {list(scores.shape)}, not {got}")
    return target.double()


def _margin(margin: float | Tensor, scores: Tensor, check: bool) -> Tensor:
    """The margin in float64, or a ValueError unless it is at least 0, finite, and can be expanded to scores [*B, D]."""
    name = "structured_hinge_loss: margin"
    if not isinstance(margin, (Real, Tensor)) or (isinstance(margin, Tensor) and margin.is_complex()):
        raise ValueError(f"{name} must be a real number, or a tensor of such, not {margin!r}")
    weights = torch.as_tensor(
        margin if isinstance(margin, Tensor) else float(margin), dtype=torch.float64, device=scores.device
    ).detach()
    if not broadcasts(weights.shape, scores.shape):
        raise ValueError(f"{name} must be a number or expand to [*B, D] = {list(scores.shape)}, not {list(weights.shape)}")
    if check and not cannot_branch(weights) and not (all_finite(weights) and (weights >= 0).all()):
        raise ValueError(f"{name} must be at least 0 and finite, not {margin}")
    return weights


def _check_bits(what: str, structures: Tensor) -> None:
    """Raises ValueError unless structures [..., D] float64 are of zeros and ones: in between, squares are less than numbers."""
    if cannot_branch(structures) or structures.numel() == 0:
        return
    flat = structures.detach().flatten()
    low, high = flat.aminmax()
    if not ((low >= 0) & (high <= 1) & (flat.sum() == flat.dot(flat))):
        raise ValueError(
            f"structured_hinge_loss: {what} must be of zeros and ones, for only then is the distance to the target linear; use "
            f"sparsemap_loss or perturbed_loss"
        )


def _check_numbers(what: str, given: Tensor) -> None:
    if not cannot_branch(given) and not all_finite(given):
        raise ValueError(f"{what} must be finite; to forbid a part of structures, let its score be -inf")


def _check_noise(samples: int, scale: float) -> None:
    check_count("perturbed_loss: samples", samples, 1)
    if not isinstance(scale, Real) or not 0 < float(scale) < math.inf:
        raise ValueError(f"perturbed_loss: scale must be above 0 and finite, not {scale!r}")
