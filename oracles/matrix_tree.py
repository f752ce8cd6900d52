"""Gibbs distributions over dependency trees, by the matrix-tree theorem."""

import torch
from torch import Tensor

from .checks import check_finite, check_sample_shape
from .dependency_arcs import DependencyArcs
from .gibbs import check_some_allowed


class TreeGibbs:
    """p(z) proportional to exp <a_z, t> over non-projective dependency trees; see `gibbs` for what its methods promise.

    Words before the first that no arc may reach make up the sentence.

    Cost: O(n^3) a row in n steps for the normaliser; n times that for a sample.
    """

    def __init__(self, arcs: DependencyArcs, scores: Tensor, *, single_root: bool) -> None:
        check_finite(scores)
        self.arcs, self.single_root = arcs, single_root
        self.dtype, self.batch_shape = scores.dtype, scores.shape[:-1]
        precise = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        flat = precise.reshape(self.batch_shape.numel(), scores.shape[-1])
        self.present, self.scores = arcs.present(flat), _relative(flat, arcs.words)
        self.log_total = self._log_total(self._weights(self.scores))
        check_some_allowed(self.log_total.detach().reshape(self.batch_shape))

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """[*sample_shape, *B, D], without gradient: word by word, each head by its probability given those before."""
        count = check_sample_shape(sample_shape)
        rows, words = count * len(self.scores), self.arcs.words
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
            weights[:, :, word] = torch.where(other == head[:, None], weights[:, :, word], _floor(weights))
            heads[:, word] = torch.where(present[:, word], head, -1)
        return self.arcs.structures(heads).reshape(*sample_shape, *self.batch_shape, words * words).to(self.dtype)

    def log_prob(self, structures: Tensor) -> Tensor:
        """<a_z, t> - log Z, nats; `-inf` off the set."""
        scores = self.scores.reshape(*self.batch_shape, self.scores.shape[-1])
        forbidden = scores.isneginf()
        allowed = torch.where(forbidden, 0, scores)
        inside = (structures.to(allowed) * allowed).sum(-1) - self.log_total.reshape(self.batch_shape)
        member = self._are_trees(structures) & ~((structures != 0) & forbidden).any(-1)
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

    def _weights(self, scores: Tensor) -> Tensor:
        """Logarithms of the arcs' weights, [R, n + 1, n] by (head, word), a finite number in place of -inf."""
        matrix = self.arcs.matrix(torch.where(scores.isneginf(), _floor(scores), scores))[..., 1:]
        own = torch.eye(self.arcs.words + 1, dtype=torch.bool, device=scores.device)[:, 1:]
        return torch.where(own, _floor(scores), matrix)

    def _log_total(self, weights: Tensor) -> Tensor:
        total, found = log_trees(weights, self.present, single_root=self.single_root)
        return torch.where(found, total, -torch.inf)

    def _are_trees(self, structures: Tensor) -> Tensor:
        heads = self.arcs.heads_of(structures)
        present = self.present.reshape(*self.batch_shape, self.arcs.words)
        sound = (structures == self.arcs.structures(heads).to(structures)).all(-1) & ((heads >= 0) == present).all(-1)
        parent = torch.nn.functional.pad(heads.clamp(min=0), (1, 0))
        for _ in range(self.arcs.words.bit_length()):
            parent = parent.gather(-1, parent)
        sound = sound & (parent == 0).all(-1)
        return sound & ((heads == 0).sum(-1) == 1) if self.single_root else sound


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
        weights: [R, n + 1, n] logarithms by (head, word); -inf is to be given as `_floor`, also for h = m.
        present: [R, n] bool, the words of the sentence.

    Returns:
        the logarithms [R], and [R] bool: whether there is any tree.
    """
    rows, words = present.shape
    floor = _floor(weights)
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


def _relative(scores: Tensor, words: int) -> Tensor:
    """Scores [R, n^2], each word's largest taken off: a word has one head, so no probability changes, and digits are kept."""
    table = scores.unflatten(-1, (words, words))
    peak = table.detach().amax(-1, keepdim=True)
    lowered = (table - torch.where(peak.isneginf(), 0, peak)).clamp(min=torch.finfo(scores.dtype).min)
    return torch.where(table.isneginf(), table, lowered).flatten(-2)


def _floor(like: Tensor) -> float:
    """A logarithm whose exponential is 0 next to any other weight, and a few of which add up without overflow."""
    return torch.finfo(like.dtype).min / 8
