"""The interface of everything that evaluates an expected cost over latent structures, and its gradient."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import SparseDistribution
from ...oracles import GibbsDistribution, Polytope
from ...oracles.contracts import best_allowed
from .checks import check_costs

Cost = Callable[[Tensor, Tensor], Tensor]
"""cost(atoms [n, D], row [n]) -> [n]: the cost of structure `atoms[i]` for the example number `row[i]` of the batch."""


@dataclass(frozen=True)
class Estimate:
    """An expected cost E_{z ~ q}[cost(z)] of each example of a batch, and what is known of q.

    Attributes:
        value: [B] float, detached: the (estimated) expected cost, in the units of the cost.
        surrogate: [B] float, equal to `value`: `surrogate.mean().backward()` gives the (estimated) gradient of the
            expected cost's mean. A Monte Carlo estimator's gradient is not that of its value: see `with_gradient_of`.
        entropy: [B] float, nats, differentiable: H(q).
        evaluations: how many (example, structure) pairs the cost was evaluated on.
        support: [B] int64: how many structures of each example had mass, or were drawn.
        mode: [B, D] float: the most probable structure of each example.
    """

    value: Tensor
    surrogate: Tensor
    entropy: Tensor
    evaluations: int
    support: Tensor
    mode: Tensor


class Estimator(nn.Module, ABC):
    """Turns scores of structures and a cost of structures into an expected cost with a gradient.

    A model is written once against this class; which estimator it gets is an argument of its constructor.

    Attributes:
        dim: the D of its structures, where it is known before scores come; None otherwise.
        takes_drawn_costs: whether the cost may be random and return `DrawnCost`.
    """

    dim: int | None = None
    takes_drawn_costs: bool = False

    @abstractmethod
    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        """Estimate E_{z ~ q(scores)}[cost(z)] for each example.

        Args:
            scores: [B, D] float.
            cost: called with structures [n, D] and their example numbers [n]; returns [n].
            context: [B, ...], what the scores were computed from, for estimators with a learned baseline.
        """

    @abstractmethod
    def distribution(self, scores: Tensor) -> SparseDistribution | GibbsDistribution:
        """q(z | scores), which the expected cost and the entropy are about; for samples and log-probabilities without bias.

        Sparse where a sparse layer makes it, a Gibbs distribution where the estimator draws or relaxes: the discrete one
        then, whatever the temperature.
        """


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor that equals `value` and has the gradient of `surrogate`, so that a logged loss is the expected cost."""
    return value.detach() + (surrogate - surrogate.detach())


def checked_cost(cost: Cost) -> Cost:
    """The cost, with a ValueError where it returns something else than a float a pair."""

    def evaluate(atoms: Tensor, row: Tensor) -> Tensor:
        return check_costs(cost(atoms, row), len(row))

    return evaluate


def cost_of_samples(cost: Cost, samples: Tensor) -> Tensor:
    """The costs [S, B] of S structures of each example, samples [S, B, D], in one call of the cost."""
    count, batch, dim = samples.shape
    row = torch.arange(batch, device=samples.device).repeat(count)
    own = samples.reshape(-1, dim).clone()  # the cost may work in place
    return checked_cost(cost)(own, row).reshape(count, batch)


def warn_without_slope(costs: Tensor, sample: Tensor, name: str) -> None:
    """Warns if costs are computed without the sample, by the graph that derivatives take: the scores then get no gradient."""
    waiting, seen = [costs.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node is sample.grad_fn:
            return
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    warnings.warn(
        f"{name} takes the cost's derivative in the structure, and this cost has none (does it look up a table by argmax?), so "
        f"the scores get no gradient: use ScoreFunction, or a cost that multiplies with the structure",
        RuntimeWarning,
        stacklevel=5,  # who called the estimator, a module
    )


def estimate_of_one_sample(costs: Tensor, surrogate: Tensor, entropy: Tensor, mode: Tensor) -> Estimate:
    """The `Estimate` of an estimator that calls the cost once an example: all [B], and mode [B, D]."""
    support = torch.ones(len(costs), dtype=torch.int64, device=costs.device)
    return Estimate(costs.detach(), surrogate, entropy, len(costs), support, mode)


def most_probable(polytope: Polytope, scores: Tensor) -> Tensor:
    """The structure of highest score, which is the mode of exp <a_z, t>: [B, D] -> [B, D], without gradient."""
    precise = scores.detach().double()
    return best_allowed(polytope, precise, precise.isneginf()).to(scores.dtype)
