"""Training and testing of the bit-vector VAE."""

from typing import Any

from torch import Tensor, nn

from ..models import BitVectorVAE, Bound, Decoder, Encoder
from ..models.estimators import Estimator
from .data import ImageData
from .errors import UsageError
from .task import Outcome, Task


class BitVectorVAETask(Task):
    """Trains a `BitVectorVAE` with Adam and logs its bound, its support and its codes.

    Correia et al. 2020, section 5.3. Besides what every `Task` logs: the negative ELBO (nats per image; bits per pixel),
    distortion and rate (nats per image).

    Args:
        estimator: how the expected cost over codes is computed.
        dim: D, the number of bits.
        pixels: pixels of an image.
        levels: grey levels of a pixel.
        hidden: width of both networks' hidden layer.
        rank: features of a pixel before the grey levels.
        normalize_scores: batch-normalise the scores; against collapse, see `Encoder`. Off is the published setting.
        learning_rate: Adam's; the other settings are Adam's defaults, without weight decay.
        max_logits: bound on the pixel logits held at a time; see `pixel_cross_entropy`.
    """

    def __init__(
        self,
        estimator: Estimator,
        dim: int = 32,
        pixels: int = 784,
        levels: int = 256,
        hidden: int = 128,
        rank: int = 5,
        normalize_scores: bool = False,
        learning_rate: float = 2e-3,
        max_logits: int | None = None,
    ) -> None:
        super().__init__(learning_rate)
        self.vae = BitVectorVAE(
            Encoder(pixels, levels, dim, hidden, normalize_scores),
            Decoder(dim, pixels, levels, hidden, rank),
            estimator,
            max_logits,
        )

    @property
    def encoder(self) -> nn.Module:
        return self.vae.encoder

    def check_data(self, data: Any) -> None:
        if not isinstance(data, ImageData):
            return
        expected = (self.vae.encoder.pixels, self.vae.encoder.levels)
        if expected != (data.pixels, data.levels):
            raise UsageError(
                f"the model expects {expected[0]} pixels of {expected[1]} grey levels, but {type(data).__name__} has "
                f"{data.pixels} pixels of {data.levels}: set model.init_args.pixels and model.init_args.levels to the "
                "data's, or choose other data"
            )

    def train_outcome(self, batch: Tensor) -> Outcome:
        bound: Bound = self.vae(batch)
        values = {
            "negative_elbo": bound.negative_elbo,
            "bits_per_dim": self.vae.bits_per_dim(bound.negative_elbo),
            "distortion": bound.distortion,
            "rate": bound.rate,
        }
        return Outcome(bound.loss, values, bound.estimate)

    def eval_outcome(self, batch: Tensor) -> Outcome:
        return self.train_outcome(batch)
