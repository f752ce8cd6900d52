"""A limit on optimizer steps under which a resumed run still knows where its epoch stands."""

from lightning.pytorch import Callback, LightningModule, Trainer


class StepLimit(Callback):
    """Ends training after so many optimizer steps, like the trainer's `max_steps`, of which it takes the place.

    A trainer that has `max_steps` when it loads a checkpoint from the end of an epoch takes that epoch for
    unfinished (Lightning 2.6): it trains on the next epoch's first batch as part of it, and validates one step
    late. So the limit is set when the checkpoint has been loaded.

    Args:
        max_steps: -1 for no limit.

    Raises:
        ValueError: it is below -1.
    """

    def __init__(self, max_steps: int) -> None:
        if max_steps < -1:
            raise ValueError(f"trainer: max_steps must be at least 0, or -1 for no limit, not {max_steps}")
        self.max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
