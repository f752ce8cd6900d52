"""Costs that are themselves random, such as the 0/1 loss of a guess that is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_costs


@dataclass(frozen=True)
class DrawnCost:
    """What a random cost(z, choice), with choice ~ p(choice | z), came to for structures whose choices were drawn.

    For estimators with `takes_drawn_costs` a cost function may return this in place of a tensor.

    Attributes:
        value: [n] float, without gradient: cost(z, choice).
        log_prob: [n] float, nats: log p(choice | z), differentiable in p's parameters.
        penalty: [n] float: added to the objective with its own gradient, in the units of the cost, and no part of the value.
    """

    value: Tensor
    log_prob: Tensor
    penalty: Tensor


RandomCost = Callable[[Tensor, Tensor], Tensor | DrawnCost]
"""As `Cost`, but may be random."""


def draw_costs(cost: RandomCost, samples: Tensor) -> DrawnCost:
    """Evaluate the cost of [S, B, D] structures; fields [S, B].

    A cost that is not random is a choice of probability 1, all of whose gradient is its own: the penalty then has the
    value's gradient, and is the value's in number too.
    """
    count, batch, dim = samples.shape
    row = torch.arange(batch, device=samples.device).repeat(count)
    costs = cost(samples.reshape(-1, dim).clone(), row)  # which may work in place
    if isinstance(costs, DrawnCost):
        fields = (costs.value.detach(), costs.log_prob, costs.penalty)
        return DrawnCost(*(check_costs(field, len(row)).reshape(count, batch) for field in fields))
    costs = check_costs(costs, len(row)).reshape(count, batch)
    return DrawnCost(costs.detach(), costs.new_zeros(()), costs)
