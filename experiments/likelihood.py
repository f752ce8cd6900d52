"""log p(x) of test images, by the paper's estimate and by one that is the same for every method."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import SparseDistribution
from ..models import BitVectorVAE
from ..models.likelihood import LogMarginal, mixture_importance, posterior_and_prior, posterior_importance


@dataclass(frozen=True)
class Likelihoods:
    """Two estimates of log p(x) for N images.

    Attributes:
        published: Appendix D of the paper.
        importance: the same for every method.
        pixels: of an image.
    """

    published: LogMarginal
    importance: LogMarginal
    pixels: int

    @classmethod
    def of(cls, vae: BitVectorVAE, images: Tensor, samples: int, seed: int) -> "Likelihoods":
        """Estimate log p(x) of images [B, pixels], the same for the same seed."""

        def log_likelihood(codes: Tensor, row: Tensor) -> Tensor:
            return -vae.distortion(codes, images[row])

        with torch.no_grad():
            posterior = vae.estimator.distribution(vae.encoder(images))
        generator = torch.Generator(images.device).manual_seed(seed)
        published = (
            posterior_and_prior(posterior, log_likelihood, samples, generator=generator)
            if isinstance(posterior, SparseDistribution)
            else posterior_importance(posterior, log_likelihood, samples, generator=generator)
        )
        importance = mixture_importance(posterior, log_likelihood, samples, generator=generator)
        return cls(published, importance, vae.encoder.pixels).cpu()

    @classmethod
    def join(cls, records: "list[Likelihoods]") -> "Likelihoods":
        published, importance = (_joined([getattr(r, name) for r in records]) for name in ("published", "importance"))
        return cls(published, importance, records[0].pixels)

    def __len__(self) -> int:
        return len(self.published.value)

    def cpu(self) -> "Likelihoods":
        return Likelihoods(_joined([self.published]), _joined([self.importance]), self.pixels)

    def summarize(self) -> dict[str, Tensor]:
        """-log p(x) in bits per pixel, the mean over images and its Monte Carlo standard error; what the estimates rest on."""
        metrics = {}
        for name, estimate in (("appendix_d", self.published), ("importance", self.importance)):
            unit = len(self) * self.pixels * math.log(2)
            metrics[f"bits_per_dim_{name}"] = -estimate.value.sum() / unit
            metrics[f"bits_per_dim_{name}_error"] = estimate.standard_error.square().sum().sqrt() / unit
            metrics[f"calls_{name}"] = torch.tensor(estimate.evaluations / len(self))
        effective = self.importance.effective_samples
        metrics["effective_samples_mean"] = effective.mean()
        metrics["effective_samples_q5"] = effective.quantile(0.05)
        metrics["likelihood_images"] = torch.tensor(len(self))
        return {name: value.float() for name, value in metrics.items()}


def _joined(parts: list[LogMarginal]) -> LogMarginal:
    return LogMarginal(
        value=torch.cat([part.value.cpu() for part in parts]),
        standard_error=torch.cat([part.standard_error.cpu() for part in parts]),
        effective_samples=torch.cat([part.effective_samples.cpu() for part in parts]),
        evaluations=sum(part.evaluations for part in parts),
    )
