"""The variational auto-encoder with a bit vector as its latent variable."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .estimators import Estimate, Estimator, Learned
from .networks import Decoder, Encoder
from .objective import pixel_cross_entropy


@dataclass(frozen=True)
class Bound:
    """The negative evidence lower bound of each image of a batch and its two terms, in nats.

    Attributes:
        loss: scalar with the value and the gradient of mean_x [E_q l - H(q)], the bound without its constant D log 2, as
            the estimator has them.
        distortion: [B] detached: E_q l, the expected reconstruction cost.
        rate: [B] detached: D log 2 - H(q), the divergence KL(q || uniform).
        negative_elbo: [B] detached: distortion + rate >= -log p(x).
        estimate: what the estimator returned: support, most probable codes, number of decoder calls.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor
    negative_elbo: Tensor
    estimate: Estimate


class BitVectorVAE(nn.Module):
    """p(x) = sum_z 2^-D p(x | z) with z in {0, 1}^D, trained by  min E_q l(x, z) - H(q(. | x)).

    l(x, z) = -log p(x | z). Correia et al. 2020, section 5.3. The prior is uniform over all 2^D codes, also where the
    estimator's structures are fewer (a budget), as in the paper.

    Args:
        encoder: image to scores.
        decoder: code to pixel distributions.
        estimator: how E_q l and its gradient are computed. It is given the encoder's input as context; a learned baseline
            without a size takes that of the images.
        max_logits: bound on the pixel logits held at a time; see `pixel_cross_entropy`.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, estimator: Estimator, max_logits: int | None = None) -> None:
        super().__init__()
        if encoder.dim != decoder.dim:
            raise ValueError(
                f"the encoder gives scores of {encoder.dim} bits but the decoder takes {decoder.dim}: "
                "build both with the same dim"
            )
        if encoder.levels != decoder.head.out_features:
            raise ValueError(
                f"the encoder takes images of {encoder.levels} grey levels but the decoder gives distributions over "
                f"{decoder.head.out_features}: build both with the same levels"
            )
        if estimator.dim not in (None, encoder.dim):
            raise ValueError(
                f"the encoder gives scores of {encoder.dim} bits but the estimator's structures have {estimator.dim}: "
                "give the model and the estimator's polytope the same dim"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.estimator = estimator
        for module in estimator.modules():
            if isinstance(module, Learned):
                module.build(encoder.pixels)
        self.max_logits = max_logits

    def forward(self, images: Tensor) -> Bound:
        """Bound -log p(x) for images [B, pixels] of integer grey levels."""

        def cost(codes: Tensor, row: Tensor) -> Tensor:
            return self.distortion(codes, images[row])

        scores = self.encoder(images)
        # As the encoder takes them: a network on grey levels up to 255 would start with outputs as large.
        context = images.to(scores.dtype) / (self.encoder.levels - 1)
        estimate = self.estimator(scores, cost, context=context)
        rate = self.encoder.dim * math.log(2) - estimate.entropy.detach()
        return Bound(
            loss=estimate.surrogate.mean() - estimate.entropy.mean(),
            distortion=estimate.value,
            rate=rate,
            negative_elbo=estimate.value + rate,
            estimate=estimate,
        )

    def distortion(self, codes: Tensor, images: Tensor) -> Tensor:
        """-log p(x | z) in nats of pairs of a code [n, D] and an image [n, pixels]: [n]."""
        return pixel_cross_entropy(self.decoder.features(codes), self.decoder.head, images, max_logits=self.max_logits)

    def bits_per_dim(self, nats: Tensor) -> Tensor:
        """Convert nats per image to bits per pixel."""
        return nats / (self.encoder.pixels * math.log(2))

    @torch.no_grad()
    def reconstruct(self, codes: Tensor) -> Tensor:
        """Compute the mean grey level of every pixel, [n, pixels] in [0, levels - 1], given codes [n, D]."""
        probs = self.decoder(codes).softmax(-1)
        levels = torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)
        return probs @ levels
