"""The reconstruction cost: categorical pixels from low-rank features, without ever holding the logits."""

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ..kernels import compiled, in_threads, in_triton, readable
from ..oracles.checks import all_finite
from ..oracles.placement import traced

# Logits held at a time when the caller sets no bound. CPU: 1 MB in float32, one image of 784 pixels and 256 levels, which
# stays in a core's cache. Elsewhere: 256 MB, enough to keep a device busy.
CPU_LOGITS = 2**18
DEVICE_LOGITS = 2**26


def pixel_cross_entropy(features: Tensor, head: nn.Linear, images: Tensor, *, max_logits: int | None = None) -> Tensor:
    """Compute -log p(x | z) = sum_i -log softmax(V h_i + v)[x_i], in nats, for pairs of a code and an image.

    The [n, pixels, levels] logits are a thousand times larger than what they are made from and what is made of them. So they
    exist for a few pairs at a time, and their derivatives are taken while they do: of the softmax s_i of a pair,
    d/dh_i = V'(s_i - e_{x_i}) and d/d(V, v) = sum_i (s_i - e_{x_i}) (h_i, 1)' have the size of h and of V. The backward pass
    only weighs them. Value and gradient are those of the plain formula; derivatives of higher order recompute it. In float32 a
    compiled kernel does the same for a pixel or a few at a time: on the CPU with Numba installed, several times as fast, and on
    a GPU with Triton for a rank below 16 and up to 1,024 levels, where the logits never leave the registers.

    Args:
        features: h, [n, pixels, rank] float; float16 and bfloat16 are computed in float32.
        head: the shared map from rank to grey levels (V [levels, rank], v [levels]).
        images: x, [n, pixels], integer grey levels.
        max_logits: bound on the number of logits held at a time (at least one pair's); None chooses by device.

    Returns:
        [n] float, nats.

    Raises:
        ValueError: features of another rank, images of another shape or of floats, or on the CPU with a level that the head
            does not have.

    Cost: O(n pixels levels rank) time; memory n (pixels + levels) rank besides `max_logits`.
    """
    if features.dim() != 3 or features.shape[-1] != head.in_features:
        raise ValueError(
            f"features must be [n, pixels, {head.in_features}], as wide as the head takes them, not {list(features.shape)}"
        )
    if images.is_floating_point() or images.is_complex():
        raise ValueError(
            f"images must hold integer grey levels, not {images.dtype}: of pixels in [0, 1], as torchvision gives them, make "
            f"(pixels * {head.out_features - 1}).round().long()"
        )
    if images.shape != features.shape[:2]:
        raise ValueError(
            f"images must be [n, pixels] = {list(features.shape[:2])}, as features {list(features.shape)} are, not "
            f"{list(images.shape)}"
        )
    if images.device.type == "cpu" and images.numel():  # elsewhere the costs become NaN, or an assertion fails
        lowest, highest = (int(level) for level in images.aminmax())
        if lowest < 0 or highest >= head.out_features:
            raise ValueError(f"images must hold grey levels from 0 to {head.out_features - 1}, not {lowest} to {highest}")
    if max_logits is None:
        max_logits = CPU_LOGITS if features.device.type == "cpu" else DEVICE_LOGITS
    pairs = max(1, max_logits // (features.shape[1] * head.out_features))
    bias: Tensor | None = head.bias  # None for nn.Linear(..., bias=False)
    bias = head.weight.new_zeros(head.out_features) if bias is None else bias
    inputs = [_single(tensor) for tensor in (features, head.weight, bias)]
    if _transformed(*inputs):
        given, weight, offset = inputs
        with _as_given(features):
            return plain(given, weight, offset, images.long())
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _PixelCrossEntropy.apply(*inputs, images.long(), pairs, wanted)  # pyright: ignore[reportReturnType]  # untyped in torch


def _transformed(*tensors: Tensor) -> bool:
    """Whether a `torch.func` transform is active or one of the tensors has a tangent: it takes torch's own operations then."""
    followed = any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    return not torch.compiler.is_compiling() and (followed or traced())


class _PixelCrossEntropy(torch.autograd.Function):
    """See `pixel_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, images: Tensor, pairs: int, wanted: bool) -> Tensor:
        found = _compiled(features, weight, bias, images, wanted)
        if found is None:
            with _as_given(features):
                chunks = [
                    _chunk(part, weight, bias, pixels, wanted)
                    for part, pixels in zip(features.split(pairs), images.split(pairs), strict=True)
                ]
            found = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
        costs, by_features, by_head = found
        ctx.save_for_backward(features, weight, bias, images, by_features, by_head)
        return costs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        features, weight, bias, images, by_features, by_head = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            inputs = [x for x, needed in zip((features, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            with _as_given(features):
                costs = plain(features, weight, bias, images)
            found = iter(torch.autograd.grad(costs, inputs, gradient, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None, None
        with _as_given(features):
            head = (gradient @ by_head.flatten(1)).unflatten(0, by_head.shape[1:])  # [rank + 1, levels]
        return gradient[:, None, None] * by_features, head[:-1].T, head[-1], None, None, None


def _as_given(tensor: Tensor) -> AbstractContextManager[Any]:
    """In the tensors' own precision, whatever autocast would choose for products of matrices."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def plain(features: Tensor, weight: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    """The formula as it stands, all logits at once: [n]."""
    logits = F.linear(features, weight, bias)  # [n, pixels, levels]
    costs = F.cross_entropy(logits.flatten(0, 1), images.flatten(), reduction="none")
    return costs.view(images.shape).sum(-1)


def _chunk(features: Tensor, weight: Tensor, bias: Tensor, images: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Costs [n], and (if wanted, else empty) their derivatives by features [n, pixels, rank] and head [n, rank + 1, levels]."""
    rank = features.shape[-1]
    flat, pixels = features.reshape(-1, rank), images.reshape(-1, 1)
    logits = torch.addmm(bias, flat, weight.T)
    picked = logits.gather(-1, pixels)
    peak = logits.amax(-1, keepdim=True)
    masses = logits.sub_(peak).exp_()
    # One pass over the masses gives their products with V and their sum. The small matrix stands on the left in this product
    # and the other: five to six times faster than on the right (784 pixels, 256 levels, rank 5, one thread).
    product = (F.pad(weight, (0, 1), value=1).T @ masses.T).T
    total = product[:, rank:]
    costs = (peak + total.log() - picked).view(images.shape).sum(-1)
    if not wanted:
        return costs, features.new_empty(len(features), 0), features.new_empty(len(features), 0)
    by_features = product[:, :rank] / total - weight[pixels[:, 0]]
    masses.scatter_(-1, pixels, masses.gather(-1, pixels) - total)
    scaled = F.pad(flat, (0, 1), value=1) / total
    shape = (*images.shape, -1)
    by_head = torch.bmm(scaled.view(shape).mT, masses.view(shape))
    return costs, by_features.view(features.shape), by_head


def _compiled(
    features: Tensor, weight: Tensor, bias: Tensor, images: Tensor, wanted: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What `_chunk` returns, by the compiled kernel; None where it does not apply."""
    device = features.device
    if any(tensor.dtype != torch.float32 or not readable(tensor) for tensor in (features, weight, bias)):
        return None
    kernel = in_triton(".kernels.triton_pixels", __package__, "pixel_costs", device)
    if kernel is not None and features.shape[-1] < 16 and len(bias) <= 1024:
        return kernel(*(tensor.detach().contiguous() for tensor in (features, weight, bias, images)), wanted)
    kernel = compiled(".kernels.pixels", __package__, "pixel_costs", device)
    if kernel is None or not all(map(all_finite, (features, weight, bias))):
        return None
    count, pixels, rank = features.shape
    in_bits = import_module(".kernels.pixels", __package__).in_bits
    by_pair = [tensor.detach().contiguous().numpy() for tensor in (features, images)]
    head = in_bits(weight.detach().T.contiguous().numpy(), bias.detach().numpy())
    costs = features.new_empty(count)
    by_features = features.new_empty(count, pixels if wanted else 0, rank)
    by_head = features.new_empty(count, rank + 1 if wanted else 0, len(head[1]))
    into = [tensor.numpy() for tensor in (costs, by_features, by_head)]

    def work(part: slice) -> None:
        kernel(tuple(range(rank)), by_pair[0][part], *head, by_pair[1][part], *(array[part] for array in into), wanted)

    in_threads(work, count)
    return costs, by_features, by_head[..., : len(bias)]


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
