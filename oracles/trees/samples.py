"""Samples of trees: words are eliminated, and come back."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .elimination import elimination


def sample_heads(
    weights: Tensor, present: Tensor, count: int, generator: torch.Generator | None, *, single_root: bool
) -> Tensor:
    """Independent trees with probabilities proportional to the products of their arcs' weights: each word's head.

    The words are eliminated, and come back in reverse. A tree of the others is known then, each arc h -> m of which stands for
    itself or for h -> v -> m; which of the two is drawn by their weights. The words m below v, if any, cut the tree: of what
    is still connected with the root, v has a head h, drawn by the weights w(h, v). That is exact: the arcs to the words below v
    are any that make up a tree, and their weights w(h, v) sum up, by Cayley's formula (1889) for trees of given parts, to that
    of what is connected with the root times w(., v) for each but one of these words. With a single root, v hangs on the root
    only if nothing else is connected with it.

    Args:
        weights, present, single_root: as in `elimination`.
        count: c, trees of each row.

    Returns:
        [c R, n] int64, all rows' first trees first: 0 for the root, -1 for words that are not present.

    Cost: O(n^3) time and memory a row, and O(n^2 log n) time a tree; nothing is subtracted, and no digit is lost.
    """
    row = torch.arange(len(weights), device=weights.device).repeat(count)
    heads = torch.empty(len(row), 0, dtype=torch.int64, device=weights.device)  # of the words that are back
    for step in reversed(list(elimination(weights, present, single_root=single_root))):
        words = step.below.shape[1]
        word, place = torch.arange(words, device=weights.device), step.place[row][:, None]
        heads = _make_room(heads, place)
        uniform = torch.rand(len(row), words + 1, dtype=weights.dtype, device=weights.device, generator=generator)
        arc = heads.clamp(min=0)
        via = step.above[row].gather(1, arc) + step.below[row]
        chance = (via - step.weights[row[:, None], arc, word]).sigmoid()
        below = (heads >= 0) & (uniform[:, 1:] < chance)
        connected = _connected(heads.masked_fill(below, -1))
        if single_root:
            connected[:, 0] &= ~connected[:, 1:].any(-1)
        logits = step.weights[row[:, None], torch.arange(words + 1, device=weights.device), place]
        cumulative = torch.where(connected, logits, -torch.inf).softmax(-1).cumsum(-1)
        head = (cumulative <= uniform[:, :1] * cumulative[:, -1:]).sum(-1, keepdim=True).clamp(max=words)
        heads = torch.where(below, place + 1, heads)
        heads = torch.where((word == place) & step.some[row][:, None], head, heads)
    return heads


def _make_room(heads: Tensor, place: Tensor) -> Tensor:
    """Heads [R, m - 1] numbered with one more word at a place [R, 1] among them, which hangs on nothing yet: [R, m]."""
    word = torch.arange(heads.shape[1] + 1, device=heads.device)
    heads = pad(torch.where(heads > place, heads + 1, heads), (0, 1), value=-1)
    return heads.gather(1, torch.where(word > place, word - 1, word)).masked_fill(word == place, -1)


def _connected(heads: Tensor) -> Tensor:
    """Whether the root, and each word, is connected with the root by heads [R, m], -1 for none: [R, m + 1] bool."""
    words = heads.shape[1]
    itself = torch.arange(1, words + 1, device=heads.device)
    ancestor = pad(torch.where(heads >= 0, heads, itself), (1, 0))
    for _ in range(words.bit_length()):
        ancestor = ancestor.gather(1, ancestor)
    return ancestor == 0
