"""From weighted codes to log p(x), with its standard error."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""log_likelihood(codes [n, D], row [n]) -> [n]: log p(x | z) in nats of code `codes[i]` and image number `row[i]`."""

_BITS = 62  # of a code in a word
_PAIRS = 1024  # evaluated at a time


@dataclass(frozen=True)
class LogMarginal:
    """Estimates of log p(x) for a batch of B images.

    Attributes:
        value: [B] float64, nats. Below log p(x) in expectation, by about half the squared standard error; `-inf`, with NaN for
            the others, where p(x | z) was 0 for all codes.
        standard_error: [B] float64, nats, by the delta method; 0 where nothing was sampled. Where a few weights outweigh all
            others (`effective_samples` is small), it is itself too small.
        effective_samples: [B] float64: (sum w)^2 / sum w^2 of the weights of what was sampled; NaN where nothing was.
        evaluations: how many (image, code) pairs p(x | z) was evaluated on.
    """

    value: Tensor
    standard_error: Tensor
    effective_samples: Tensor
    evaluations: int


def log_marginal(log_exact: Tensor, log_weights: Tensor, evaluations: int) -> LogMarginal:
    """log (exact + mean_s w_s), from log_exact [B] and log_weights [S, B]; S may be 0."""
    log_exact, log_weights = log_exact.double(), log_weights.double()
    count = len(log_weights)
    if count == 0:
        nothing = torch.zeros_like(log_exact)
        return LogMarginal(log_exact, nothing, nothing / 0, evaluations)
    largest = log_weights.amax(0)
    peak = torch.maximum(log_exact, largest)
    peak = torch.where(peak.isneginf(), 0, peak)  # nothing that was met is possible: p(x) is estimated as 0
    weights = (log_weights - peak).exp()
    total = (log_exact - peak).exp() + weights.mean(0)
    deviation = weights.std(0) if count > 1 else torch.full_like(total, torch.inf)
    # Where the exact part outweighs all, the others would underflow.
    own = (log_weights - torch.where(largest.isneginf(), 0, largest)).exp()
    return LogMarginal(
        value=peak + total.log(),
        standard_error=deviation / math.sqrt(count) / total,
        effective_samples=own.sum(0).square() / own.square().sum(0),
        evaluations=evaluations,
    )


def evaluate(log_likelihood: LogLikelihood, codes: Tensor) -> tuple[Tensor, int]:
    """log p(x | z) of codes [S, B, D], each distinct (image, code) pair once: [S, B] float64, and how many there were."""
    count, batch, dim = codes.shape
    row = torch.arange(batch, device=codes.device).repeat(count)
    flat = codes.reshape(-1, dim)
    keys = torch.stack([row, *_packed(flat)], -1)
    distinct, inverse = keys.unique(dim=0, return_inverse=True)
    # One pair of each; which one does not matter.
    place = torch.empty(len(distinct), dtype=torch.int64, device=codes.device)
    place[inverse] = torch.arange(len(flat), device=codes.device)
    pieces = [log_likelihood(flat[part], row[part]).double() for part in place.split(_PAIRS)]
    values = torch.cat(pieces) if pieces else flat.new_zeros(0, dtype=torch.float64)
    return values[inverse].reshape(count, batch), len(distinct)


def _packed(codes: Tensor) -> list[Tensor]:
    """Bits [n, D] as words of `_BITS` bits, [n] int64 each."""
    bits = (codes > 0.5).long()
    return [(part << torch.arange(part.shape[-1], device=bits.device)).sum(-1) for part in bits.split(_BITS, dim=-1)]
