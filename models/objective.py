"""The reconstruction cost: categorical pixels, evaluated without holding all logits at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Logits held at a time when the caller sets no bound. CPU: 4 MB in float32, five images of 784 pixels and 256 levels,
# stay in cache (measured on one thread with the gradient: 2.1 ms a pair, 4.4 ms in chunks of 80 images).
# Elsewhere: 256 MB, enough to keep a device busy.
CPU_LOGITS = 2**20
DEVICE_LOGITS = 2**26


def pixel_cross_entropy(features: Tensor, head: nn.Linear, images: Tensor, *, max_logits: int | None = None) -> Tensor:
    """Compute -log p(x | z) = sum_i -log softmax(V h_i + v)[x_i], in nats, for pairs of a code and an image.

    Pairs are taken in chunks whose logits number at most `max_logits` (at least one pair a chunk). When a gradient is
    wanted and there is more than one chunk, a chunk's logits are dropped after use and computed again in the backward
    pass: memory stays bounded for a third more time; values and gradients are the same.

    Args:
        features: h, [n, pixels, rank] float.
        head: the shared map from rank to grey levels (V [levels, rank], v [levels]).
        images: x, [n, pixels], integer grey levels.
        max_logits: bound on the number of logits held at a time; None chooses by device.

    Returns:
        [n] float, nats.
    """
    if max_logits is None:
        max_logits = CPU_LOGITS if features.device.type == "cpu" else DEVICE_LOGITS
    pairs = max(1, max_logits // (features.shape[1] * head.out_features))
    if features.shape[0] <= pairs:
        return _cross_entropy(features, head.weight, head.bias, images)
    costs = [
        checkpoint(
            _cross_entropy,
            features_chunk,
            head.weight,
            head.bias,
            images_chunk,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for features_chunk, images_chunk in zip(features.split(pairs), images.split(pairs), strict=True)
    ]
    return torch.cat(costs)  # pyright: ignore[reportArgumentType, reportCallIssue]  # checkpoint is untyped


def _cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    logits = F.linear(features, weight, bias)  # [n, pixels, levels]
    costs = F.cross_entropy(logits.flatten(0, 1), images.flatten().long(), reduction="none")
    return costs.view(images.shape).sum(-1)
