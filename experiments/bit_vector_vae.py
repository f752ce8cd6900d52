"""Training and testing of the bit-vector VAE."""

import warnings
from typing import Any

from torch import Tensor, nn

from ..models import BitVectorVAE, Bound, Decoder, Encoder
from ..models.estimators import Estimator
from .data import ImageData
from .errors import UsageError
from .likelihood import Likelihoods
from .records import gather
from .task import Outcome, Task


class BitVectorVAETask(Task):
    """Trains a `BitVectorVAE` with Adam and logs its bound, its support and its codes.

    Correia et al. 2020, section 5.3. Besides what every `Task` logs: the negative ELBO (nats per image; bits per pixel),
    distortion and rate (nats per image). A test also logs -log p(x) in bits per pixel with its standard error, by the paper's
    Appendix D (`bits_per_dim_appendix_d`), which depends on the method, and by an importance sampler that is the same for all
    (`bits_per_dim_importance`), with its effective sample size; see `sparsemarg.models.likelihood`.

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
        likelihood_samples: for each test image, to estimate its log p(x). No part of the model: a test may set it anew.
        likelihood_images: how many of the first test images to do that for; None for all, 0 for none. Likewise. On a CPU,
            1,024 samples take half a second for an image of 784 pixels and 256 levels.
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
        likelihood_samples: int = 1024,
        likelihood_images: int | None = None,
    ) -> None:
        super().__init__(learning_rate)
        if likelihood_samples < 2:
            raise ValueError(f"model: likelihood_samples must be at least 2, not {likelihood_samples}")
        if likelihood_images is not None and likelihood_images < 0:
            raise ValueError(f"model: likelihood_images must be at least 0, or null for all, not {likelihood_images}")
        self.likelihood_samples = likelihood_samples
        self.likelihood_images = likelihood_images
        self._likelihoods: list[Likelihoods] = []
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
        if not self.check_kind(data, ImageData):
            return
        expected = (self.vae.encoder.pixels, self.vae.encoder.levels)
        if expected != (data.pixels, data.levels):
            raise UsageError(
                f"the model expects {expected[0]} pixels of {expected[1]} grey levels, but {type(data).__name__} has "
                f"{data.pixels} pixels of {data.levels}: set model.init_args.pixels and model.init_args.levels to the "
                "data's, or choose other data"
            )

    def on_train_start(self) -> None:
        if self.trainer.world_size > 1 and isinstance(self.vae.encoder.normalize, nn.BatchNorm1d):  # not one made SyncBatchNorm
            warnings.warn(
                "every process normalises the scores over its own part of a batch, so that the loss is not that of one "
                "process: on GPUs, --trainer.sync_batchnorm true normalises over the whole batch",
                stacklevel=2,
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

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self._record(batch)
        limit, processes = self.likelihood_images, self.trainer.world_size
        done = sum(map(len, self._likelihoods))
        images = batch
        if limit is not None:
            share = limit // processes + (self.global_rank < limit % processes)
            images = batch[: max(0, share - done)]
        if len(images):
            seed = batch_idx * processes + self.global_rank
            self._likelihoods.append(Likelihoods.of(self.vae, images, self.likelihood_samples, seed))

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self._likelihoods:
            metrics = gather(Likelihoods.join(self._likelihoods), self.trainer.world_size).summarize()
            self._likelihoods.clear()
            self.log_dict({f"test/{name}": value for name, value in metrics.items()}, sync_dist=True)
