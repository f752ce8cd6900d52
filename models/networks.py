"""The two networks of the bit-vector VAE: an encoder to scores, a decoder to one categorical per pixel.

Correia et al. 2020, section 5.3 and Appendix E; sizes that the paper does not state (the bottleneck of rank 5
before the 256 grey levels) are those of the authors' published code.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ..oracles.checks import check_count


class Encoder(nn.Module):
    """Scores of the bits given an image: t = W2 relu(W1 x / (levels - 1) + b1) + b2.

    `normalize_scores` adds a batch normalisation (with learned scale and shift) after the last layer. The published
    setting has none, and collapses: in the first steps the decoder learns one direction common to all images, all
    scores grow along it past the point where every bit of SparseMAP is certain, and an image with a single atom gives the
    encoder a gradient of exactly 0. On Fashion-MNIST with D = 32 the support goes from 29 atoms to 1 and the codes of
    1,000 held-out images to a single one within 20 steps; the gradient of whole batches is 0 at steps 30 to 100, and at
    step 300 there are 2 codes. A score normalised over the batch cannot be on the same side for all images, so the
    bits go on to tell images apart. A batch of one image in training is normalised by the running averages.

    Args:
        pixels: number of pixels of an image.
        levels: number of grey levels; inputs are integers in [0, levels).
        dim: D, the number of bits.
        hidden: width of the hidden layer.
        normalize_scores: batch-normalise the scores; off is the published setting.
    """

    def __init__(self, pixels: int, levels: int, dim: int, hidden: int = 128, normalize_scores: bool = False) -> None:
        super().__init__()
        _check_sizes("Encoder", pixels=pixels, dim=dim, hidden=hidden)
        self.pixels = pixels
        self.levels = check_count("Encoder: levels", levels, 2)
        self.dim = dim
        self.hidden = nn.Linear(pixels, hidden)
        self.output = nn.Linear(hidden, dim)
        self.normalize = _BatchNorm(dim) if normalize_scores else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, pixels] of integer grey levels to scores [B, D] float."""
        if images.ndim != 2 or images.shape[1] != self.pixels:
            raise ValueError(
                f"images has shape {list(images.shape)}, but this encoder was built for [B, {self.pixels}]: "
                "flatten the images, or build the model with the data's number of pixels"
            )
        inputs = images.to(self.output.weight.dtype) / (self.levels - 1)
        return self.normalize(self.output(self.hidden(inputs).relu()))


def _check_sizes(owner: str, **sizes: int) -> None:
    for name, size in sizes.items():
        check_count(f"{owner}: {name}", size, 1)


class _BatchNorm(nn.BatchNorm1d):
    """That of torch, which refuses to train on a single row: such may be the last batch of an epoch."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) != 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Decoder(nn.Module):
    """Pixel distributions given bits: p(x_i = c | z) = softmax_c(V h_i(z) + v), h(z) = W2 relu(W1 z + b1) + b2.

    Each pixel has its own `rank` features h_i; the map V, v from features to grey levels is shared by all pixels.

    Args:
        dim: D, the number of bits.
        pixels: number of pixels of an image.
        levels: number of grey levels.
        hidden: width of the hidden layer.
        rank: number of features of a pixel.
    """

    def __init__(self, dim: int, pixels: int, levels: int, hidden: int = 128, rank: int = 5) -> None:
        super().__init__()
        _check_sizes("Decoder", dim=dim, pixels=pixels, levels=levels, hidden=hidden, rank=rank)
        self.dim = dim
        self.pixels = pixels
        self.rank = rank
        self.hidden = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, pixels * rank)
        self.head = nn.Linear(rank, levels)

    def features(self, codes: Tensor) -> Tensor:
        """Map codes [n, D] to the features of every pixel [n, pixels, rank]."""
        return self.output(self.hidden(codes).relu()).unflatten(-1, (self.pixels, self.rank))

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes [n, D] to the logits of every pixel's grey level [n, pixels, levels]."""
        return self.head(self.features(codes))
