"""The estimates of log p(x) that the paper reports: one for sparse posteriors, another for the others (its Appendix D)."""

import math

import torch
from torch import Tensor

from ...layers import SparseDistribution
from ...oracles import GibbsDistribution
from ...oracles.checks import check_count
from .weights import LogLikelihood, LogMarginal, evaluate, log_marginal


@torch.no_grad()
def posterior_and_prior(
    posterior: SparseDistribution,
    log_likelihood: LogLikelihood,
    samples: int = 1024,
    *,
    generator: torch.Generator | None = None,
) -> LogMarginal:
    """Sum over a sparse posterior's support exactly and sample the rest from the prior:

        p(x) ~ sum_{z in S} 2^-D p(x | z)  +  (1 - |S| 2^-D) mean_s p(x | z_s),   z_s uniform outside S,

    by rejection. Correia et al. 2020, Appendix D, eq. 18; their code does not reject. Unbiased for p(x). At D = 32 the
    second part rarely meets a code that matters: in effect the value is the first part, a lower bound.

    Args:
        posterior: over bit vectors, of a batch of B images, [B].
        log_likelihood: log p(x | z), nats.
        samples: of the rest, for each image.
        generator: on the posterior's device; None is torch's global one.

    Cost: `samples` + |S| evaluations an image, and O(samples |S| D) to compare codes.
    """
    samples = check_count("samples", samples, 0)
    inside = log_likelihood(posterior.atoms, posterior.row).double()
    values, _ = SparseDistribution(inside[:, None], posterior.probs, posterior.row, posterior.batch_shape).padded()
    dim, slots = posterior.atoms.shape[1], torch.arange(values.shape[1], device=values.device)
    held = slots < posterior.support_size()[:, None]
    log_exact = values[..., 0].masked_fill(~held, -torch.inf).logsumexp(-1) - dim * math.log(2)
    rest = 1 - posterior.support_size().double() * 2.0**-dim
    outside, evaluations = evaluate(log_likelihood, _outside(posterior, samples, held, rest > 0, generator))
    return log_marginal(log_exact, outside + rest.log(), len(inside) + evaluations)


@torch.no_grad()
def posterior_importance(
    posterior: GibbsDistribution,
    log_likelihood: LogLikelihood,
    samples: int = 1024,
    *,
    generator: torch.Generator | None = None,
) -> LogMarginal:
    """Importance sampling from a posterior that gives every code mass:  p(x) ~ mean_s 2^-D p(x | z_s) / q(z_s | x),  z_s ~ q.

    Correia et al. 2020, Appendix D. Unbiased for p(x), but far below it in most draws where q is narrower than p(z | x); codes
    that q cannot draw (those over a budget) are left out.

    Args:
        posterior: over bit vectors, of a batch of images.
        log_likelihood, samples, generator: as for `posterior_and_prior`.
    """
    codes = posterior.sample((check_count("samples", samples, 1),), generator)
    values, evaluations = evaluate(log_likelihood, codes)
    log_weights = values - codes.shape[-1] * math.log(2) - posterior.log_prob(codes).double()
    return log_marginal(torch.full_like(log_weights[0], -torch.inf), log_weights, evaluations)


def _outside(
    posterior: SparseDistribution, samples: int, held: Tensor, possible: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Uniform codes off the support, [samples, B, D]; any codes in rows whose support is everything."""
    atoms, _ = posterior.padded()
    dim = atoms.shape[-1]

    def draw(count: int) -> Tensor:
        return torch.randint(2, (count, dim), generator=generator, device=atoms.device).to(atoms)

    codes = draw(samples * len(atoms)).reshape(samples, len(atoms), dim)
    while True:
        # A code is an atom where the signs of their bits agree in all places.
        agreement = torch.einsum("sbd,bnd->sbn", 2 * codes - 1, 2 * atoms - 1)
        rejected = ((agreement > dim - 0.5) & held).any(-1) & possible
        if not bool(rejected.any()):
            return codes
        codes[rejected] = draw(int(rejected.sum()))
