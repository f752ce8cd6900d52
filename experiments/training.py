"""`sparsemarg fit` and `sparsemarg test`: Lightning's command line, with one folder for each run."""

import errno
import logging
import shlex
import signal
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..oracles.checks import NotFinite
from .allocator import keep_freed_memory
from .checkpoints import (
    CONFIG_KEY,
    AtomicCheckpointIO,
    Checkpoints,
    check_same_config,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
)
from .errors import Diverged, UsageError
from .folders import alone_in, check_writable_folder
from .metrics_csv import MetricsCSV
from .named_configs import resolve_configs
from .parsing_errors import explain
from .random_state import RandomState
from .run_record import RunRecord
from .step_limit import StepLimit
from .task import STEP_ROW

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def fit(arguments: list[str]) -> None:
    """`run`, and print at the end where the run is, and how good."""
    trainer = run(arguments).trainer
    if trainer.is_global_zero:
        saved = next(each for each in trainer.checkpoint_callbacks if isinstance(each, Checkpoints))
        best = "" if saved.best is None else f", best {saved.monitor} {saved.best:.6g}"
        print(f"{trainer.default_root_dir}: {trainer.global_step} steps{best}")


def run(arguments: list[str]) -> "ExperimentCLI":
    """Run `fit` or `test` with command line arguments, such as ["fit", "--config", "bit_vector_vae/sparsemap"].

    Raises:
        UsageError: a mistake in the arguments, the configuration, the data folder or the checkpoint; or the run's folder
            cannot be written, from the start or because the disk is full: what was saved before stays as it is.
        SystemExit: the process was asked to end (SIGTERM) before it was done; with that signal's exit code.
    """
    _silence()
    keep_freed_memory()
    resolved, run_name = resolve_configs(arguments)
    try:
        with ExitStack() as held:
            return ExperimentCLI(resolved, run_name or "unnamed", shlex.join(["sparsemarg", *arguments]), held)
    except SIGTERMException as stopped:  # its own exit code is that of success
        print("sparsemarg: asked to end (SIGTERM); to go on: the same with --ckpt_path last", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from stopped
    except NotFinite as error:
        raise Diverged(
            f"the training diverged: {error}. Lower the learning rate (--model.init_args.learning_rate), clip the gradient "
            "(--trainer.gradient_clip_val), or look at train/encoder_grad_norm in metrics.csv."
        ) from error
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, ValueError) and "val_check_interval" not in str(error):  # the one that Lightning tells so
            raise
        raise UsageError(f"the trainer cannot do this: {explain(str(error))}") from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UsageError(
            f"the run cannot write its files: {error}. Free or give it the space or the rights, then go on from the last "
            "checkpoint, if there is one, with --ckpt_path last."
        ) from error


class ExperimentCLI(LightningCLI):
    """Runs a LightningModule on a LightningDataModule, both chosen by the configuration.

    A run has one folder (`--folder`, by default `runs/<name of the configuration>`) with its resolved
    configuration, versions, metrics and checkpoints. `--ckpt_path last` goes on where the folder's run stopped.

    Args:
        arguments: of the command line, the subcommand first, with paths for names of configurations.
        run_name: of the folder in `runs`.
        command_line: for the run's record.
        held: takes what is given back when the run has ended, such as the lock of its folder.
    """

    def __init__(self, arguments: list[str], run_name: str, command_line: str, held: ExitStack) -> None:
        self._held = held
        self._command = arguments[0]
        self._command_line = command_line
        self._run_name = run_name
        self._resume_step: int | None = None
        self._step_row: dict[str, float] | None = None
        parser_options = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,  # RunRecord does it
            trainer_defaults={"num_sanity_val_steps": 0},
            seed_everything_default=42,
            parser_kwargs=dict.fromkeys(self.subcommands(), parser_options) | parser_options,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--folder", type=str | None, default=None, help="The run's folder.")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_args(args)  # pyright: ignore[reportArgumentType]  # always a list here
        except jsonargparse.ArgumentError as error:
            cause = explain(str(error)).rstrip(".")
            if "arguments are required" in cause:
                cause = f"{cause}: --config with one of `sparsemarg configs`, or a file, gives them"
            raise UsageError(f"{cause}. `sparsemarg {self._command} --help` lists what can be given.") from error
        options = self.config[self.config.subcommand]
        limit = {"fit": "limit_train_batches", "test": "limit_test_batches"}[self.config.subcommand]
        if options.trainer[limit] == 0:
            raise UsageError(f"--trainer.{limit} 0 leaves nothing to do: give a number of batches, or leave it out for all.")
        options.folder = options.folder or str(Path("runs") / self._run_name)
        if self.config.subcommand == "fit":
            check_writable_folder("--folder", Path(options.folder))
        options.trainer.default_root_dir = options.folder
        first = rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]  # others of a run train with it
        if self.config.subcommand == "fit" and first:
            self._held.enter_context(alone_in(Path(options.folder)))
        self._choose_checkpoint(options)
        if self.config.subcommand == "test":  # made only where there is something to test
            check_writable_folder("--folder", Path(options.folder))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UsageError:
            raise
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(f"the configuration cannot be built: {explain(str(error))}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config[self.config.subcommand]
        self.trainer_defaults["callbacks"] = [
            RandomState(),
            RunRecord(self._resolved_config(), self._command_line, options.ckpt_path),
            StepLimit(options.trainer.max_steps),
        ]
        if options.trainer.max_epochs is None and options.trainer.max_steps != -1:
            kwargs["max_epochs"] = -1
        loggers = self._loggers(Path(options.folder))
        return super().instantiate_trainer(logger=loggers, plugins=[AtomicCheckpointIO()], max_steps=-1, **kwargs)

    def _choose_checkpoint(self, options: jsonargparse.Namespace) -> None:
        """Replace `ckpt_path` by a file that exists, can be read and belongs to this configuration."""
        folder = Path(options.folder)
        fitting = self.config.subcommand == "fit"
        if fitting and options.ckpt_path is None:
            if checkpoint_path(folder, "last").exists():
                raise UsageError(
                    f"the folder {folder} already holds a run. Go on with it by --ckpt_path last, or give another "
                    "folder with --folder, or delete that one."
                )
            return
        if options.ckpt_path is None:
            best = checkpoint_path(folder, "best").exists()
            options.ckpt_path = "best" if best else "last"
        path = find_checkpoint(folder, options.ckpt_path)
        checkpoint = load_checkpoint(path)
        config = self._resolved_config()
        wanted = {"model": _without_evaluation(config["model"])}
        if fitting:
            wanted |= {"data": _without_location(config["data"]), "seed_everything": config["seed_everything"]}
        saved = dict(checkpoint[CONFIG_KEY])
        saved |= {"model": _without_evaluation(saved["model"]), "data": _without_location(saved["data"])}
        check_same_config(path, saved, wanted)
        options.ckpt_path = str(path)
        self._resume_step = checkpoint["global_step"]
        self._step_row = checkpoint.get(STEP_ROW)

    def _resolved_config(self) -> dict[str, Any]:
        """Dump the configuration of the subcommand, such that `--config` takes it again."""
        text = self.parser.dump(self.config, skip_unset=False, format="yaml")
        config = yaml.safe_load(text)[self.config.subcommand]
        return {**config, "ckpt_path": None}

    def _loggers(self, folder: Path) -> list[Logger]:
        if self.subcommand == "test":
            return [MetricsCSV(folder / "test.csv", fixed_step=self._resume_step)]
        return [
            MetricsCSV(folder / "metrics.csv", self._resume_step, self._step_row),
            TensorBoardLogger(folder, name="tensorboard", version="", purge_step=self._resume_step),
        ]


def _silence() -> None:
    """Leave out an advertisement, and a deprecation inside Lightning that a user can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")


def _without_evaluation(model: dict[str, Any]) -> dict[str, Any]:
    """Leave out how a model is evaluated, which a test may choose anew, and what it began with, which is in its weights."""
    arguments = model.get("init_args") or {}
    free = ("likelihood_samples", "likelihood_images", "warm_start")
    return {**model, "init_args": {name: value for name, value in arguments.items() if name not in free}}


def _without_location(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the data lie, which may change between two starts of a run."""
    arguments = data.get("init_args") or {}
    return {**data, "init_args": {k: v for k, v in arguments.items() if k not in ("root", "path", "download")}}
