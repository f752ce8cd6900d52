"""One estimate of log p(x) for all posteriors, so that methods can be compared."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers import SparseDistribution
from ...oracles import GibbsDistribution
from ...oracles.checks import check_count
from .mixture import BernoulliMixture
from .weights import LogLikelihood, LogMarginal, evaluate, log_marginal

CENTRES = 16
STARTS = 4
CLIMBS = 8
# Shares of the first round's components, and how far their bits stay from certain.
SHARES = {"atoms": 0.1, "near_atoms": 0.15, "near_peaks": 0.5, "marginals": 0.1, "uniform": 0.15}
SURE, NEAR_PEAKS, MARGINALS = 1e-6, 0.01, 0.1
# Share of the second round's components.
FOUND = 0.5


@torch.no_grad()
def mixture_importance(
    posterior: SparseDistribution | GibbsDistribution,
    log_likelihood: LogLikelihood,
    samples: int = 1024,
    *,
    generator: torch.Generator | None = None,
) -> LogMarginal:
    """Importance sampling from a defensive mixture:  p(x) ~ mean_s 2^-D p(x | z_s) / r(z_s),  z_s ~ r(. | x).

    r is made from codes drawn from the posterior, by the same procedure whatever kind of posterior it is. Its components:

    1. `CENTRES` codes drawn from the posterior;
    2. their neighbourhoods, each bit flipped with probability 1 / D;
    3. the neighbourhoods of `STARTS` local maxima of p(x | z), climbed to from the best of (1) and from random codes, each bit
       flipped as probably as p(z | x) would flip it with the others held;
    4. independent bits with the mean of (1);
    5. the uniform distribution;
    6. the neighbourhoods of the `CENTRES` codes of highest p(x | z) in a pilot sample from (1) to (5).

    Each sample is weighed by the density of the whole mixture, so that none weighs more than p(x | z) over the share of (5)
    (deterministic mixture, balance heuristic: Veach and Guibas 1995; defensive: Hesterberg 1995; Owen and Zhou 2000). What
    chose r is drawn apart from the samples: unbiased for p(x).

    Args:
        posterior: over bit vectors, of a batch of images, [B].
        log_likelihood: log p(x | z), nats.
        samples: for each image; half as many in the pilot.
        generator: on the posterior's device; None is torch's global one.

    Raises:
        ValueError: `samples` below 1.

    Cost: at most 1.5 `samples` + `CENTRES` + `STARTS` (D + 2) (`CLIMBS` + 1) evaluations an image, each distinct code of a
    round once (measured with 1,024 samples: 500 at D = 10, 2,100 at D = 32).
    """
    samples = check_count("samples", samples, 1)
    centres = posterior.sample((CENTRES,), generator)  # [C, B, D]
    values, first = evaluate(log_likelihood, centres)
    best = centres.gather(0, values.argmax(0)[None, :, None].expand(1, -1, centres.shape[-1]))
    anywhere = torch.rand(STARTS - 1, *best.shape[1:], generator=generator, device=best.device) < 0.5
    peaks, second = _climb(log_likelihood, torch.cat([best, anywhere.to(best)]))
    proposal = _proposal(centres, peaks)
    pilot = proposal.sample(samples // 2, generator).to(centres)
    values, third = evaluate(log_likelihood, pilot)
    proposal = proposal.beside(_neighbourhoods(*_highest(pilot, values)), 1 - FOUND)
    codes = proposal.sample(samples, generator).to(centres)
    values, fourth = evaluate(log_likelihood, codes)
    log_weights = values - codes.shape[-1] * math.log(2) - proposal.log_prob(codes)
    return log_marginal(torch.full_like(log_weights[0], -torch.inf), log_weights, first + second + third + fourth)


@dataclass(frozen=True)
class Peaks:
    """Where climbs ended: codes [R, B, D], their log p(x | z) [R, B], and its change upon a flip of each bit [R, B, D]."""

    codes: Tensor
    values: Tensor
    changes: Tensor


def _climb(log_likelihood: LogLikelihood, starts: Tensor) -> tuple[Peaks, int]:
    """Flip bits of codes [R, B, D] while that raises p(x | z), at most `CLIMBS` times; also the number of evaluations."""
    count, batch, dim = starts.shape
    values, evaluations = evaluate(log_likelihood, starts)
    codes, values, images = starts.flatten(0, 1), values.flatten(), torch.arange(batch, device=starts.device).repeat(count)
    changes = torch.zeros(count * batch, dim, dtype=torch.float64, device=starts.device)
    climbing = torch.arange(count * batch, device=starts.device)
    identity = torch.eye(dim, dtype=torch.bool, device=starts.device)
    for climb in range(CLIMBS + 1):
        here = codes[climbing]
        flipped = torch.where(identity, 1 - here[:, None], here[:, None]).flatten(0, 1)
        found, evaluated = _evaluate_rows(log_likelihood, flipped, images[climbing].repeat_interleave(dim))
        found, before = found.reshape(-1, dim), values[climbing, None]
        change = torch.where(found == before, 0, found - before)  # also where both are impossible
        changes[climbing] = change
        evaluations += evaluated
        rising = (change > 0).any(-1)
        if climb == CLIMBS or not bool(rising.any()):
            break
        climbing, here, change = climbing[rising], here[rising], change[rising]
        one, best = found[rising].max(-1)  # not of the changes: from an impossible code all are infinite
        # All flips that help alone; if they do not help together, the best one.
        together = torch.where(change > 0, 1 - here, here)
        reached, evaluated = _evaluate_rows(log_likelihood, together, images[climbing])
        evaluations += evaluated
        alone = torch.where(identity[best], 1 - here, here)
        codes[climbing] = torch.where((reached > one)[:, None], together, alone)
        values[climbing] = torch.maximum(reached, one)
    shape = (count, batch)
    return Peaks(codes.unflatten(0, shape), values.unflatten(0, shape), changes.unflatten(0, shape)), evaluations


def _evaluate_rows(log_likelihood: LogLikelihood, codes: Tensor, images: Tensor) -> tuple[Tensor, int]:
    """log p(x | z) of codes [n, D] and image numbers [n]."""
    values, evaluations = evaluate(lambda some, row: log_likelihood(some, images[row]), codes[None])
    return values[0], evaluations


def _highest(codes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The `CENTRES` codes of highest value among codes [S, B, D] of each image, equal ones once, and their values."""
    values, order = values.sort(0, descending=True)
    again = torch.zeros_like(values, dtype=torch.bool)
    again[1:] = values[1:] == values[:-1]  # equal codes have equal values
    values, place = values.masked_fill(again, -torch.inf).topk(min(CENTRES, len(values)), 0)
    place = order.gather(0, place)
    return codes.gather(0, place[..., None].expand(-1, -1, codes.shape[-1])), values


def _proposal(centres: Tensor, peaks: Peaks) -> BernoulliMixture:
    """The mixture of the first round, from centres [C, B, D]."""
    flips = peaks.changes.sigmoid().clamp(NEAR_PEAKS, 0.5)
    near_peaks = torch.where(peaks.codes > 0.5, 1 - flips, flips)
    probs = centres.double()
    even = probs.new_ones(probs.shape[:2])
    parts = {
        "atoms": (probs.clamp(SURE, 1 - SURE), even),
        "near_atoms": (_blurred(probs), even),
        "near_peaks": (near_peaks, _partly_even(peaks.values)),
        "marginals": (probs.mean(0, keepdim=True).clamp(MARGINALS, 1 - MARGINALS), even[:1]),
        "uniform": (torch.full_like(probs[:1], 0.5), even[:1]),
    }
    components = torch.cat([component for component, _ in parts.values()])
    weights = torch.cat([SHARES[name] * weight / weight.sum(0) for name, (_, weight) in parts.items()])
    return BernoulliMixture(components.transpose(0, 1), weights.T)


def _neighbourhoods(codes: Tensor, values: Tensor) -> BernoulliMixture:
    """Codes [C, B, D] with some bits flipped, more of them where log p(x | z), values [C, B], is higher."""
    return BernoulliMixture(_blurred(codes.double()).transpose(0, 1), _partly_even(values).T)


def _blurred(codes: Tensor) -> Tensor:
    """Independent bits that differ from the codes [..., D] in one place, on average."""
    flip = min(1 / codes.shape[-1], 0.5)
    return codes.clamp(flip, 1 - flip)


def _partly_even(values: Tensor) -> Tensor:
    """Weights by p(x | z), but half of all spread evenly: a lower peak may be wider. [C, B] log p -> [C, B].

    Where all are impossible, all weigh the same.
    """
    values = torch.where(values.isneginf().all(0), 0, values)
    found = ~values.isneginf()
    return 0.5 * values.softmax(0) + 0.5 * found / found.sum(0)
