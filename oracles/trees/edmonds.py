"""Maximum spanning arborescences by Chu-Liu and Edmonds, for a whole batch of graphs at once."""

from typing import NamedTuple

import torch
from torch import Tensor


class _Round(NamedTuple):
    """What one round chose, for each component (numbered by one of its nodes, its representative), [B, N] each.

    Attributes:
        component: of each node.
        word, head: the ends of the best arc into the component.
        on_cycle: whether following these arcs upwards leads back to it.
        merged: the component that it becomes a part of.
    """

    component: Tensor
    word: Tensor
    head: Tensor
    on_cycle: Tensor
    merged: Tensor


def best_arborescence(weights: Tensor, present: Tensor, *, single_root: bool = False) -> tuple[Tensor, Tensor]:
    """The arborescence of highest weight from node 0 to all present nodes (Chu and Liu 1965; Edmonds 1967).

    Each round takes the best arc into every component, makes each cycle that appears a component of its own, and lowers the
    weights of arcs into it by what they replace. Where no cycle is left, components are opened again, last first: one that is
    entered at a node keeps its cycle but for the arc to that node. All cycles of all graphs are treated together.

    With `single_root`, trees with fewer arcs from node 0 come first, whatever their weight: pairs (number of such arcs,
    weight) are ordered lexicographically, so no large constant eats digits.

    Args:
        weights: [B, N, N] float by (head, node); `-inf` where there is no arc. Node 0's column and the diagonal are not read.
        present: [B, N] bool, the nodes to reach; node 0 is there always.

    Returns:
        heads [B, N] int64, -1 for node 0 and absent ones, and found [B] bool: whether there is an arborescence (with
        `single_root`, one with a single arc from node 0). Ties: first the lower head, then the lower node of a component.

    Cost: O(N^2) and one host synchronisation a round, at most N - 1 rounds, usually far fewer.
    """
    batch, size = present.shape
    node = torch.arange(size, device=weights.device)
    present = present | (node == 0)
    arc = present[:, :, None] & present[:, None] & (weights > -torch.inf) & (node != 0) & (node[:, None] != node)
    weights = torch.where(arc, weights, -torch.inf)
    # What is compared before the weight: minus the number of arcs from the root, if that is to be small.
    first = torch.where(arc, -(single_root * (node == 0).to(weights))[:, None], -torch.inf)
    component = node.expand(batch, -1)
    found = torch.ones(batch, dtype=torch.bool, device=weights.device)
    rounds: list[_Round] = []
    while True:
        level = _best_of_component(first.amax(1), component)
        among = first == level.gather(1, component)[:, None]
        value, head = weights.masked_fill(~among, -torch.inf).max(1)
        value_of = _best_of_component(value, component)
        enters = (value == value_of.gather(1, component)) & (value > -torch.inf)
        word = torch.full_like(component, size).scatter_reduce(1, component, torch.where(enters, node, size), "amin")
        reached = word < size
        found = found & (reached | (component != node) | (node == 0) | ~present).all(-1)
        word = torch.where(reached, word, 0)
        head = torch.where(reached, head.gather(1, word), 0)
        on_cycle, lowest = _cycles(torch.where(reached, component.gather(1, head), 0))
        rounds.append(_Round(component, word, head, on_cycle, torch.where(on_cycle, lowest, node)))
        if not bool(on_cycle.any()):
            break
        inside = on_cycle.gather(1, component)[:, None]
        weights = torch.where(inside, weights - value_of.gather(1, component)[:, None], weights)
        first = torch.where(inside, first - level.gather(1, component)[:, None], first)
        component = rounds[-1].merged.gather(1, component)
        within = component[:, :, None] == component[:, None]
        weights, first = weights.masked_fill(within, -torch.inf), first.masked_fill(within, -torch.inf)
    head = _opened(rounds)
    if single_root:
        found = found & (((head == 0) & (node > 0) & present).sum(-1) == 1)
    return torch.where(present & (node > 0), head, -1), found


def _best_of_component(values: Tensor, component: Tensor) -> Tensor:
    """The largest value [B, N] of each component's nodes, at its representative; -inf elsewhere."""
    return torch.full_like(values, -torch.inf).scatter_reduce(1, component, values, "amax")


def _cycles(parent: Tensor) -> tuple[Tensor, Tensor]:
    """Which nodes are on a cycle of parent [B, N], not counting that of node 0, and the lowest node of their cycle."""
    lowest = torch.arange(parent.shape[1], device=parent.device).expand_as(parent)
    for _ in range(parent.shape[1].bit_length()):
        lowest = torch.minimum(lowest, lowest.gather(1, parent))
        parent = parent.gather(1, parent)
    # After at least N steps up, one is on a cycle; and all of its nodes are reached, from one another.
    on_cycle = torch.zeros_like(parent, dtype=torch.bool).scatter(1, parent, True)
    on_cycle[:, 0] = False
    return on_cycle, lowest


def _opened(rounds: list[_Round]) -> Tensor:
    """The head of every node [B, N], from what the rounds chose."""
    word, head = rounds[-1].word, rounds[-1].head
    for one in reversed(rounds[:-1]):
        outer_word, outer_head = word.gather(1, one.merged), head.gather(1, one.merged)
        own = torch.arange(word.shape[1], device=word.device)
        broken = ~one.on_cycle | (one.component.gather(1, outer_word) == own)
        word, head = torch.where(broken, outer_word, one.word), torch.where(broken, outer_head, one.head)
    return head
