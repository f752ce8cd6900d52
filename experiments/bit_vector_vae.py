"""Training and testing of the bit-vector VAE."""

from dataclasses import dataclass
from typing import Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ..models import BitVectorVAE, Bound, Decoder, Encoder
from ..models.estimators import Estimator
from .data import ImageData
from .errors import UsageError


class BitVectorVAETask(LightningModule):
    """Trains a `BitVectorVAE` with Adam and logs its bound, its support and its codes.

    Correia et al. 2020, section 5.3. Every step logs the negative ELBO (nats per image; bits per pixel),
    distortion and rate (nats per image), support size (mean and quartiles), decoder calls per image, the number
    of distinct most probable codes, and the norm of the encoder's gradient: where every support of a batch is
    a single atom that norm is exactly 0. Validation and test log the same (but the norm) over their whole split.

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
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"model: learning_rate must be above 0, not {learning_rate}")
        self.vae = BitVectorVAE(
            Encoder(pixels, levels, dim, hidden, normalize_scores),
            Decoder(dim, pixels, levels, hidden, rank),
            estimator,
            max_logits,
        )
        self.learning_rate = learning_rate
        self._records: list[_Records] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            return
        expected = (self.vae.encoder.pixels, self.vae.encoder.levels)
        if expected != (data.pixels, data.levels):
            raise UsageError(
                f"the model expects {expected[0]} pixels of {expected[1]} grey levels, but {type(data).__name__} has "
                f"{data.pixels} pixels of {data.levels}: set model.init_args.pixels and model.init_args.levels to the "
                "data's, or choose other data"
            )

    def training_step(self, images: Tensor) -> Tensor:
        bound: Bound = self.vae(images)
        metrics = self._summarize(_Records.of(bound))
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, batch_size=len(images))
        shown = {
            "loss": bound.loss.detach(),
            "support": metrics["support_mean"],
            "decoder_calls": metrics["decoder_calls"],
        }
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=len(images))
        return bound.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for p in self.vae.encoder.parameters() if p.grad is not None]
        self.log("train/encoder_grad_norm", torch.nn.utils.get_total_norm(grads))

    def validation_step(self, images: Tensor) -> None:
        self._records.append(_Records.of(self.vae(images)).cpu())

    def on_validation_epoch_end(self) -> None:
        self._log_records("val")

    def test_step(self, images: Tensor) -> None:
        self._records.append(_Records.of(self.vae(images)).cpu())

    def on_test_epoch_end(self) -> None:
        self._log_records("test")

    def _log_records(self, split: str) -> None:
        metrics = self._summarize(_Records.join(self._records))
        self._records.clear()
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()})

    def _summarize(self, records: "_Records") -> dict[str, Tensor]:
        support = records.support.float()
        quartiles = support.quantile(support.new_tensor([0.25, 0.5, 0.75]))
        negative_elbo = (records.distortion + records.rate).mean()
        return {
            "negative_elbo": negative_elbo,
            "bits_per_dim": self.vae.bits_per_dim(negative_elbo),
            "distortion": records.distortion.mean(),
            "rate": records.rate.mean(),
            "support_mean": support.mean(),
            "support_q25": quartiles[0],
            "support_q50": quartiles[1],
            "support_q75": quartiles[2],
            "decoder_calls": support.new_tensor(records.evaluations / support.shape[0]),
            "distinct_codes": support.new_tensor(records.codes.unique(dim=0).shape[0]),
        }


@dataclass(frozen=True)
class _Records:
    """What is kept of each image: distortion and rate [N] nats, support [N], most probable codes [N, D] bool."""

    distortion: Tensor
    rate: Tensor
    support: Tensor
    codes: Tensor
    evaluations: int

    @classmethod
    def of(cls, bound: Bound) -> Self:
        estimate = bound.estimate
        return cls(bound.distortion, bound.rate, estimate.support, estimate.mode > 0.5, estimate.evaluations)

    @classmethod
    def join(cls, records: "list[_Records]") -> Self:
        return cls(
            torch.cat([r.distortion for r in records]),
            torch.cat([r.rate for r in records]),
            torch.cat([r.support for r in records]),
            torch.cat([r.codes for r in records]),
            sum(r.evaluations for r in records),
        )

    def cpu(self) -> "_Records":
        return _Records(self.distortion.cpu(), self.rate.cpu(), self.support.cpu(), self.codes.cpu(), self.evaluations)
