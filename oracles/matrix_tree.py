"""Gibbs distributions over trees, by the matrix-tree theorem."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .checks import check_finite, check_sample_shape
from .gibbs import check_some_allowed


class MatrixTreeGibbs(ABC):
    """p(z) proportional to exp <a_z, t> over trees, told by the head of each of n words; see `gibbs` for what methods promise.

    A class of trees says which weights arcs have, what structure heads stand for, and what is a tree.

    Cost: O(n^3) a row in n steps for the normaliser; n times that for a sample.

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
        """[*sample_shape, *B, D], without gradient: word by word, each head by its probability given those before."""
        count = check_sample_shape(sample_shape)
        words = self.present.shape[-1]
        rows = count * len(self.scores)
        weights = self._weights(self.scores.detach()).double().repeat(count, 1, 1)
        with torch.inference_mode(False):  # what is made in it cannot be saved for the backward pass
            present = self.present.repeat(count, 1)
        heads = torch.full((rows, words), -1, device=weights.device)
        other = torch.arange(words + 1, device=weights.device)
        for word in range(words):
            with torch.inference_mode(False), torch.enable_grad():
                varied = weights.clone().requires_grad_()
                total = log_trees(varied, present, single_root=self.single_root)[0].sum()
                (arcs,) = torch.autograd.grad(total, varied)
            cumulative = arcs[:, :, word].cumsum(-1)
            uniform = torch.rand(rows, 1, dtype=torch.float64, device=weights.device, generator=generator)
            head = (cumulative <= uniform * cumulative[:, -1:]).sum(-1).clamp(max=words)
            weights[:, :, word] = torch.where(other == head[:, None], weights[:, :, word], floor_of(weights))
            heads[:, word] = torch.where(present[:, word], head, -1)
        drawn = self._structures(heads, self.scores.detach().repeat(count, 1), generator)
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


def log_trees(weights: Tensor, present: Tensor, *, single_root: bool) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum over all trees of the product of their arcs' weights, differentiable.

    The sum is the determinant of the graph's Laplacian (Tutte 1948). Its elimination is done on the arcs instead of the
    matrix: a word v that is eliminated leaves, for each arc h -> v and each v -> m, an arc h -> m of weight w(h, v) w(v, m) /
    w(., v), and contributes the factor w(., v), the weight of all arcs into v. The diagonal, which a Laplacian has as sums, is
    never subtracted from: all terms are positive (as in Grassmann, Taksar and Heyman 1985), so logarithms can be used
    and no digit is lost, however unequal the weights.

    With a single root, arcs from the root count to first order only (the Laplacian of Koo et al. 2007 has the same
    determinant): they are left out of w(., v), except for the last word, where there are no others. The word of largest
    w(., v) is eliminated first, so one that only the root may reach comes last.

    Args:
        weights: [R, n + 1, n] logarithms by (head, word); -inf is to be given as `floor_of`, also for h = m.
        present: [R, n] bool, the words of the sentence.

    Returns:
        the logarithms [R], and [R] bool: whether there is any tree.
    """
    rows, words = present.shape
    floor = floor_of(weights)
    word = torch.arange(words, device=weights.device)
    other = torch.arange(words + 1, device=weights.device)[:, None] != word + 1
    left = present
    total, found = weights.new_zeros(rows), present.any(-1)
    for _ in range(words):
        # Arcs that are left: from the root or a word that is left to another such word.
        heads = torch.cat([torch.ones_like(left[:, :1]), left], 1)
        weights = torch.where(heads[:, :, None] & left[:, None] & other, weights, floor)
        into = torch.logsumexp(weights[:, 1:] if single_root else weights, 1)
        if single_root:
            into = torch.where((left.sum(-1) == 1)[:, None], weights[:, 0], into)
        taken = torch.where(left, into.detach(), -torch.inf).argmax(-1, keepdim=True)  # [R, 1]
        factor = into.gather(1, taken)
        some = left.any(-1)
        total = total + torch.where(some, factor[:, 0], 0)
        found = found & (~some | (factor[:, 0].detach() > floor / 2))
        above = weights.gather(2, taken[:, None].expand(-1, words + 1, 1)) - factor[:, None]  # [R, n + 1, 1]
        below = weights.gather(1, taken[:, None].expand(-1, 1, words) + 1)  # [R, 1, n]
        # Not logaddexp: its second derivative is NaN where one term is negligible.
        weights = torch.stack([weights, (above + below).clamp(min=floor)]).logsumexp(0)
        left = left & (word != taken)
    return total, found


def lowered(scores: Tensor) -> Tensor:
    """Scores [..., n] less the largest of each row, so that those of like size keep their digits; `-inf` stays."""
    peak = scores.detach().amax(-1, keepdim=True)
    less = (scores - torch.where(peak.isneginf(), 0, peak)).clamp(min=torch.finfo(scores.dtype).min)
    return torch.where(scores.isneginf(), scores, less)


def floor_of(like: Tensor) -> float:
    """A logarithm whose exponential is 0 next to any other weight, and a few of which add up without overflow."""
    return torch.finfo(like.dtype).min / 8
