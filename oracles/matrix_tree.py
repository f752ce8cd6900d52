"""Gibbs distributions over trees, by the matrix-tree theorem."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_finite, check_sample_shape
from .gibbs import check_some_allowed


class MatrixTreeGibbs(ABC):
    """p(z) proportional to exp <a_z, t> over trees, told by the head of each of n words; see `gibbs` for what methods promise.

    A class of trees says which weights arcs have, what structure heads stand for, and what is a tree.

    Cost: O(n^3) a row in n steps, for the normaliser and once for all samples; O(n^2 log n) a sample.

    Args:
        scores: [*B, D].
        single_root: whether exactly one word hangs on the root.
    """

    def __init__(self, scores: Tensor, *, single_root: bool) -> None:
        check_finite(scores)
        self.single_root, self.dtype, self.batch_shape = single_root, scores.dtype, scores.shape[:-1]
        precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        flat = precise.reshape(self.batch_shape.numel(), scores.shape[-1])
        self.present, self.scores = self._present(flat), self._relative(flat)
        total, found = log_trees(self._weights(self.scores), self.present, single_root=single_root)
        self.log_total = torch.where(found, total, -torch.inf)
        check_some_allowed(self.log_total.detach().reshape(self.batch_shape))

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D], without gradient: see `sample_heads`."""
        count = check_sample_shape(sample_shape)
        with torch.no_grad():
            weights = self._weights(self.scores).double()
            heads = sample_heads(weights, self.present, count, generator, single_root=self.single_root)
            drawn = self._structures(heads, self.scores.repeat(count, 1), generator)
        return drawn.reshape(*sample_shape, *self.batch_shape, self.scores.shape[-1]).to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """<a_z, t> - log Z, nats; `-inf` off the set."""
        scores = self.scores.reshape(*self.batch_shape, self.scores.shape[-1])
        forbidden = scores.isneginf()
        allowed = torch.where(forbidden, 0, scores)
        inside = (structures.to(allowed) * allowed).sum(-1) - self.log_total.reshape(self.batch_shape)
        present = self.present.reshape(*self.batch_shape, self.present.shape[-1])
        member = self._are_trees(structures, present) & ~((structures != 0) & forbidden).any(-1)
        return torch.where(member, inside, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """log Z - <E[a_z], t>, nats."""
        allowed = torch.where(self.scores.isneginf(), 0, self.scores)
        return (self.log_total - (self._mean() * allowed).sum(-1)).reshape(self.batch_shape).to(self.dtype)

    def marginals(self) -> Tensor:
        """The mean structure E[a_z] = d log Z / dt, [*B, D]; differentiable."""
        return self._mean().reshape(*self.batch_shape, self.scores.shape[-1]).to(self.dtype)

    def _mean(self) -> Tensor:
        follow = torch.is_grad_enabled() and self.scores.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            scores = self.scores if follow else self.scores.detach().clone().requires_grad_()
            total, _ = log_trees(self._weights(scores), self.present.clone(), single_root=self.single_root)
            (mean,) = torch.autograd.grad(total.sum(), scores, create_graph=follow)
        return mean

    @abstractmethod
    def _present(self, scores: Tensor) -> Tensor:
        """Which words a tree has, [R, D] -> [R, n] bool."""

    @abstractmethod
    def _relative(self, scores: Tensor) -> Tensor:
        """Scores [R, D] with which the probabilities are the same, and no digit is lost to what they have in common."""

    @abstractmethod
    def _weights(self, scores: Tensor) -> Tensor:
        """Logarithms of the arcs' weights, [R, D] -> [R, n + 1, n] by (head, word), a finite number in place of -inf."""

    @abstractmethod
    def _structures(self, heads: Tensor, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """What has these heads, -1 for none: [R, n] and scores [R, D] -> [R, D]; drawn where it is several structures."""

    @abstractmethod
    def _are_trees(self, structures: Tensor, present: Tensor) -> Tensor:
        """Whether each is a tree over these words, whatever its scores: [..., D] and [*B, n] -> [...] bool."""


class Step(NamedTuple):
    """One word is eliminated, of the m that are left.

    Attributes:
        weights: [R, m + 1, m] logarithms of the arcs' weights, by (head, word), before it is.
        place: [R] int64, which of the m.
        factor: [R] w(., v), the logarithm of the weight of all arcs into it.
        above: [R, m + 1] the arcs into it, less that.
        below: [R, m] the arcs out of it.
        some: [R] bool, false where the sentence has no word left.
    """

    weights: Tensor
    place: Tensor
    factor: Tensor
    above: Tensor
    below: Tensor
    some: Tensor


def elimination(weights: Tensor, present: Tensor, *, single_root: bool) -> Iterator[Step]:
    """All words are eliminated, one after the other.

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
        heads = torch.cat([torch.ones_like(left[:, :1]), left], 1)
        weights = torch.where(heads[:, :, None] & left[:, None] & other, weights, floor)
        into = torch.logsumexp(weights[:, 1:] if single_root else weights, 1)
        if single_root:
            into = torch.where((left.sum(-1) == 1)[:, None], weights[:, 0], into)
        place = torch.where(left, into.detach(), -torch.inf).argmax(-1, keepdim=True)  # [R, 1]
        factor = into.gather(1, place)
        above = weights.gather(2, place[:, None].expand(-1, words + 1, 1))[..., 0] - factor
        below = weights.gather(1, place[:, None].expand(-1, 1, words) + 1)[:, 0]
        yield Step(weights, place[:, 0], factor[:, 0], above, below, left.any(-1))
        kept = word[:-1] + (word[:-1] >= place)  # [R, m - 1], the others
        heads = torch.nn.functional.pad(kept + 1, (1, 0))
        weights = weights.gather(2, kept[:, None].expand(-1, words + 1, -1))
        weights = weights.gather(1, heads[..., None].expand(-1, -1, words - 1))
        through = above.gather(1, heads)[:, :, None] + below.gather(1, kept)[:, None]
        # Not logaddexp: its second derivative is NaN where one term is negligible.
        weights = torch.stack([weights, through.clamp(min=floor)]).logsumexp(0)
        left = left.gather(1, kept)


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


def sample_heads(
    weights: Tensor, present: Tensor, count: int, generator: torch.Generator | None, *, single_root: bool
) -> Tensor:
    """Independent trees with probabilities proportional to the products of their arcs' weights: each word's head.

    The words are eliminated, and come back in reverse. A tree of the others is known then, each arc h -> m of which stands for
    itself or for h -> v -> m; which of the two is drawn by their weights. The words m below v, if any, cut the tree: of what
    is still connected with the root, v has a head h, drawn by the weights w(h, v). That is exact: the arcs to the words below v
    are any that make up a tree, and their weights w(h, v) sum up, by Cayley's formula for trees of given parts, to that of
    what is connected with the root times w(., v) for each but one of these words. With a single root, v hangs on the root only
    if nothing else is connected with it.

    Args:
        weights, present, single_root: as in `elimination`.
        count: c, trees of each row.

    Returns:
        [c R, n] int64, all rows' first trees first: 0 for the root, -1 for words that are not present.

    Cost: O(n^3) a row, and O(n^2 log n) a tree; nothing is subtracted, and no digit is lost.
    """
    row = torch.arange(len(weights), device=weights.device).repeat(count)
    heads = torch.empty(len(row), 0, dtype=torch.int64, device=weights.device)  # of the words that are back
    for step in reversed(list(elimination(weights, present, single_root=single_root))):
        words = step.below.shape[1]
        word, place = torch.arange(words, device=weights.device), step.place[row][:, None]
        # Numbered with v among them, which hangs on nothing yet.
        heads = torch.where(heads > place, heads + 1, heads)
        heads = torch.nn.functional.pad(heads, (0, 1), value=-1).gather(1, torch.where(word > place, word - 1, word))
        heads = torch.where(word == place, -1, heads)
        arc = heads.clamp(min=0)
        via = step.above[row].gather(1, arc) + step.below[row]
        chance = (via - step.weights[row[:, None], arc, word]).sigmoid()
        below = (heads >= 0) & (_uniform(chance, generator) < chance)
        ancestor = torch.nn.functional.pad(torch.where((heads >= 0) & ~below, heads, word + 1), (1, 0))
        for _ in range(words.bit_length()):
            ancestor = ancestor.gather(1, ancestor)
        connected = ancestor == 0
        if single_root:
            connected[:, 0] &= ~connected[:, 1:].any(-1)
        logits = step.weights[row[:, None], torch.arange(words + 1, device=weights.device), place]
        cumulative = torch.where(connected, logits, -torch.inf).softmax(-1).cumsum(-1)
        head = (cumulative <= _uniform(place, generator, weights.dtype) * cumulative[:, -1:]).sum(-1, keepdim=True)
        heads = torch.where(below, place + 1, heads)
        heads = torch.where((word == place) & step.some[row][:, None], head.clamp(max=words), heads)
    return heads


def _uniform(like: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    return torch.rand(like.shape, dtype=dtype or like.dtype, device=like.device, generator=generator)


def lowered(scores: Tensor) -> Tensor:
    """Scores [..., n] less the largest of each row, so that those of like size keep their digits; `-inf` stays."""
    peak = scores.detach().amax(-1, keepdim=True)
    less = (scores - torch.where(peak.isneginf(), 0, peak)).clamp(min=torch.finfo(scores.dtype).min)
    return torch.where(scores.isneginf(), scores, less)


def floor_of(like: Tensor) -> float:
    """A logarithm whose exponential is 0 next to any other weight, and a few of which add up without overflow."""
    return torch.finfo(like.dtype).min / 8
