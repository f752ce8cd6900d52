"""What training and testing have in common for every model with a latent structure."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..models.estimators import Estimate
from .batched_data import BatchedData
from .errors import UsageError
from .records import Records, gather

STEP_ROW = "sparsemarg_step_row"


@dataclass(frozen=True)
class Outcome:
    """What a task makes of a batch.

    Attributes:
        loss: scalar, differentiable: the mean over the batch of what training minimises.
        values: [B] each, detached: what is logged of every example, as the mean over examples.
        estimate: of the latent structures: their support, most probable structures, number of cost evaluations.
    """

    loss: Tensor
    values: dict[str, Tensor]
    estimate: Estimate


class Task(LightningModule, ABC):
    """Trains a model with Adam and logs its loss, its terms, its support and its structures.

    Every step that is logged, and each validation and test over its whole split, logs the mean of every value of `Outcome`, the
    support size (mean, quartiles, 10th and 90th percentile), decoder calls per example, and the number of distinct most
    probable structures. Where there is a progress bar it shows the loss, the support and the decoder calls of every step. Steps
    that are logged also have the norm of the encoder's gradient: where every support of a batch is a single atom that norm is
    exactly 0.

    Trained by several processes, each on its part of a batch, the gradient and what is logged are those of the whole batch,
    batch normalisation apart (--trainer.sync_batchnorm).

    Args:
        learning_rate: Adam's; the others of its settings are its defaults.
        weight_decay: Adam's.
    """

    def __init__(self, learning_rate: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"model: learning_rate must be above 0, not {learning_rate}")
        if not weight_decay >= 0:
            raise ValueError(f"model: weight_decay must be at least 0, not {weight_decay}")
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self._records: list[Records] = []
        self._row: dict[str, Tensor] = {}  # what was logged last of a step,
        self._row_of = (-1, -1)  # and of which step and epoch

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The network that computes the scores."""

    @abstractmethod
    def train_outcome(self, batch: Any) -> Outcome:
        """Evaluate a batch of the training split."""

    @abstractmethod
    def eval_outcome(self, batch: Any) -> Outcome:
        """Evaluate a batch of the validation or the test split."""

    def check_data(self, data: Any) -> None:
        """Raise a UsageError if the model cannot take what the data module gives. Called before the first batch."""

    def check_kind(self, data: Any, wanted: type[BatchedData]) -> bool:
        """Whether a data module is of the wanted kind, or of the user's own.

        Raises:
            UsageError: it is one of ours, and gives batches for another task.
        """
        if isinstance(data, BatchedData) and not isinstance(data, wanted):
            raise UsageError(
                f"{type(self).__name__} takes data of the kind {wanted.__name__}, and {type(data).__name__} is none: choose "
                f"other data by --data, or another configuration"
            )
        return isinstance(data, wanted)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def setup(self, stage: str) -> None:
        self.check_data(getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: Any) -> Tensor:
        outcome = self.train_outcome(batch)
        records = Records.of(outcome.values, outcome.estimate)
        whole = gather(records, self.trainer.world_size)
        if self._logs_step():
            self._row = {f"train/{name}": value for name, value in whole.summarize().items()}
            self._row_of = (self.global_step, self.current_epoch)
            self.log_dict(self._row)
        # Processes' gradients are averaged: weighing by their number of examples makes that the whole batch's mean.
        loss = outcome.loss * (len(records) * self.trainer.world_size / len(whole))
        if self.trainer.progress_bar_callback is not None:  # what nobody sees costs as much as a small model's step
            calls = whole.evaluations / len(whole)
            shown = {"loss": loss.detach(), "support": whole.support.float().mean(), "decoder_calls": calls}
            self.log_dict(shown, prog_bar=True, logger=False)
        return loss

    def _logs_step(self) -> bool:
        """Whether the loggers take this step: summaries that none would see cost as much, too."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._logs_step():
            return
        grads = [p.grad for p in self.encoder.parameters() if p.grad is not None]
        self._row["train/encoder_grad_norm"] = torch.nn.utils.get_total_norm(grads)
        self.log("train/encoder_grad_norm", self._row["train/encoder_grad_norm"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the row of a step in its checkpoint: Lightning hands it to loggers later, and the process may die in between."""
        step, epoch = self._row_of
        if 0 <= step == self.global_step - 1:
            values = {name: value.item() for name, value in self._row.items()}
            checkpoint[STEP_ROW] = {"step": step, **values, "epoch": epoch}

    def validation_step(self, batch: Any) -> None:
        self._record(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_records("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._record(batch)

    def on_test_epoch_end(self) -> None:
        self._log_records("test")

    def _record(self, batch: Any) -> None:
        outcome = self.eval_outcome(batch)
        self._records.append(Records.of(outcome.values, outcome.estimate).cpu())

    def _log_records(self, split: str) -> None:
        if not self._records:
            raise UsageError(f"there is no batch to evaluate in the {split} split: give more data, or a higher limit")
        metrics = gather(Records.join(self._records), self.trainer.world_size).summarize()
        self._records.clear()
        # The same in all processes; sync_dist tells Lightning so.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
