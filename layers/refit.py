"""Step two of every operator: the probabilities on a known support, differentiably.

The support is found without gradient. On it the problem is an equality-constrained QP whose solution is linear in the
scores, so one step of linear algebra gives both the probabilities and, through autograd, the implicit gradient. Every operator
over structures has its gradients from here (`tangent` puts those of several polytopes together, `face` adds to the mean's what
the support does not span); double backward, forward mode and vmap come with it.
"""

import torch
from torch import Tensor

from ..oracles import Parts
from ..oracles.checks import cannot_branch


def refit(
    scores: Tensor,
    atoms: Tensor,
    probs: Tensor,
    check: bool = True,
    parts: Parts | None = None,
    sensitivity: Tensor | None = None,
) -> Tensor:
    """The weights that solve min ||A p - t||^2 s.t. sum p = 1 on the support, as a function of the scores t.

    They are the p of the KKT system (paper eq. 13)

        [[A'A, 1], [1', 0]] [p; tau] = [A't; 1],

    computed as one Newton step from the solver's weights p0, which is exact for a quadratic:

        p = p0 + P dt,   dt = A'(t - A p0),   P = S - S 11'S / (1'S 1),   S = (A'A + c 11')^-1 for any c > 0

    so that the value is as accurate as the solver's and the Jacobian dp/dt is that of paper eq. 17. Where the step would
    leave the simplex (a solver that stopped early) the value stays p0 and only the Jacobian is taken.

    Where only the coordinates R are regularised, the problem is max <A p, t> - 1/2 ||A_R p||^2: A'A is A_R'A_R, A't is
    unchanged, and dt = A'(t - [A_R p0, 0]).

    Args:
        scores: [B, D] float64; entries of `-inf` are coordinates that are 0 in every atom.
        atoms: [B, S, D] float64 without gradient. The used atoms of a row are affinely independent (in R).
        probs: [B, S] float64 without gradient: p0, positive on used slots and 0 elsewhere, summing to 1.
        check: look for affinely dependent atoms (one host synchronisation).
        parts: which coordinates are regularised; None for all.
        sensitivity: P [B, S, S], where the solver has it; then p0 is the value as it is.

    Returns:
        [B, S] float64, 0 on unused slots; carries the gradient to `scores`.

    Raises:
        ValueError: the atoms of a row are affinely dependent, so that their weights are not determined by the scores.

    Cost: O(B S^2 (S + D)); O(B S (S + D)) with `sensitivity`.
    """
    with torch.no_grad():
        used = (probs > 0).to(atoms)
        # Relative to one atom, coordinates on which all agree vanish exactly, however large their scores.
        heaviest = probs.argmax(-1)[:, None, None].expand(-1, 1, atoms.shape[-1])
        base = atoms.gather(1, heaviest)
        shifted = (atoms - base).mul_(used[..., None])
        mean = base[..., 0, :]
        if sensitivity is None:  # else only the derivative of the step counts, not how long it is
            mean = mean + (probs[..., None, :] @ shifted)[..., 0, :]
        if parts is not None:
            mean = parts.penalized(mean)
    finite = torch.where(scores.isneginf(), 0, scores)
    slopes = (shifted @ (finite - mean)[..., None])[..., 0]
    if sensitivity is not None:
        step = (sensitivity @ slopes[..., None])[..., 0]
        return probs + (step - step.detach())
    step = _newton_step(slopes, shifted if parts is None else shifted[..., parts.regularized], used, check)
    feasible = ((probs + step.detach()) >= 0).all(-1, keepdim=True)
    return probs + torch.where(feasible, step, step - step.detach())


def _newton_step(slopes: Tensor, atoms: Tensor, used: Tensor, check: bool) -> Tensor:
    """P dt, from slopes dt [B, S]; atoms [B, S, R] are zero and `used` [B, S] is 0 on unused slots."""
    with torch.no_grad():
        # Any positive multiple of 11' makes A'A definite; one of the size of the atoms keeps it well conditioned.
        size = atoms.square().sum(-1).amax(-1)
        size = torch.where(size > 0, size, 1)[..., None, None]
        gram = atoms @ atoms.mT / size + used[..., :, None] * used[..., None, :] + torch.diag_embed(1 - used)
        factor, info = torch.linalg.cholesky_ex(gram)
        if check and not cannot_branch(factor):
            _check_independent(factor, info)
        level = torch.cholesky_solve(used[..., None], factor)[..., 0]
        total = (used * level).sum(-1, keepdim=True)
    solved = torch.cholesky_solve((slopes / size[..., 0])[..., None], factor)[..., 0]
    return (solved - level * ((used * solved).sum(-1, keepdim=True) / total)) * used


def _check_independent(factor: Tensor, info: Tensor) -> None:
    # Pivots of 0/1 atoms are ratios of determinants of integer matrices; 1e-12 relative is rounding, not a pivot.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    dependent = (info > 0) | (pivots.amin(-1) < 1e-12 * pivots.amax(-1))
    if dependent.any():
        row = int(dependent.nonzero()[0])
        raise ValueError(
            f"the structures in the support of row {row} are affinely dependent, so the scores do not determine their "
            f"weights; a solver or `decompose` must return affinely independent structures (at most dim + 1). Structures "
            f"whose coordinates differ in size by 1e5 and more look so in float64, too: bring them to like sizes"
        )
