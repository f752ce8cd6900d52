"""The k most probable structures of a Gibbs distribution, and one exact sample of all others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...oracles import BernoulliCube
from ...oracles.base import GibbsDistribution
from ...oracles.gibbs import EnumeratedGibbs
from .noise import gumbel_noise


@dataclass(frozen=True)
class Split:
    """A Gibbs distribution divided in two.

    Attributes:
        gibbs: the whole.
        best: [k, B, D] the most probable structures, best first.
        valid: [k, B] bool, false where scores of -inf leave fewer than k.
        sample: [B, D] drawn from the others, with probabilities proportional to theirs; the best structure where they
            have no mass.
        rest: [B] the mass of the others, without gradient, summed from positive terms: no digits are lost where it is small.
    """

    gibbs: GibbsDistribution
    best: Tensor
    valid: Tensor
    sample: Tensor
    rest: Tensor


def split_listed(scores: Tensor, vertices: Tensor, k: int) -> Split:
    """By a softmax over all structures, vertices [V, D]: O(V D) a row."""
    gibbs = EnumeratedGibbs(scores, vertices)
    logs = gibbs.log_probs.detach()  # [B, V]
    top, index = logs.topk(k)
    others = logs.scatter(-1, index, -torch.inf)
    rest = others.exp().sum(-1)
    drawn = (others + gumbel_noise(others)).argmax(-1)
    drawn = torch.where(rest > 0, drawn, index[:, 0])
    structures = gibbs.vertices.to(scores.dtype)
    return Split(gibbs, structures[index.T], top.T.isfinite(), structures[drawn], rest)


def split_bits(scores: Tensor, cube: BernoulliCube, k: int) -> Split:
    """Bit by bit, without listing 2^D codes: O(D k^2) a row, D sequential steps.

    Codes form a binary tree. For the prefix of length i of a best code c let r_i(c) be the probability that a code that
    begins so is none of the best. Off the best codes' prefixes it is 1, at their ends 0, and between

        r_i(c) = p(c_i) r_(i+1)(c) + p(not c_i) r_(i+1)(c with bit i flipped).

    r_0 is the mass of the rest, and the two terms are the odds of a rest sample's bit i given the bits before.
    """
    gibbs = cube.gibbs(scores)
    precise = gibbs.scores.detach()
    best, valid = cube.topk(precise, k)  # [B, k, D], [B, k]
    batch, dim = precise.shape
    follow = ((2 * best - 1) * precise[:, None]).sigmoid()  # p(c_i)
    leave = (-(2 * best - 1) * precise[:, None]).sigmoid()
    # sibling[i][b, c, d]: codes c and d agree before bit i and differ at it.
    agree = valid[:, :, None] & valid[:, None]
    siblings = []
    for i in range(dim):
        same = best[:, :, None, i] == best[:, None, :, i]
        siblings.append(agree & ~same)
        agree = agree & same
    remaining = torch.zeros_like(precise[:, :1]).expand(-1, k)
    stay, turn = [remaining] * dim, [remaining] * dim
    for i in reversed(range(dim)):
        # All siblings share the prefix, and so their r.
        of_sibling = torch.where(siblings[i], remaining[:, None], -1).amax(-1)
        of_sibling = torch.where(of_sibling < 0, 1, of_sibling)
        stay[i] = follow[..., i] * remaining
        turn[i] = leave[..., i] * of_sibling
        remaining = stay[i] + turn[i]
    rest = remaining[:, 0]
    uniform = torch.rand_like(precise)
    probs = precise.sigmoid()
    sample = torch.empty_like(precise)
    rows = torch.arange(batch, device=scores.device)
    current = torch.zeros_like(rows)  # the best code whose prefix the sample has so far
    free = torch.zeros_like(rows, dtype=torch.bool)  # it has none's
    for i in range(dim):
        odds = stay[i][rows, current], turn[i][rows, current]
        turned = uniform[:, i] * (odds[0] + odds[1]) >= odds[0]
        bound = torch.where(turned, 1 - best[rows, current, i], best[rows, current, i])
        sample[:, i] = torch.where(free, (uniform[:, i] < probs[:, i]).to(precise), bound)
        sibling = siblings[i][rows, current]
        free = free | (turned & ~sibling.any(-1))
        current = torch.where(turned & ~free, sibling.to(torch.uint8).argmax(-1), current)
    sample = torch.where(rest[:, None] > 0, sample, best[:, 0])
    return Split(gibbs, best.transpose(0, 1).to(scores.dtype), valid.T, sample.to(scores.dtype), rest)
