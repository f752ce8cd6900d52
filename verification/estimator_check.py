"""The gradient of an estimator of an expected cost, against the exact gradient by enumeration."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..layers import SparseDistribution
from ..oracles import Polytope, SupportsGibbs, SupportsVertices, supports
from ..oracles.base import missing
from ..oracles.checks import check_count, check_dimension
from .harness import versions
from .ledger import Ledger
from .report import Report, Result

if TYPE_CHECKING:
    from ..models.estimators import Estimator

Cost = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["deterministic", "unbiased", "biased"]

# The library's promise for gradients, and what an unbiased mean of many draws may be off by, in standard errors.
EXACT = 1e-6
STANDARD_ERRORS = 4.0
# Draws whose gradients all agree to this are no draws: the estimator is deterministic.
_SAME = 1e-12


def model_check(
    estimator: "Estimator",
    polytope: Polytope,
    cost: Cost,
    *,
    scores: Tensor | None = None,
    probs: Callable[[Tensor], Tensor] | None = None,
    kind: Kind = "deterministic",
    draws: int = 2000,
    rows: int = 3,
    seed: int = 0,
    context: Tensor | None = None,
) -> Report:
    """Compares d/dt of an estimator's `surrogate` with d/dt sum_z q(z; t) cost(z), summed over all structures.

    Args:
        estimator: called as `estimator(scores, cost, context=context)`.
        polytope: small, with `vertices`.
        cost: cost(structures [n, D], row [n]) -> [n].
        scores: [B, D]; random normal by default.
        probs: the estimator's own distribution q: scores [B, D] -> probabilities of `polytope.vertices()` [B, V],
            differentiable. By default that of the estimator's `layer`, if it has one that returns a `SparseDistribution`, else
            the polytope's `gibbs`.
        kind: "deterministic": equal to 1e-6. "unbiased": the mean over the draws within 4 standard errors, in every
            coordinate. "biased": the bias is measured and reported, and nothing is compared.
        draws: how many times a stochastic estimator is called.
        rows: B of random scores.
        seed: of the scores and of the draws.
        context: passed on.

    Returns:
        A report of the checks "value" and "gradient".

    Raises:
        ValueError: the polytope does not list its `vertices`, or q is not known, or has mass on what is none of them; scores of
            another shape, an unknown kind, fewer than 2 draws of one that is not deterministic, no rows.

    The standard error is measured from the draws themselves, so a coordinate that never varies must be exact. With 4 standard
    errors and as many coordinates as a small polytope has, a correct estimator fails about once in 16000 coordinates; the
    seed is fixed, so it fails always or never.
    """
    if not supports(polytope, SupportsVertices):
        raise missing(polytope, SupportsVertices, "model_check")
    table = polytope.vertices()
    if kind not in get_args(Kind):
        raise ValueError(f"model_check: kind must be one of {', '.join(map(repr, get_args(Kind)))}, not {kind!r}")
    if kind != "deterministic":
        check_count("model_check: draws", draws, 2)
    if scores is None:
        check_count("model_check: rows", rows, 1)
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(rows, polytope.dim, generator=generator, dtype=torch.float64)
    check_dimension(scores, polytope)
    if scores.dim() != 2 or len(scores) == 0:
        raise ValueError(f"model_check: scores must be [B, {polytope.dim}] with B >= 1, not {list(scores.shape)}")
    leaf = scores.detach().clone().requires_grad_()
    value, exact = _exact(_distribution(estimator, polytope, probs), table, cost, leaf)
    count = 1 if kind == "deterministic" else draws
    values, gradients = _draw(estimator, cost, leaf, context, count, seed)
    return Report(
        f"{type(estimator).__name__} on {polytope!r}",
        (
            _compare("value", values, value, kind),
            _compare("gradient", gradients, exact, kind),
        ),
        versions(),
        {"kind": kind, "draws": str(count), "seed": str(seed)},
    )


def _distribution(
    estimator: "Estimator", polytope: Polytope, probs: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    assert supports(polytope, SupportsVertices)
    table = polytope.vertices()
    if probs is not None:
        return probs
    layer = getattr(estimator, "layer", None)
    if callable(layer):
        return lambda scores: _listed(layer(scores), table)  # pyright: ignore[reportArgumentType]
    if supports(polytope, SupportsGibbs):
        return lambda scores: polytope.gibbs(scores).log_prob(table.to(scores)[:, None].expand(-1, len(scores), -1)).exp().T
    raise ValueError(
        f"model_check does not know the distribution of {type(estimator).__name__}: pass probs, a function of scores [B, D] "
        f"that returns the probabilities of polytope.vertices() [B, V]"
    )


def _listed(found: SparseDistribution, table: Tensor) -> Tensor:
    """A sparse distribution as probabilities of listed structures, [B, V]."""
    same = (found.atoms[:, None] == table.to(found.atoms)).all(-1)
    if not same.any(-1).all():
        atom = found.atoms[~same.any(-1)][0].tolist()
        raise ValueError(f"model_check: the estimator's layer found {atom}, which is none of polytope.vertices()")
    which = same.to(torch.int8).argmax(-1)
    empty = found.probs.new_zeros(found.batch_shape.numel(), len(table))
    return empty.index_put((found.row, which), found.probs, accumulate=True)


def _exact(probs: Callable[[Tensor], Tensor], table: Tensor, cost: Cost, leaf: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """E_q[cost] [B] and its gradient in the scores [B, D], every structure of every row."""
    batch, count = len(leaf), len(table)
    atoms = table.to(leaf).repeat(batch, 1)
    row = torch.arange(batch).repeat_interleave(count)
    costs = cost(atoms, row).detach().reshape(batch, count)
    expected = (probs(leaf) * costs).sum(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    return expected.detach().numpy(), gradient.numpy()


def _draw(
    estimator: "Estimator", cost: Cost, leaf: Tensor, context: Tensor | None, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values [n, B] and gradients [n, B, D] of n calls; the global random state is put back."""
    values, gradients = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(count):
            estimate = estimator(leaf, cost, context=context)
            (gradient,) = torch.autograd.grad(estimate.surrogate.sum(), leaf, allow_unused=True)
            values.append(estimate.value.detach().numpy())
            gradients.append(np.zeros(leaf.shape) if gradient is None else gradient.numpy())
    return np.stack(values), np.stack(gradients)


def _compare(name: str, draws: np.ndarray, exact: np.ndarray, kind: Kind) -> Result:
    ledger = Ledger()
    mean = draws.mean(0)
    off = np.abs(mean - exact).reshape(len(exact), -1)
    if kind == "deterministic":
        ledger.compare("enumeration", off.max(-1), EXACT, f"the {name}")
    else:
        error = (draws.std(0, ddof=1) / np.sqrt(len(draws))).reshape(len(exact), -1)
        # Where draws agree there is no noise to hide in: a difference above rounding is infinitely many standard errors.
        away = np.where(off <= _SAME + EXACT * (error <= _SAME), 0, off / np.maximum(error, 1e-300))
        if kind == "biased":
            ledger.note(
                f"bias of the {name}: largest {off.max():.2e}, {away.max():.1f} standard errors; largest exact "
                f"{np.abs(exact).max():.2e}"
            )
            return Result(name, "skipped", "biased by its author's word: nothing is claimed", notes=tuple(ledger.notes))
        ledger.compare("enumeration (standard errors)", away.max(-1), STANDARD_ERRORS, f"the mean {name}")
    failed = bool(ledger.failures)
    message = ledger.failures[0][1] if failed else ""
    return Result(name, "failed" if failed else "passed", message, comparisons=ledger.comparisons)
