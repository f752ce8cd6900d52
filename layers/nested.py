"""Step two for nested structures: their weights are differences of block means, so nothing has to be solved."""

import torch
from torch import Tensor

from .distribution import SparseDistribution, starts_of
from .solvers.supports import NestedSupport


def nested_distribution(scores: Tensor, support: NestedSupport, shape: torch.Size, dtype: torch.dtype) -> SparseDistribution:
    """`refit` on structures each of which contains the one before it, without writing down what is not used.

    The used structures cut the coordinates, in their order, into blocks: first what all have on, last what none has. On every
    block between, A p is constant, with the value c_j = sum of the weights of the structures that have block j on. So the QP

        min ||A p - t||^2  s.t.  sum p = 1

    falls apart into c_j = the mean of t over block j, and p_k = c_k - c_(k+1) with c_0 = 1 and 0 behind the last. That is the
    solution of the KKT system (paper eq. 13), and its derivative is that of paper eq. 17.

    Args:
        scores: t, [B, D] float64, finite or `-inf`; carries the gradient.
        support: of B rows, at least one structure in each; only which have mass counts, not how much.
        shape: the batch's, of B rows.
        dtype: of the result.

    Cost: O(B D) besides the N D entries of the packed atoms; `refit` is O(B D^3) on such a support.
    """
    batch, dim = scores.shape
    order, used = support.order, support.probs > 0
    count = used.cumsum(-1)  # [B, D + 1]; of a used structure: its number, from 1
    last = count[:, -1:]
    block = count[:, :-1]  # [B, D], of each coordinate in the order
    between = (block > 0) & (block < last)
    ordered = torch.where(between, scores.gather(1, order), 0)
    place = (block + (dim + 2) * torch.arange(batch, device=scores.device)[:, None]).flatten()

    def by_block(values: Tensor) -> Tensor:
        return values.new_zeros(batch * (dim + 2)).index_add(0, place, values.flatten()).reshape(batch, dim + 2)

    size = by_block(between.to(scores.dtype))
    number = torch.arange(dim + 2, device=scores.device)
    level = torch.where(number == 0, 1, torch.where(number < last, by_block(ordered) / size.clamp(min=1), 0))
    probs = level.gather(1, (count - 1).clamp(min=0)) - level.gather(1, count)

    row, structure = used.nonzero(as_tuple=True)
    rank = order.argsort(-1)
    atoms = (rank[row] < structure[:, None]).to(dtype)
    return SparseDistribution(
        atoms, probs[row, structure].to(dtype), row, shape, stats=support.stats.reshape(shape), first=starts_of(row, shape)
    )
