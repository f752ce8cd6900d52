"""Heaviest spanning forests, for a whole batch of weights at once."""

import torch
from torch import Tensor


def heaviest_forest(scores: Tensor, order: Tensor, ends: Tensor, nodes: int) -> Tensor:
    """The heaviest of the forests that join all that can be joined, by Borůvka's algorithm (1926), [B, D] bool.

    Every piece takes the best edge that leaves it, and becomes one with the piece at the other end; until no edge leaves any.
    Edges are compared by their place in the order: no two are equal, so no cycle closes, and the forest is that of Kruskal's
    algorithm.

    Args:
        scores: [B, D]; edges that score `-inf` are not there.
        order: the edges of each row, best first, [B, D] int64.
        ends: the nodes that each edge joins, [D, 2] int64.
        nodes: V.

    Ties: as in the order. Cost: log V rounds of O(D + V log V) a row; none of them waits for values.
    """
    batch, dim = scores.shape
    place = torch.zeros_like(order).scatter(-1, order, torch.arange(dim, device=scores.device).expand(batch, -1))
    place = torch.where(scores > -torch.inf, place, dim)
    # What comes at place D is no edge.
    order, ends = torch.nn.functional.pad(order, (0, 1), value=dim), torch.nn.functional.pad(ends, (0, 0, 0, 1))
    chosen = torch.zeros(batch, dim + 1, dtype=torch.bool, device=scores.device)
    piece = torch.arange(nodes, device=scores.device).expand(batch, -1)  # of each node: one node speaks for a piece
    unfinished = nodes
    while unfinished > 1:
        sides = piece[:, ends]  # [B, D + 1, 2]
        leaving = torch.where(sides[:, :dim, 0] != sides[:, :dim, 1], place, dim)
        best = torch.full_like(piece, dim)
        for side in range(2):
            best = best.scatter_reduce(-1, sides[:, :dim, side], leaving, "amin")
        edge = order.gather(-1, best)
        chosen = chosen.scatter(-1, edge, True)
        one, other = (sides[..., side].gather(-1, edge) for side in range(2))
        itself = torch.arange(nodes, device=scores.device).expand(batch, -1)
        beyond = torch.where(best < dim, torch.where(one == itself, other, one), itself)
        piece = _ends_of_chains(beyond, unfinished).gather(-1, piece)
        unfinished //= 2  # each has become one with another
    return chosen[:, :dim]


def _ends_of_chains(beyond: Tensor, longest: int) -> Tensor:
    """Where one ends that always goes on to the piece beyond, [B, V]: of two that lead to each other, at the lower.

    Args:
        beyond: [B, V].
        longest: chains have no more pieces than that.
    """
    itself = torch.arange(beyond.shape[-1], device=beyond.device).expand_as(beyond)
    end = torch.where((beyond.gather(-1, beyond) == itself) & (itself < beyond), itself, beyond)
    for _ in range((longest - 2).bit_length()):
        end = end.gather(-1, end)
    return end
