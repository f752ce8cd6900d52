"""Training and testing of the semi-supervised VAE."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models import SemiSupervisedVAE
from ..models.estimators import Estimate, Estimator
from .checkpoints import load_checkpoint
from .errors import UsageError
from .named_configs import config_names
from .semi_supervised_data import LabelledBatch, SemiSupervisedBatch, SemiSupervisedData
from .task import Outcome, Task


class SemiSupervisedVAETask(Task):
    """Trains a `SemiSupervisedVAE` on labelled and unlabelled images together:

        mean_x [l(x, y) + classification loss] + unlabelled_weight * mean_x [E_q l(x, z) - H(q)]

    (Correia et al. 2020, section 5.1). Without unlabelled images only the first term is left: the warm start. Besides what
    every `Task` logs: the negative ELBO of the images without their labels and its two terms, all complete (log K included) and
    in nats; the classifier's accuracy; while training also the labelled images' cost and classification loss.

    Args:
        estimator: how the expected cost over classes is computed.
        classification: its loss given scores [B, K] and labels [B]: `torch.nn.CrossEntropyLoss`, or
            `sparsemarg.layers.SparsemaxLoss` for a sparsemax classifier.
        warm_start: a checkpoint of a run of this task, whose weights (but not its estimator's) training starts from; null for a
            random start. Not read by a test or by a run that is resumed.
        unlabelled_weight: of the unlabelled images' bound; 9 is the published 45,000 / 5,000.
        pixels, classes, style, hidden, layers, classifier_hidden: see `SemiSupervisedVAE`.
        learning_rate: Adam's.
        weight_decay: Adam's; published with 1e-5.
    """

    def __init__(
        self,
        estimator: Estimator,
        classification: nn.Module,
        warm_start: str | None = None,
        unlabelled_weight: float = 9.0,
        pixels: int = 784,
        classes: int = 10,
        style: int = 8,
        hidden: int = 128,
        layers: int = 2,
        classifier_hidden: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.vae = SemiSupervisedVAE(estimator, pixels, classes, style, hidden, layers, classifier_hidden)
        self.classification = classification
        self.warm_start = warm_start
        if not 0 <= unlabelled_weight < math.inf:
            raise ValueError(f"model: unlabelled_weight must be at least 0 and finite, not {unlabelled_weight}")
        self.unlabelled_weight = unlabelled_weight

    @property
    def encoder(self) -> nn.Module:
        return self.vae.classifier

    def check_data(self, data: Any) -> None:
        if not self.check_kind(data, SemiSupervisedData):
            return
        expected = (self.vae.pixels, self.vae.classes)
        if expected != (data.pixels, data.classes):
            raise UsageError(
                f"the model expects {expected[0]} pixels and {expected[1]} classes, but {type(data).__name__} has "
                f"{data.pixels} pixels and {data.classes} classes: set model.init_args.pixels and model.init_args.classes to "
                "the data's, or choose other data"
            )

    def on_fit_start(self) -> None:
        if self.warm_start is not None and self.trainer.ckpt_path is None:  # which `setup` does not know yet
            self._load_warm_start(Path(self.warm_start))

    def train_outcome(self, batch: SemiSupervisedBatch) -> Outcome:
        scores = self.vae.classifier(batch.labelled)
        cost = self.vae.labelled_cost(batch.labelled, batch.labels)
        classification = self.classification(scores, batch.labels)
        loss = cost.mean() + classification
        values = {
            "labelled_cost": cost.detach(),
            "classification": classification.detach().expand(len(cost)),
            "labelled_accuracy": _correct(scores, batch.labels),
        }
        if batch.unlabelled is None:
            return Outcome(loss, values, _labels_alone(cost, scores))
        bound = self.vae(batch.unlabelled)
        values |= {"negative_elbo": bound.negative_elbo, "cost": bound.cost, "divergence": bound.divergence}
        return Outcome(loss + self.unlabelled_weight * bound.loss, values, bound.estimate)

    def eval_outcome(self, batch: LabelledBatch) -> Outcome:
        bound = self.vae(batch.images)
        values = {
            "negative_elbo": bound.negative_elbo,
            "cost": bound.cost,
            "divergence": bound.divergence,
            "accuracy": _correct(self.vae.classifier(batch.images), batch.labels),
        }
        return Outcome(bound.loss, values, bound.estimate)

    def _load_warm_start(self, path: Path) -> None:
        if not path.is_file():
            run = path.parent.parent.as_posix().removeprefix("runs/")
            named = (
                run if run in config_names() else "semi_supervised_vae/warm_start or semi_supervised_vae/warm_start_sparsemax"
            )
            raise UsageError(
                f"model.init_args.warm_start expects the checkpoint {path}, but there is no such file. Train it first with the "
                f"configuration {named}, give another checkpoint, or null to start from random weights."
            )
        saved: dict[str, Tensor] = load_checkpoint(path)["state_dict"]
        own = {name: value for name, value in self.state_dict().items() if name not in self._estimator_names()}
        missing = [name for name in own if name not in saved]
        differing = [name for name in own if name in saved and saved[name].shape != own[name].shape]
        if missing or differing:
            name = (missing + differing)[0]
            found = list(saved[name].shape) if name in saved else "absent"
            raise UsageError(
                f"the warm start {path} does not fit the model: {name} should be {list(own[name].shape)}, but is {found} there"
                f" ({len(missing)} missing, {len(differing)} of another shape). Train the warm start with the same pixels, "
                "classes, style, hidden, layers and classifier_hidden."
            )
        self.load_state_dict({name: saved[name] for name in own}, strict=False)

    def _estimator_names(self) -> set[str]:
        return {f"vae.estimator.{name}" for name in self.vae.estimator.state_dict()}


def _correct(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(-1) == labels).float()


def _labels_alone(cost: Tensor, scores: Tensor) -> Estimate:
    """What a warm start has for an estimate: one decoder call for each image, on its label."""
    mode = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
    support = torch.ones(len(cost), dtype=torch.int64, device=cost.device)
    return Estimate(cost.detach(), cost, torch.zeros_like(cost), len(cost), support, mode)
