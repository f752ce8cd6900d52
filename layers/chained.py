"""Step two for systematic sampling: weights are differences of sums of scores, so nothing has to be solved."""

import torch
from torch import Tensor

from ..oracles.systematic import hits
from .distribution import SparseDistribution, starts_of
from .solvers.supports import ChainedSupport


def chained_distribution(scores: Tensor, support: ChainedSupport, shape: torch.Size, dtype: torch.dtype) -> SparseDistribution:
    """`refit` on the structures of a systematic sample, without writing down what is not used.

    A structure's weight is what lies between two cuts, a cut is the end of an interval up to an integer, and an end is a sum of
    means. A mean strictly between 0 and 1 is t_i, less what all of these have in common where their sum is held fixed: so

        dp_s = dc_(s+1) - dc_s,   dc = sum of dt_i - [binding] (mean of dt) over the intervals up to that end.

    The structures span the face of the solution, on which the mean determines their weights, so that this is the derivative of
    the KKT system (paper eq. 13 and 17).

    Args:
        scores: t, [B, D] float64, finite; carries the gradient.
        support: of B rows.
        shape: the batch's, of B rows.
        dtype: of the result.

    Cost: O(B D) besides the N D entries of the packed atoms; `refit` is O(B D^3) on such a support.
    """
    ordered = torch.where(support.between, scores.gather(1, support.order), 0)
    count = support.between.sum(-1, keepdim=True)
    common = torch.where(support.binding, ordered.sum(-1) / count[:, 0].clamp(min=1), 0)
    change = (ordered - torch.where(support.between, common[:, None], 0)).cumsum(-1)
    change = torch.cat([torch.zeros_like(change[:, :1]), change], -1)
    step = change.gather(1, support.interval).diff(dim=-1)
    probs = support.probs + (step - step.detach())

    row, structure = (support.probs > 0).nonzero(as_tuple=True)
    ends, first = support.ends[row], support.cuts[row, structure][:, None]
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], -1)
    atoms = torch.zeros(ends.shape, dtype=dtype, device=ends.device)
    atoms.scatter_(1, support.order[row], hits(starts, ends, first).to(dtype))
    return SparseDistribution(
        atoms, probs[row, structure].to(dtype), row, shape, stats=support.stats.reshape(shape), first=starts_of(row, shape)
    )
