"""The matrix-tree theorem on the arcs of a graph: words are eliminated one after the other, and nothing is subtracted."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Step(NamedTuple):
    """One word is eliminated, of the m that are left.

    Attributes:
        weights: [R, m + 1, m] logarithms of the arcs' weights, by (head, word), before it is.
        place: [R] int64, which of the m.
        kept: [R, m - 1] int64, the others.
        factor: [R] w(., v), the logarithm of the weight of all arcs into it.
        above: [R, m + 1] the arcs into it, less that.
        below: [R, m] the arcs out of it.
        direct, through: [R, m, m - 1] the arcs between the root and the others, and the ways through it.
        some: [R] bool, false where the sentence has no word left.
        last: [R] bool, where it is the only word left.
    """

    weights: Tensor
    place: Tensor
    kept: Tensor
    factor: Tensor
    above: Tensor
    below: Tensor
    direct: Tensor
    through: Tensor
    some: Tensor
    last: Tensor


def elimination(weights: Tensor, present: Tensor, *, single_root: bool) -> Iterator[Step]:
    """All words are eliminated, those of a row in an order of its own.

    The sum over all trees of the product of their arcs' weights is the determinant of the graph's Laplacian (Tutte 1948). Its
    elimination is done on the arcs instead of the matrix: a word v that is eliminated leaves, for each arc h -> v and each
    v -> m, an arc h -> m of weight w(h, v) w(v, m) / w(., v), and contributes the factor w(., v), the weight of all arcs into
    v. The diagonal, which a Laplacian has as sums, is never subtracted from: all terms are positive (as in Grassmann, Taksar
    and Heyman 1985), so logarithms can be used and no digit is lost, however unequal the weights.

    With a single root, arcs from the root count to first order only (the Laplacian of Koo et al. 2007 has the same
    determinant): they are left out of w(., v), except for the last word, where there are no others. The word of largest
    w(., v) is eliminated first, so one that only the root may reach comes last.

    Args:
        weights: [R, n + 1, n] logarithms by (head, word); -inf is to be given as `floor_of`, also for h = m.
        present: [R, n] bool, the words of the sentence.
    """
    floor, left = floor_of(weights), present
    for words in range(present.shape[1], 0, -1):
        # Arcs that are left: from the root or a word that is left to another such word.
        word = torch.arange(words, device=weights.device)
        other = torch.arange(words + 1, device=weights.device)[:, None] != word + 1
        weights = torch.where(pad(left, (1, 0), value=True)[:, :, None] & left[:, None] & other, weights, floor)
        last, counted = left.sum(-1) == 1, weights
        if single_root:
            uncounted = pad(~last[:, None], (0, words))  # arcs from the root, but for the last word
            counted = weights.masked_fill(uncounted[..., None], floor)
        peak, rest = log_sum(counted, 1)
        place = torch.where(left, (peak + rest).detach(), -torch.inf).argmax(-1, keepdim=True)  # [R, 1]
        peak, rest = peak.gather(1, place), rest.gather(1, place)
        above = weights.gather(2, place[:, None].expand(-1, words + 1, 1))[..., 0] - peak - rest
        below = weights.gather(1, place[:, None].expand(-1, 1, words) + 1)[:, 0]
        kept = word[:-1] + (word[:-1] >= place)
        direct = among(weights, kept)
        through = above.gather(1, heads_among(kept))[..., None] + below.gather(1, kept)[:, None]
        yield Step(weights, place[:, 0], kept, (peak + rest)[:, 0], above, below, direct, through, left.any(-1), last)
        peak, rest = log_sum(torch.stack([direct, through]), 0)
        weights, left = peak + rest, left.gather(1, kept)


def among(arcs: Tensor, kept: Tensor) -> Tensor:
    """Of arcs [R, m + 1, m] by (head, word) those between the root and some words [R, k], and among these: [R, k + 1, k]."""
    into = arcs.gather(2, kept[:, None].expand(-1, arcs.shape[1], -1))
    return into.gather(1, heads_among(kept)[..., None].expand(-1, -1, kept.shape[1]))


def heads_among(kept: Tensor) -> Tensor:
    """The root and some words [R, k], as places among heads, [R, k + 1]."""
    return pad(kept + 1, (1, 0))


def log_trees(weights: Tensor, present: Tensor, *, single_root: bool) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum over all trees of the product of their arcs' weights, differentiable: see `elimination`.

    Returns:
        the logarithms [R], and [R] bool: whether there is any tree.
    """
    total, found = weights.new_zeros(len(weights)), present.any(-1)
    for step in elimination(weights, present, single_root=single_root):
        total = total + torch.where(step.some, step.factor, 0)
        found = found & (~step.some | (step.factor.detach() > floor_of(weights) / 2))
    return total, found


def log_sum(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log sum exp along a dimension in two parts: the largest, and what is to be added to it.

    Their sum may lose the second. The derivative does not, exp(v - largest) over the sum of these, as it does in `logsumexp`;
    and that has a second derivative, as `logaddexp` has not where one term is negligible.
    """
    peak = values.detach().amax(dim, keepdim=True)
    return peak.squeeze(dim), (values - peak).exp().sum(dim).log()


def floor_of(like: Tensor) -> float:
    """A logarithm whose exponential is 0 next to any other weight, and a few of which add up without overflow."""
    return torch.finfo(like.dtype).min / 8


def least_of(like: Tensor, words: int) -> float:
    """The least logarithm that counts as a weight: what trees of n such arcs make is far above `floor_of`."""
    return floor_of(like) / (64 * (words + 1))
