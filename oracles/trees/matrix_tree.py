"""Gibbs distributions over trees, by the matrix-tree theorem."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..checks import check_finite, check_sample_shape, check_width
from ..gibbs import check_some_allowed
from .elimination import least_of, log_trees
from .entropy import tree_entropy
from .samples import sample_heads


class MatrixTreeGibbs(ABC):
    """p(z) proportional to exp <a_z, t> over trees, told by the head of each of n words; see `gibbs` for what methods promise.

    A class of trees says which weights arcs have, what structure heads stand for, and what is a tree.

    Logarithms are accurate to some eps of the spread of the scores. A finite score counts as at most 6e35 / (n + 1) below the
    largest (in float64 3e305 / (n + 1)), so that sums over a tree are finite.

    Cost: O(n^3) a row in n steps, for the normaliser and once for all samples; O(n^2 log n) a sample. Derivatives, and samples
    meanwhile, take O(n^3) memory a row.

    Args:
        scores: [*B, D].
        single_root: whether exactly one word hangs on the root.
    """

    def __init__(self, scores: Tensor, *, single_root: bool) -> None:
        check_finite(scores)
        self.single_root, self.dtype, self.batch_shape = single_root, scores.dtype, scores.shape[:-1]
        precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        flat = precise.reshape(math.prod(self.batch_shape), scores.shape[-1])
        self.present, relative = self._present(flat), self._relative(flat)
        least = least_of(relative, self.present.shape[-1])
        self.scores = torch.where(relative.isneginf(), relative, relative.clamp(min=least))
        total, found = log_trees(self._weights(self.scores), self.present, single_root=single_root)
        self.log_total = torch.where(found, total, -torch.inf)
        check_some_allowed(self.log_total.detach().reshape(self.batch_shape))

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D], without gradient: see `sample_heads`."""
        count = check_sample_shape(sample_shape)
        with torch.no_grad():
            weights = self._weights(self.scores).double()
            heads = sample_heads(weights, self.present, count, generator, single_root=self.single_root)
            drawn = self._structures(heads, generator)
        return drawn.reshape(*sample_shape, *self.batch_shape, self.scores.shape[-1])

    def log_prob(self, structures: Tensor) -> Tensor:
        """<a_z, t> - log Z, nats; `-inf` off the set."""
        check_width(structures, self.scores.shape[-1])
        scores = self.scores.reshape(*self.batch_shape, self.scores.shape[-1])
        forbidden = scores.isneginf()
        allowed = torch.where(forbidden, 0, scores)
        inside = (structures.to(allowed) * allowed).sum(-1) - self.log_total.reshape(self.batch_shape)
        present = self.present.reshape(*self.batch_shape, self.present.shape[-1])
        member = self._are_trees(structures, present) & ~((structures != 0) & forbidden).any(-1)
        return torch.where(member, inside, -torch.inf).to(self.dtype)

    def entropy(self) -> Tensor:
        """log Z - <E[a_z], t>, nats, up to rounding: see `tree_entropy`."""
        weights, surprise = self._weights(self.scores), self._surprise(self.scores)
        found = tree_entropy(weights, surprise, self.present, single_root=self.single_root)
        return found.reshape(self.batch_shape).to(self.dtype)

    def marginals(self) -> Tensor:
        """The mean structure E[a_z] = d log Z / dt, [*B, D]; differentiable. Not under `vmap`, in forward mode, or compiled."""
        follow = torch.is_grad_enabled() and self.scores.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            scores = self.scores if follow else self.scores.detach().clone().requires_grad_()
            total, _ = log_trees(self._weights(scores), self.present.clone(), single_root=self.single_root)
            (mean,) = torch.autograd.grad(total.sum(), scores, create_graph=follow)
        return mean.reshape(*self.batch_shape, self.scores.shape[-1]).to(self.dtype)

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
    def _surprise(self, scores: Tensor) -> Tensor:
        """The entropy of what each arc stands for, nats: [R, D] -> [R, n + 1, n] by (head, word)."""

    @abstractmethod
    def _structures(self, heads: Tensor, generator: torch.Generator | None) -> Tensor:
        """What has these heads, -1 for none, for some trees of each row: [c R, n] -> [c R, D]; drawn where it is several."""

    @abstractmethod
    def _are_trees(self, structures: Tensor, present: Tensor) -> Tensor:
        """Whether each is a tree over these words, whatever its scores: [..., D] and [*B, n] -> [...] bool."""


def lowered(scores: Tensor) -> Tensor:
    """Scores [..., n] less the largest of each row, so that those of like size keep their digits; `-inf` stays."""
    peak = scores.detach().amax(-1, keepdim=True)
    less = (scores - torch.where(peak.isneginf(), 0, peak)).clamp(min=torch.finfo(scores.dtype).min)
    return torch.where(scores.isneginf(), scores, less)
