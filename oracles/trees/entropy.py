"""The entropy of trees, carried through the elimination: no difference of large numbers."""

import torch
from torch import Tensor

from .elimination import among, elimination, heads_among, log_sum


def tree_entropy(weights: Tensor, surprise: Tensor, present: Tensor, *, single_root: bool) -> Tensor:
    """The entropy of trees with probabilities proportional to the products of their arcs' weights, nats, [R]; differentiable.

    Let all scores be multiplied by s. The entropy is log Z - d log Z / ds at s = 1, and for every weight w of `elimination` its
    surprise is carried, log w - d log w / ds. Those of factors add up; that of a sum is what is expected of its terms, each
    with -log of its share besides. So no score is multiplied by a probability, and entropies of size 1 come from numbers of
    size 1, whatever the scores.

    Args:
        weights, present, single_root: as in `elimination`.
        surprise: [R, n + 1, n] of the arcs, nats: the entropy of what each stands for; 0 for one thing.

    Cost: as `elimination`, some two times.
    """
    total = weights.new_zeros(len(weights))
    for step in elimination(weights, present, single_root=single_root):
        shares = step.above
        if single_root:  # arcs from the root are no part of the factor, but for the last word
            uncounted = torch.nn.functional.pad(~step.last[:, None], (0, shares.shape[1] - 1))
            shares = shares.masked_fill(uncounted, -torch.inf)
        into = surprise.gather(2, step.place[:, None, None].expand(-1, shares.shape[1], 1))[..., 0]
        out = surprise.gather(1, step.place[:, None, None].expand(-1, 1, shares.shape[1] - 1) + 1)[:, 0]
        factor = expected_surprise(into, shares, 1)
        total = total + torch.where(step.some, factor, 0)
        through = (into - factor[:, None]).gather(1, heads_among(step.kept))[..., None] + out.gather(1, step.kept)[:, None]
        either = torch.stack([step.direct, step.through])
        peak, rest = log_sum(either, 0)  # not log_softmax, whose last bits depend on where in memory a row is
        surprise = expected_surprise(torch.stack([among(surprise, step.kept), through]), either - peak - rest, 0)
    return total


def expected_surprise(surprise: Tensor, log_shares: Tensor, dim: int) -> Tensor:
    """sum_i p_i (surprise_i - log p_i) along a dimension, for log p, which may be -inf."""
    some = log_shares.exp() > 0
    logs = torch.where(some, log_shares, 0)
    return torch.where(some, logs.exp() * (surprise - logs), 0).sum(dim)
