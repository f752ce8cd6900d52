"""Training and testing of the signal game."""

from typing import Any

from torch import nn

from ..models import MessageCost, Receiver, Sender, SignalGame
from ..models.estimators import Estimator
from .errors import UsageError
from .games import GameBatch
from .signal_game_data import SignalGameData
from .task import Outcome, Task


class SignalGameTask(Task):
    """Trains a `SignalGame` with Adam and logs its loss, its success and its symbols.

    Correia et al. 2020, section 5.2. Besides what every `Task` logs: the cost (nats per game for the negative
    log-likelihood), the message's entropy (nats), and `success_argmax`, the part of games in which the receiver's best
    guess upon the most probable symbol is right. Validation and test also log `success_expected`: the receiver's best guess
    upon a symbol of the estimator's own distribution, an exact expectation. Both are the same measure for every
    estimator; the published code's depends on the method. `distinct_codes` counts the symbols in use.

    Args:
        estimator: how the expected cost over symbols is computed.
        cost: of a message: `sparsemarg.models.NegativeLogLikelihood` (the default) or `SampledSuccess`, the 0/1 loss of a
            guess that is drawn.
        features: of an image.
        symbols: size of the vocabulary.
        embedding: of images and symbols, in both networks.
        filters: see `Sender`.
        temperature: what the sender's scores are divided by.
        entropy_coefficient: weight of the message's entropy, in nats per nat.
        learning_rate: Adam's; the other settings are Adam's defaults, without weight decay.
    """

    def __init__(
        self,
        estimator: Estimator,
        cost: MessageCost | None = None,
        features: int = 4096,
        symbols: int = 256,
        embedding: int = 256,
        filters: int = 512,
        temperature: float = 10.0,
        entropy_coefficient: float = 0.1,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(learning_rate)
        self.features = features
        self.game = SignalGame(
            estimator,
            Sender(features, symbols, embedding, filters, temperature),
            Receiver(features, symbols, embedding),
            entropy_coefficient,
            cost,
        )

    @property
    def encoder(self) -> nn.Module:
        return self.game.sender

    def check_data(self, data: Any) -> None:
        if self.check_kind(data, SignalGameData) and data.feature_size != self.features:
            raise UsageError(
                f"the model expects images of {self.features} features, but {type(data).__name__} has {data.feature_size}: set "
                "model.init_args.features to the data's, or choose other data"
            )

    def train_outcome(self, batch: GameBatch) -> Outcome:
        play = self.game(batch.target, batch.images, batch.position)
        values = {"cost": play.cost, "message_entropy": play.entropy, "success_argmax": play.success_argmax}
        return Outcome(play.loss, values, play.estimate)

    def eval_outcome(self, batch: GameBatch) -> Outcome:
        outcome = self.train_outcome(batch)
        expected = self.game.success_expected(batch.target, batch.images, batch.position)
        return Outcome(outcome.loss, outcome.values | {"success_expected": expected}, outcome.estimate)
