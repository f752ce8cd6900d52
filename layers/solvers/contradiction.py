"""A proof that the factors of a graph contradict one another, by what they answer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...oracles import Parts
from ...oracles.factor_graph import Group
from .oracle import Oracle

# What is below 0 by less than this part of its terms may be rounding.
SURE = 1e-6
# Factors whose direction is below this part of the largest have no share in a contradiction.
INVOLVED = 1e-3


def contradicting(groups: Sequence[Group], parts: Sequence[Parts | None], directions: Sequence[Tensor]) -> Tensor:
    """Which factors of each row contradict one another: [B, F] bool, the factors of all groups one after the other.

    Directions d_f that add up to nothing at every variable are a proof that no point is in all factors if

        sum_f max over structures v of factor f of <d_f, v>  <  0

    as a point mu in all of them would make it at least sum_f <d_f, mu_f> = 0. Where there is none, the differences mu_f - x_f
    that ADMM is left with tend to such directions (Banjac, Goulart, Stellato and Boyd 2019). Rows whose directions prove
    nothing have none.

    Args:
        groups, parts: of a factor graph; the coordinates of each polytope that are variables.
        directions: d_f of every group, [B, F, n]; `-inf` where a variable is 0.
    """
    terms, sizes = [], []
    for group, part, direction in zip(groups, parts, directions, strict=True):
        batch, factors, width = direction.shape
        flat = direction.flatten(0, 1)
        additional = flat.new_zeros(len(flat), group.polytope.dim - width)
        oracle = Oracle.of(group.polytope, group.scores(flat, additional, part))
        best = oracle(oracle.target, torch.ones_like(oracle.target[:, 0], dtype=torch.bool))
        terms.append((oracle.target * best).reshape(batch, -1))
        sizes.append(oracle.target.abs().amax(-1).reshape(batch, factors))
    term, size = torch.cat(terms, -1), torch.cat(sizes, -1)
    proved = term.sum(-1) < -SURE * term.abs().sum(-1)
    return proved[:, None] & (size > INVOLVED * size.amax(-1, keepdim=True))
