"""The k best subsets with a size in a range, by best-first search over the whole batch at once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def best_subsets(scores: Tensor, k: int, smallest: int, largest: int) -> tuple[Tensor, Tensor]:
    """The k subsets of {1..D} of highest total score with smallest <= size <= largest.

    Sort the scores, best first. The best subset of each size is a prefix: these are the roots. A subset of m items is
    described by how far each of them has moved from its place in the prefix, farthest mover last item first: a partition
    lambda_1 >= lambda_2 >= ... >= 0. Every partition but the empty one has one parent, made by moving the last mover
    back by one, and its total is no larger than its parent's. So one search tree a size holds every subset once, a node
    has at most two children (the last mover moves on; the next item starts to move), and k rounds of "take the best
    open node, open its children" list the k best. (The k-best scheme of Lawler 1972 with a tree instead of a partition
    into D subproblems.)

    Args:
        scores: [*B, D] float; `-inf` forbids an item.
        k: how many, at least 1.
        smallest, largest: the sizes allowed, 0 <= smallest <= largest <= D.

    Returns:
        vertices [*B, k, D] in the dtype of `scores`, best first, and valid [*B, k]. Ties: deterministic, smaller sets of
        moves first.

    Cost: O(D log D + k (D + k)) a row, k rounds of a dozen tensor operations.
    """
    flat = scores.reshape(math.prod(scores.shape[:-1]), scores.shape[-1]).double()
    ordered, order = flat.sort(dim=-1, descending=True, stable=True)
    rows = torch.arange(flat.shape[0], device=flat.device)
    places = torch.arange(flat.shape[1], device=flat.device)
    nodes = _roots(ordered, smallest, largest)
    subsets = torch.zeros(flat.shape[0], k, flat.shape[1], dtype=torch.bool, device=flat.device)
    valid = torch.zeros(flat.shape[0], k, dtype=torch.bool, device=flat.device)
    for step in range(k):
        best = nodes.total.argmax(-1)
        taken = _Node(*(field[rows, best] for field in nodes))
        nodes.total.scatter_(1, best[:, None], -torch.inf)
        root = (taken.parent < 0)[:, None]
        # A root is a prefix of the sorted order; any other node is its parent with one item moved.
        moved = (subsets[rows, taken.parent] & (places != taken.source[:, None])) | (places == taken.place[:, None])
        valid[:, step] = taken.total > -torch.inf
        subsets[:, step] = torch.where(root, places < taken.home[:, None], moved) & valid[:, step, None]
        if step + 1 < k:
            nodes = _Node(*map(_append, nodes, _children(ordered, taken, step)))
    vertices = torch.zeros_like(subsets).scatter_(-1, order[:, None, :].expand_as(subsets), subsets)
    shape = scores.shape[:-1]
    return vertices.to(scores.dtype).reshape(*shape, k, scores.shape[-1]), valid.reshape(*shape, k)


class _Node(NamedTuple):
    """Open nodes, one field [B, nodes] each. Places are positions in the sorted order.

    A node is the `parent`-th subset found so far with the item at `source` moved to `place`. That item, the last mover,
    stood at `home` in the prefix, and `bound` is the place of the mover before it, which it may not reach. A root has
    parent -1, `home` = its size, and reads as if a mover stood at place D: its last item may start to move, no further.
    """

    total: Tensor
    parent: Tensor
    source: Tensor
    place: Tensor
    home: Tensor
    bound: Tensor


def _roots(ordered: Tensor, smallest: int, largest: int) -> _Node:
    """One for each size. Totals are relative to that of the best size: large scores that all have in common cancel exactly."""
    batch, dim = ordered.shape
    places = torch.arange(dim, device=ordered.device)
    allowed = ordered > -torch.inf
    best = (ordered > 0).sum(-1, keepdim=True).clamp(smallest, largest)
    more = torch.where((places >= best) & allowed, ordered, 0).cumsum(-1)
    fewer = torch.where((places < best) & allowed, ordered, 0).flip(-1).cumsum(-1).flip(-1)
    sums = torch.nn.functional.pad(more, (1, 0)) - torch.nn.functional.pad(fewer, (0, 1))
    sums = torch.where(torch.arange(dim + 1, device=ordered.device) <= allowed.sum(-1, keepdim=True), sums, -torch.inf)
    sizes = torch.arange(smallest, largest + 1, device=ordered.device).expand(batch, -1)
    zeros = torch.zeros_like(sizes)
    return _Node(sums.gather(-1, sizes), zeros - 1, zeros, zeros + dim, sizes, zeros)


def _children(ordered: Tensor, node: _Node, step: int) -> _Node:
    """The last mover one place on, and the item before it one place on; total -inf where that cannot be."""
    source = torch.stack([node.place, node.home - 1], -1)
    place = source + 1
    home = torch.stack([node.home, node.home - 1], -1)
    bound = torch.stack([node.bound, node.place], -1)
    possible = (source >= 0) & (place < bound) & (node.total > -torch.inf)[:, None]
    last = ordered.shape[1] - 1
    gain = ordered.gather(-1, place.clamp(0, last)) - ordered.gather(-1, source.clamp(0, last))
    total = torch.where(possible, node.total[:, None] + gain, -torch.inf)
    return _Node(total, torch.full_like(source, step), source, place, home, bound)


def _append(field: Tensor, children: Tensor) -> Tensor:
    return torch.cat([field, children], -1)
