"""Checks of what estimators are given: scores, and what a cost returned."""

from torch import Tensor

from ...oracles import Polytope
from ...oracles.checks import check_dimension


def check_batch(scores: Tensor, polytope: Polytope) -> None:
    """Raises ValueError unless scores are a float tensor [B, D] for the polytope."""
    check_dimension(scores, polytope)
    if scores.dim() != 2:
        raise ValueError(
            f"estimators take scores [B, {polytope.dim}], one row an example, not {list(scores.shape)}; reshape them, and the "
            f"examples that the cost is told by `row` with them"
        )


def check_costs(costs: object, count: int) -> Tensor:
    """What a cost returned for so many pairs, or a ValueError unless that is a float tensor [count]."""
    if isinstance(costs, Tensor) and costs.shape == (count,) and costs.is_floating_point():
        return costs
    got = f"{list(costs.shape)} {costs.dtype}" if isinstance(costs, Tensor) else type(costs).__name__
    is_random = hasattr(costs, "log_prob")
    advice = "; a random cost is for estimators with `takes_drawn_costs`, such as ScoreFunction" if is_random else ""
    raise ValueError(f"the cost must return one number a pair, a float tensor [{count}], not {got}{advice}")
