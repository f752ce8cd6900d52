"""Sets of items that fit into a knapsack."""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..placement import lasting, traced
from ..row_kernels import best_in_rows
from .derivations import Derivations
from .hyperedges import Edge
from .hypergraph import Hypergraph

# Nodes of a graph that are made in less than half a second.
FEW = 10_000


class Knapsack(Derivations):
    """conv{z in {0,1}^D : <weights, z> <= capacity}, for integer weights: 0/1 knapsack (Bellman 1957).

    `Budget` is the case of equal weights, and faster.

    Args:
        weights: of the items, integers >= 0: list or tensor [D].
        capacity: integer >= 0.

    Raises:
        ValueError: weights or capacity that are not integers, or negative.

    Cost: O(D C) a row for C = min(capacity, sum of the weights). What needs the graph (`topk`, `gibbs`, and `maximize` without
    Numba, on a GPU, or compiled) has as many nodes, made in Python: at once if they are few, else when it is first asked for.

    >>> import torch
    >>> Knapsack([3, 2, 2], capacity=4).maximize(torch.tensor([[5.0, 3, 3]]))
    tensor([[0., 1., 1.]])
    """

    @lasting
    def __init__(self, weights: Sequence[int] | Tensor, capacity: int) -> None:
        listed = weights.tolist() if isinstance(weights, Tensor | np.ndarray) else weights
        if not isinstance(listed, Iterable) or isinstance(listed, str):
            raise ValueError(f"Knapsack needs the weights of the items, e.g. [2, 3, 1], not {weights!r}")
        self.weights = tuple(_whole(f"weight {place}", weight) for place, weight in enumerate(listed))
        self.capacity = _whole("capacity", capacity)
        if not self.weights:
            raise ValueError("Knapsack needs one or more items")
        self.dim, self._size = len(self.weights), min(self.capacity, sum(self.weights)) + 1
        # None that is larger than this fits, be it ever so large.
        self._clipped = [min(weight, self._size) for weight in self.weights]
        if self.dim * self._size <= FEW:
            _ = self.graph

    @cached_property
    @lasting
    def graph(self) -> Hypergraph:
        """Node i size + c: the first i items weigh c together.

        Raises:
            RuntimeError: it is first asked for while code is compiled or exported, or inside of a `torch.func` transform.
        """
        if traced():
            raise RuntimeError(
                f"{self!r} is large, and makes its graph when that is first asked for, which cannot be while code is compiled "
                "or transformed: write `polytope.graph` once before"
            )
        dim, size = self.dim, self._size
        edges = [Edge(0)]
        for item, weight in enumerate(self.weights):
            for used in range(size):
                edges.append(Edge((item + 1) * size + used, (item * size + used,)))
                if used >= weight:
                    edges.append(Edge((item + 1) * size + used, (item * size + used - weight,), (item,)))
        goal = (dim + 1) * size
        edges += [Edge(goal, (dim * size + used,)) for used in range(size)]
        return Hypergraph(dim, edges, goal)

    def maximize(self, scores: Tensor) -> Tensor:
        """The best set; O(D C) a row. Ties: of two sets the one without the last item that is in one of them alone."""
        weights = torch.tensor(self._clipped)
        found = best_in_rows("knapsack_rows", self, scores, (), (weights, self._size), passes=self._size)
        return super().maximize(scores) if found is None else found

    def __repr__(self) -> str:
        return f"Knapsack(weights={list(self.weights)}, capacity={self.capacity})"

    def row_oracle(self, scores: Tensor) -> tuple[Any, ...]:
        """For compiled solvers: see `row_kernels.row_oracle`."""
        from ..kernels.knapsack_rows import Fitting

        return Fitting(np.array(self._clipped), self._size)


def _whole(what: str, given: Any) -> int:
    number = given.item() if isinstance(given, Tensor | np.ndarray | np.generic) and math.prod(given.shape) == 1 else given
    try:
        whole = -1 if isinstance(number, bool) else int(number)
    except (TypeError, ValueError, OverflowError):  # not a number; NaN; infinity
        whole = -1
    if whole < 0 or whole != number:
        raise ValueError(
            f"Knapsack needs integers of at least 0, but its {what} is {number!r}: scale and round weights and capacity"
        )
    return whole
