"""The Euclidean projection on the Birkhoff polytope and its rectangular cousin: a Newton method for its dual."""

import math

import torch
from torch import Tensor

from ..kernels.sorting import sorted_values
from .placement import placed

# The problem is solved for the scores times 4^-s first, then with s one lower, and so on. Where scores spread over no more
# than this, of the order of the entries of the answer, Newton's method needs no such path.
_EASY_SPREAD = 2.0
_STAGE = 4.0
_STAGE_STEPS, _STAGE_RESIDUAL = 8, 1e-3  # a start for the next stage need not be accurate
_LAST_STEPS = 200  # random, tied and degenerate scores of up to 100 rows needed fewer than 70 in all stages together
# Steps along Newton's direction, all tried at once, Newton's own first.
_LENGTHS = torch.tensor([1.0, 4.0, *(4.0**-power for power in range(1, 8))])
# Scores of a larger spread are solved in turns; see `_shifted`.
_PROPORTION, _TURNS = 1e11, 64
_MUCH_NOISE, _TOO_MUCH_NOISE = 1e-9, 1e-6  # rounding that takes another turn; that leaves a row unsettled
_FAR, _UNSOLVED = 1e4, 0.1  # lower than that scores are out of reach; sums off by more are no start for another turn
_DAMPING = 1e-4  # of the residual: small against the Laplacian's eigenvalues, large against rounding
_EPS, _LOWEST = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).min


def project_assignments(scores: Tensor, columns_full: bool) -> tuple[Tensor, Tensor]:
    """argmin ||X - T||^2 over {X >= 0, X 1 = 1, X'1 = 1}, or X'1 <= 1; differentiable in T, any number of times.

    The answer is X = max(T + u 1' + 1 v', 0); where columns may be empty, v <= 0, and v_j = 0 if column j is not full. Given v,
    each row's u is a threshold, found by sorting, which leaves a convex and piecewise quadratic function of v:

        g(v) = sum_i min_u { ||max(T_i + u + v, 0)||^2 / 2 - u } - 1'v,     grad g = X'1 - 1.

    A semismooth Newton method (as Li, Sun and Toh 2020, On the efficient computation of a projector over the Birkhoff
    polytope) minimises it over the columns that are not held at v = 0. On the support S of X the second derivative is the
    graph Laplacian diag(S'1) - S' diag(S 1)^-1 S, damped for what that leaves open. Departures from the paper: u is
    eliminated, every step begins with a round of coordinate ascent and takes the best of a few lengths, and scores that
    spread far are reached through smaller ones.

    On the support and the full columns so found X is linear in T. That map gives the value, and the gradient.

    Args:
        scores: T, [B, n, m] float64, n <= m, without NaN or +inf. `-inf` forbids an entry.
        columns_full: whether columns sum to one (n = m), or to at most one.

    Returns:
        X [B, n, m] and settled [B] bool. A row that is not settled (there is no answer, or the limit of steps was reached)
        holds a point nearby with the right sums, perhaps with forbidden entries on, and the derivative of that map.

    Ties need no rule: the projection is unique. At a kink the derivative is that of the face where entries which are 0 with
    no force on them stay 0.

    Cost: O(n m log m + m^3) a row for each step. Normal scores of n = m = 30: 10 steps at scale 1, 40 at scale 100. Masks of
    -1e30 take several times as long as `-inf`, those of -1e300 a hundred times.
    """
    with torch.no_grad():
        shifted, full, noise = _shifted(scores.detach(), columns_full)
        support = shifted > noise
        inverse = _inverse(support, full)
    # Relative to the potentials, so that little is left to the last step, and little of its rounding.
    relative = torch.where(shifted.isneginf(), shifted, shifted + (scores - scores.detach()))
    on = support.double()
    count = on.sum(-1, keepdim=True).clamp(min=1)
    kept = torch.where(support, relative, 0)
    line = (1 - kept.sum(-1, keepdim=True)) / count
    lacking = torch.where(full, 1 - (kept + on * line).sum(-2), 0)
    column = (inverse @ lacking[..., None]).mT  # [B, 1, m]
    line = line - (on * column).sum(-1, keepdim=True) / count
    mean = kept + on * (line + column)
    with torch.no_grad():
        excess = mean.sum(-2) - 1
        # Off the support nothing may have come to be positive.
        over = torch.where(support, -mean, relative + line + column).amax((-2, -1))
        wrong = torch.maximum((mean.sum(-1) - 1).abs().amax(-1), torch.where(full, excess.abs(), excess).amax(-1))
        settled = (wrong <= 1e-9) & (over <= 1e-9 + 2 * noise[:, 0, 0]) & (noise[:, 0, 0] <= _TOO_MUCH_NOISE)
        repair = torch.where(settled[:, None, None], mean.clamp(min=0), _repaired(mean)) - mean
    return mean + repair, settled


def _shifted(scores: Tensor, columns_full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """T + u 1' + 1 v' with the potentials of the projection of T [B, n, m], up to rounding.

    Potentials so large that rounding hides what they are added to, as masks of -1e15 make them, are added without rounding, and
    the problem that is left is solved in turn. Where it is out of all proportion, a fraction of it that is not is solved first.

    Returns:
        the sum [B, n, m]; which columns are full [B, m] bool; what in the sum is rounding [B, 1, 1].
    """
    shifted = scores.clone()
    room = torch.full_like(scores[:, :1], torch.inf if columns_full else 0)  # how far v may rise
    noise = torch.zeros_like(scores[:, :1, :1])
    rows, terms, reach = torch.arange(len(scores), device=scores.device), [scores], torch.inf
    for _ in range(_TURNS):
        terms.append(-shifted[rows].amax(-1, keepdim=True).clamp(min=_LOWEST))
        lowered = _exact_sum(terms)
        lowered = lowered.masked_fill(lowered < -reach, -torch.inf)
        spread = torch.where(lowered.isneginf(), 0, -lowered).amax((-2, -1), keepdim=True)
        scale = (-(spread / _PROPORTION).clamp(min=1).log2().ceil()).exp2()
        room_left = room[rows] * scale
        columns = _columns(lowered * scale, room_left[:, 0])[:, None, :]
        lines = _threshold(lowered * scale + columns)
        # What is below this, in sums of potentials of that size, is rounding.
        rounding = 1e-11 + 8 * _EPS * (lines.abs().amax(-2, keepdim=True) + columns.abs().amax(-1, keepdim=True))
        terms += [lines / scale, columns / scale]
        shifted[rows], noise[rows] = _exact_sum(terms), rounding / scale
        room[rows] = room[rows] if columns_full else _exact_sum([-term for term in terms[3::3]])
        # Where no potentials give the sums there is no answer, and nothing to go on from.
        excess = (lowered * scale + lines + columns).clamp(min=0).sum(-2, keepdim=True) - 1
        solved = torch.where(columns < room_left, excess.abs(), excess).amax(-1, keepdim=True) < _UNSOLVED
        again = (((noise[rows] > _MUCH_NOISE) | (scale < 1)) & solved)[:, 0, 0]
        if not bool(again.any()):
            break
        # What is lower was of no account, and will not be.
        rows, terms, reach = rows[again], [term[again] for term in terms], (_FAR / scale)[again]
    return shifted, (room > noise)[:, 0], noise


def _exact_sum(terms: list[Tensor]) -> Tensor:
    """Their sum, rounded once: what an addition rounds off is a term again (Ogita, Rump and Oishi 2005, algorithm 4.8).

    As often as the digits of the largest take to come down to the 16th after the point, and once more.
    """
    parts = list(torch.broadcast_tensors(*terms))
    largest = max((float(torch.where(t.isfinite(), t.abs(), 0).amax()) for t in terms if t.numel()), default=0.0)
    for _ in range(min(len(parts) - 1, 2 + int(math.log10(max(largest, 1)) / 15))):
        for place in range(1, len(parts)):
            one, other = parts[place - 1], parts[place]
            total = one + other
            back = total - one
            parts[place] = total
            parts[place - 1] = torch.where(total.isfinite(), (one - (total - back)) + (other - back), 0)
    return sum(parts[1:], parts[0])


def _columns(scores: Tensor, room: Tensor) -> Tensor:
    """v [B, m], at most `room`, of the projection of scores [B, n, m], each row's largest 0."""
    columns = torch.zeros_like(scores[:, 0])
    if not len(scores):
        return columns
    spread = torch.where(scores.isneginf(), 0, -scores).amax((-2, -1))
    stages = (spread / _EASY_SPREAD).clamp(min=1).log2().div(2).ceil()
    for stage in range(int(stages.max()), 0, -1):
        begun = stages >= stage
        scale = _STAGE**-stage
        start, most = columns[begun] * scale, room[begun] * scale
        columns[begun] = _newton(scores[begun] * scale, start, most, _STAGE_STEPS, _STAGE_RESIDUAL) / scale
    return _newton(scores, columns.minimum(room), room, _LAST_STEPS, 1e-12)


def _newton(scores: Tensor, columns: Tensor, room: Tensor, steps: int, residual: float) -> Tensor:
    """v [B, m], at most `room`, of the projection, from a v nearby, up to `residual` in the sums."""
    answer = columns.clone()
    rows = torch.arange(len(scores), device=scores.device)
    lengths = placed(_LENGTHS, scores.device, scores.dtype)[:, None, None]
    for _ in range(steps):
        # A round of coordinate ascent: given v the best u, given u the best v.
        columns = _threshold((scores + _threshold(scores + columns[:, None, :])).mT)[..., 0]
        columns = columns.minimum(room)
        lines = _threshold(scores + columns[:, None, :])
        table = (scores + lines + columns[:, None, :]).clamp(min=0)
        slope = table.sum(-2) - 1
        free = (columns < room) | (slope > 0)
        slope = torch.where(free, slope, 0)
        error = torch.maximum(slope.abs().amax(-1), (table.sum(-1) - 1).abs().amax(-1))
        answer[rows] = columns
        left = error > residual + 8 * _EPS * (lines.abs().amax((-2, -1)) + columns.abs().amax(-1))
        if not bool(left.any()):
            break
        scores, columns, room, lines, table, slope, free, error, rows = (
            tensor[left] for tensor in (scores, columns, room, lines, table, slope, free, error, rows)
        )
        on = (table > 0).to(scores)
        count = on.sum(-1, keepdim=True).clamp(min=1)
        damping = _DAMPING * error.clamp(1e-6, 1)[:, None]
        laplacian = torch.where(free[:, None, :] & free[:, :, None], -on.mT @ (on / count), 0)
        laplacian = laplacian + torch.diag_embed(torch.where(free, on.sum(-2) + damping, 1))
        move = -torch.linalg.solve(laplacian, slope)
        shift = -(on * move[:, None, :]).sum(-1, keepdim=True) / count
        tried = columns + lengths * move  # [lengths, B, m]
        tried = tried.minimum(room)
        raised = lines + lengths[..., None] * shift
        value = (scores + raised + tried[:, :, None, :]).clamp(min=0).square().sum((-2, -1)) / 2
        value = value - raised.sum((-2, -1)) - tried.sum(-1)
        # Close to the answer values differ by rounding alone, and Newton's own step is the one to take.
        lowest = value.amin(0)
        equal = value[0] <= lowest + 1e-14 * (1 + lowest.abs())
        chosen = torch.where(equal, 0, value.argmin(0))
        columns = tried.gather(0, chosen[None, :, None].expand(1, *columns.shape))[0]
        answer[rows] = columns
    return answer


def _threshold(scores: Tensor) -> Tensor:
    """u with sum_j max(scores_j + u, 0) = 1, [..., m] -> [..., 1]; 0 where all are `-inf`."""
    ordered = sorted_values(scores, descending=True)
    totals = ordered.cumsum(-1)
    place = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    size = ((ordered > -torch.inf) & (place * ordered > totals - 1)).sum(-1, keepdim=True)
    return torch.where(size > 0, (1 - totals.gather(-1, (size - 1).clamp(min=0))) / size.clamp(min=1), 0)


def _inverse(support: Tensor, full: Tensor) -> Tensor:
    """The inverse of the Laplacian of the full columns, [B, n, m] and [B, m] -> [B, m, m], zero elsewhere.

    Potentials are determined but for a constant on the columns of each component of the support that has full ones only. The
    projector on these constants, added, makes the Laplacian regular and does not change what it gives for right-hand sides
    that have a solution.
    """
    on = support.double()
    linked = on.mT @ on + torch.eye(on.shape[-1], dtype=on.dtype, device=on.device)
    for _ in range((on.shape[-1] - 1).bit_length()):
        linked = (linked > 0).double()
        linked = linked @ linked
    linked = linked > 0
    closed = ~(linked & ~full[:, None, :]).any(-1)  # [B, m]: all of the column's component is full
    constant = torch.where(closed[:, :, None], linked / linked.sum(-1, keepdim=True), 0)
    both = full[:, None, :] & full[:, :, None]
    laplacian = torch.diag_embed(on.sum(-2)) - on.mT @ (on / on.sum(-1, keepdim=True).clamp(min=1))
    regular = torch.where(both, laplacian + constant, torch.diag_embed((~full).double()))
    return torch.where(both, torch.linalg.inv(regular), 0)


def _repaired(table: Tensor) -> Tensor:
    """A table made nonnegative and to have the sums (Altschuler, Weed and Rigollet 2017, algorithm 2)."""
    table = table.clamp(min=0)
    table = table / table.sum(-1, keepdim=True).clamp(min=1)
    table = table / table.sum(-2, keepdim=True).clamp(min=1)
    lines, columns = 1 - table.sum(-1, keepdim=True), (1 - table.sum(-2, keepdim=True)).clamp(min=0)
    return table + lines * columns / columns.sum(-1, keepdim=True).clamp(min=torch.finfo(table.dtype).tiny)
