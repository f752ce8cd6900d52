"""The variational auto-encoder with a class and a Gaussian vector as its latent variables."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..oracles.checks import cannot_branch, check_count
from .estimators import Estimate, Estimator, Learned


@dataclass(frozen=True)
class ClassBound:
    """The negative evidence lower bound of each unlabelled image and its terms, in nats.

    Attributes:
        loss: scalar with the value and the gradient of mean_x [E_q l - H(q)], the bound without its constant log K.
        cost: [B] detached: E_q l, reconstruction and divergence of h under the classifier's classes.
        divergence: [B] detached: log K - H(q), the divergence of the classifier from the uniform prior.
        negative_elbo: [B] detached: cost + divergence >= -log p(x).
        estimate: what the estimator returned.
    """

    loss: Tensor
    cost: Tensor
    divergence: Tensor
    negative_elbo: Tensor
    estimate: Estimate


class SemiSupervisedVAE(nn.Module):
    """p(x) = sum_z 1/K int N(h; 0, I) p(x | z, h) dh: a class z, a style h and independent Bernoulli pixels.

    The cost of a class is the other half of the bound, with one sample of h (Kingma et al. 2014, model M2; Correia et al.
    2020, section 5.1):

        l(x, z) = -log p(x | z, h) + KL(q(h | x, z) || N(0, I)),   h = mu(x, z) + sigma(x, z) * noise.

    An unlabelled image costs E_{z ~ q(z | x)} l(x, z) - H(q(z | x)) + log K; a labelled one l(x, y). The networks are those of
    the authors' published code: a classifier pixels-256-256-256-K, an inference network (pixels + K)-128-128-2H, a decoder
    (H + K)-128-128-pixels, all with ReLU. The paper's text has one hidden layer in the last two: `layers=1`.

    The part of the inference network's first layer that sees the image is computed once per image, not once per class.
    The reconstruction is computed from logits, without the 1e-8 that the published code adds inside both logarithms.

    Args:
        estimator: how E_q l and its gradient are computed. It is given the images as context; a learned baseline without a
            size takes that of the images.
        pixels: of an image.
        classes: K.
        style: H, entries of h.
        hidden: width of the inference network and the decoder.
        layers: hidden layers of the inference network and the decoder.
        classifier_hidden: width of the classifier's three hidden layers.
    """

    def __init__(
        self,
        estimator: Estimator,
        pixels: int = 784,
        classes: int = 10,
        style: int = 8,
        hidden: int = 128,
        layers: int = 2,
        classifier_hidden: int = 256,
    ) -> None:
        super().__init__()
        sizes = {"pixels": pixels, "classes": classes, "style": style, "hidden": hidden, "layers": layers}
        for name, size in (sizes | {"classifier_hidden": classifier_hidden}).items():
            check_count(f"SemiSupervisedVAE: {name}", size, 1)
        if estimator.dim not in (None, classes):
            raise ValueError(
                f"the classifier gives scores of {classes} classes but the estimator's structures have {estimator.dim}: "
                "give the model and the estimator's polytope the same number of classes"
            )
        self.estimator = estimator
        self.pixels, self.classes, self.style = pixels, classes, style
        self.classifier = mlp([pixels, *[classifier_hidden] * 3, classes])
        self.inference_image = nn.Linear(pixels, hidden)
        self.inference_class = nn.Linear(classes, hidden, bias=False)
        self.inference = mlp([*[hidden] * layers, 2 * style])
        self.decoder = mlp([style + classes, *[hidden] * layers, pixels])
        # As one layer that sees both would start: its bound is 1 / sqrt(inputs) for all of its weights.
        bound = 1 / math.sqrt(pixels + classes)
        for parameter in (*self.inference_image.parameters(), *self.inference_class.parameters()):
            nn.init.uniform_(parameter, -bound, bound)
        for module in estimator.modules():
            if isinstance(module, Learned):
                module.build(pixels)

    def forward(self, images: Tensor) -> ClassBound:
        """Bound -log p(x) of unlabelled images [B, pixels] float in [0, 1]."""
        features = self.inference_image(images)  # [B, hidden]

        def cost(classes: Tensor, row: Tensor) -> Tensor:
            return self._cost(images[row], features[row], classes)

        estimate = self.estimator(self.classifier(images), cost, context=images)
        divergence = math.log(self.classes) - estimate.entropy.detach()
        return ClassBound(
            loss=estimate.surrogate.mean() - estimate.entropy.mean(),
            cost=estimate.value,
            divergence=divergence,
            negative_elbo=estimate.value + divergence,
            estimate=estimate,
        )

    def labelled_cost(self, images: Tensor, labels: Tensor) -> Tensor:
        """l(x, y) [B] in nats of images [B, pixels] with their labels [B] int64.

        Raises:
            ValueError: labels of another shape or dtype, or on the CPU of a class that there is not.
        """
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(f"labels must be [{len(images)}] int64, one an image, not {list(labels.shape)} {labels.dtype}")
        seen = labels.device.type == "cpu" and labels.numel() > 0 and not cannot_branch(labels)
        if seen and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"labels must be classes 0..{self.classes - 1}, not {int(labels.min())}..{int(labels.max())}")
        classes = F.one_hot(labels, self.classes).to(images.dtype)
        return self._cost(images, self.inference_image(images), classes)

    def _cost(self, images: Tensor, features: Tensor, classes: Tensor) -> Tensor:
        """l(x, z) of pairs: images [n, pixels], their features [n, hidden], classes [n, K] one-hot or relaxed -> [n]."""
        hidden = (features + self.inference_class(classes)).relu()
        mean, log_deviation = self.inference(hidden).chunk(2, -1)  # [n, H] each
        style = mean + log_deviation.exp() * torch.randn_like(mean)
        logits = self.decoder(torch.cat([style, classes], -1))
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="none").sum(-1)
        divergence = (mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation).sum(-1) / 2
        return reconstruction + divergence

    @torch.no_grad()
    def generate(self, classes: Tensor, style: Tensor) -> Tensor:
        """The pixels' probabilities [n, pixels] given classes [n, K] and styles [n, H]."""
        return self.decoder(torch.cat([style, classes], -1)).sigmoid()


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
