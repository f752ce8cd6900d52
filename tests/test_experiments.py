"""Data, configurations, command line, checkpoints and exact resume. Small runs on the embedded digits."""

import csv
import errno
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from sparsemarg.experiments import demo, run_record, training
from sparsemarg.experiments.batches import Batches, Shard, Source
from sparsemarg.experiments.bit_vector_vae import BitVectorVAETask
from sparsemarg.experiments.checkpoints import AtomicCheckpointIO, Checkpoints
from sparsemarg.experiments.cli import main
from sparsemarg.experiments.data import MNIST, Digits, FashionMNIST, ImageData
from sparsemarg.experiments.errors import UsageError
from sparsemarg.experiments.metrics_csv import MetricsCSV
from sparsemarg.experiments.named_configs import config_names
from sparsemarg.experiments.random_state import RandomState
from sparsemarg.experiments.step_limit import StepLimit
from torch import Tensor

DIGITS = "bit_vector_vae/digits/sparsemap_normalized"
ON_DIGITS = [
    *("--data", "sparsemarg.experiments.data.Digits"),
    *("--model.init_args.pixels", "64"),
    *("--model.init_args.levels", "17"),
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
real_data = pytest.mark.skipif("SPARSEMARG_DATA" not in os.environ, reason="needs SPARSEMARG_DATA")


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    torch.set_num_threads(1)  # tiny tensors


def fit(*arguments: str, config: str = DIGITS, steps: int = 2) -> training.ExperimentCLI:
    return training.run(["fit", "--config", config, "--trainer.max_steps", str(steps), *QUIET, *arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says on stderr when it refuses, on one line."""
    assert main([*arguments, *QUIET]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message[message.index("sparsemarg:") :].split())


# Data


def test_digits_are_split_without_loss_or_overlap() -> None:
    from sklearn.datasets import load_digits

    splits = Digits().splits
    assert [len(splits.train), len(splits.val), len(splits.test)] == [1257, 180, 360]
    together = torch.cat([splits.train, splits.val, splits.test]).numpy()
    everything = load_digits(return_X_y=True)[0].astype(np.uint8)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(everything, axis=0))
    assert together.sum() == everything.sum()
    assert together.max() == Digits.levels - 1
    assert torch.equal(Digits().splits.test, splits.test)


@real_data
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_real_splits_are_slices_of_the_original_files(kind: type[MNIST]) -> None:
    root = Path(os.environ["SPARSEMARG_DATA"])
    splits = kind(str(root), download=False).splits
    raw = root / kind.dataset / "raw"
    train = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8)[16:].reshape(60000, 784)
    test = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8)[16:].reshape(10000, 784)
    np.testing.assert_array_equal(splits.train.numpy(), train[:55000])
    np.testing.assert_array_equal(splits.val.numpy(), train[55000:])
    np.testing.assert_array_equal(splits.test.numpy(), test)


def test_batches_cover_each_epoch_in_a_new_order() -> None:
    batches = Batches(Source.of(torch.arange(10)), 4, seed=3)
    epochs = [list(batches) for _ in range(3)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert torch.cat(list(Batches(Source.of(torch.arange(10)), 4, fixed=True))).tolist() == list(range(10))


@pytest.mark.parametrize("given_out", range(1, 9))
@pytest.mark.parametrize("limit", [None, 2])
def test_batches_continue_from_their_state(given_out: int, limit: int | None) -> None:
    """As Lightning uses them: a new iterator each epoch, left after `limit` batches."""

    def stream(batches: Batches) -> Any:
        while True:
            for batch in batches:
                yield batch.tolist()
                if batches.position == limit:
                    break

    first = Batches(Source.of(torch.arange(10)), 4, seed=3, batches_per_epoch=limit)
    original = stream(first)
    for _ in range(given_out):
        next(original)
    resumed = Batches(Source.of(torch.arange(10)), 4, seed=99, batches_per_epoch=limit)
    resumed.load_state_dict(first.state_dict())
    continued = stream(resumed)
    assert [next(continued) for _ in range(7)] == [next(original) for _ in range(7)]


def test_a_batch_draws_the_same_when_it_is_made_again() -> None:
    """Its generator is a function of seed, epoch and batch: no two agree, and a resumed stream repeats them."""
    source = Source(lambda index, generator: torch.rand(len(index), generator=generator), 10)
    batches = Batches(source, 4, seed=3)
    epochs = [torch.cat(list(batches)) for _ in range(3)]
    assert torch.cat(epochs).unique().numel() == 30
    again = Batches(source, 4, seed=0)
    again.load_state_dict({"seed": 3, "epoch": 1, "position": 1})
    assert torch.equal(torch.cat(list(again)), epochs[1][4:])
    fixed = Batches(source, 4, seed=3, fixed=True)
    assert torch.equal(torch.cat(list(fixed)), torch.cat(list(fixed)))


def test_shards_are_the_parts_of_the_whole_batches() -> None:
    source = Source(lambda index, generator: (index, torch.rand(len(index), generator=generator)), 11)
    whole = list(Batches(source, 4, seed=3))
    parts = [list(Batches(source, 4, seed=3, shard=Shard(rank, 3))) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    for batch, *shards in zip(whole, *parts, strict=True):
        for i in range(2):
            together = torch.cat([shard[i] for shard in shards]).sort().values
            assert torch.equal(together, batch[i].sort().values)
    assert len(Batches(source, 5, shard=Shard(0, 2))) == 2  # one example for two processes is left out


# Configurations and runs


LIMITS = ["--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "2"]


def names_of(experiment: str) -> list[str]:
    return [name for name in config_names() if name.startswith(f"{experiment}/")]


def two_steps(name: str, *arguments: str) -> list[tuple[str, dict[str, float]]]:
    """Train for two steps and test, with the rest of the configuration as it stands; each split with what it logged."""
    fit(*arguments, *LIMITS, config=name)
    training.run(["test", "--config", name, *arguments, *LIMITS, "--verbose", "false", *QUIET])
    folder = Path("runs") / name
    train = [row for row in rows_of(folder / "metrics.csv") if row["train/decoder_calls"]]
    (test,) = rows_of(folder / "test.csv")
    assert [row["step"] for row in train] == ["0", "1"]
    assert test["step"] == "2"
    rows = [("train", train[0]), ("train", train[1]), ("test", test)]
    values = [
        (split, {key.removeprefix(f"{split}/"): float(text) for key, text in row.items() if "/" in key and text})
        for split, row in rows
    ]
    for _, value in values:
        assert 1 <= value["support_q25"] <= value["support_q50"] <= value["support_q75"]
    assert values[0][1]["encoder_grad_norm"] > 0
    return values


@pytest.mark.parametrize("name", names_of("bit_vector_vae"))
def test_every_bit_vector_config_trains_and_tests(name: str) -> None:
    for _, value in two_steps(name, *ON_DIGITS, "--data.init_args.batch_size", "4"):
        dim = yaml.safe_load((Path("runs") / name / "config.yaml").read_text())["model"]["init_args"]["dim"]
        assert value["support_q75"] <= dim + 1
        assert value["decoder_calls"] == value["support_mean"]
        assert 1 <= value["distinct_codes"] <= 8
        assert value["negative_elbo"] == pytest.approx(value["distortion"] + value["rate"], rel=1e-6)
        assert value["bits_per_dim"] == pytest.approx(value["negative_elbo"] / 64 / np.log(2), rel=1e-6)


@pytest.mark.parametrize("name", names_of("signal_game"))
def test_every_signal_game_config_trains_and_tests(name: str) -> None:
    digits = ["--data", "sparsemarg.experiments.signal_game_data.DigitsGame", "--data.init_args.batch_size", "4"]
    for _, value in two_steps(name, *digits, "--data.init_args.images", "8", *FEW_GAMES, "--model.init_args.features", "64"):
        check_game(value, batch=4)


@real_data
@pytest.mark.parametrize("name", [name for name in names_of("signal_game") if "/caltech101/" in name])
def test_every_signal_game_config_trains_and_tests_on_photographs(name: str) -> None:
    path = Path(os.environ["SPARSEMARG_DATA"]) / "signal_game/caltech101_mobilenetv2/features.npz"
    for _, value in two_steps(name, "--data.init_args.path", str(path), "--data.init_args.batch_size", "4", *FEW_GAMES):
        check_game(value, batch=4)


FEW_GAMES = ["--data.init_args.val_games", "8", "--data.init_args.test_games", "8", "--trainer.log_every_n_steps", "1"]


def check_game(value: dict[str, float], batch: int) -> None:
    assert value["decoder_calls"] == value["support_mean"] <= 256
    assert 0 <= value["message_entropy"] <= np.log(256) + 1e-5
    assert 1 <= value["distinct_codes"] <= 2 * batch
    for name in ("success_argmax", "success_expected"):
        assert 0 <= value.get(name, 0) <= 1
    assert value["success_argmax"] * 2 * batch == pytest.approx(round(value["success_argmax"] * 2 * batch))
    assert -1 <= value["cost"] < 10


@pytest.mark.parametrize("name", names_of("semi_supervised_vae"))
def test_every_semi_supervised_config_trains_and_tests(name: str) -> None:
    digits = ["--data", "sparsemarg.experiments.semi_supervised_data.SemiSupervisedDigits", "--data.init_args.batch_size", "4"]
    options = ["--model.init_args.pixels", "64", "--model.init_args.warm_start", "null", "--trainer.log_every_n_steps", "1"]
    labelled = "warm_start" in name
    *train, (_, test) = two_steps(name, *digits, "--data.init_args.labelled_only", str(labelled).lower(), *options)
    for _, value in train:
        assert 0 <= value["labelled_accuracy"] <= 1
        assert labelled == ("negative_elbo" not in value)
    assert test["negative_elbo"] == pytest.approx(test["cost"] + test["divergence"], rel=1e-6)
    assert 1 <= test["distinct_codes"] <= 8
    assert 0 <= test["accuracy"] <= 1


LOSSES = [
    ("bit_vector_vae/digits/sparsemap", "train/negative_elbo", []),
    ("semi_supervised_vae/digits/sparsemax", "train/negative_elbo", ["--model.init_args.warm_start", "null"]),
    ("signal_game/digits/sparsemax", "train/cost", []),
]


@pytest.mark.parametrize(("name", "loss", "options"), LOSSES)
def test_mixed_precision_starts_from_the_loss_of_full_precision(name: str, loss: str, options: list[str]) -> None:
    options = [*options, "--trainer.log_every_n_steps", "1"]
    seen = {}
    for precision in ("32-true", "bf16-mixed"):
        fit("--folder", precision, "--trainer.precision", precision, *options, config=name)
        first, *_ = rows_of(Path(precision) / "metrics.csv")
        seen[precision] = float(first[loss])
        assert float(first["train/encoder_grad_norm"]) > 0
    assert seen["bf16-mixed"] == pytest.approx(seen["32-true"], rel=0.02)  # bfloat16 has 8 bits
    assert seen["bf16-mixed"] != seen["32-true"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize(("name", "loss", "options"), LOSSES)
def test_a_gpu_starts_from_the_loss_of_the_cpu(name: str, loss: str, options: list[str], precision: str) -> None:
    """In every precision; and the loss stays finite while the gradients' scale for float16 settles."""
    options = [*options, "--trainer.log_every_n_steps", "1"]
    fit("--folder", "cpu", "--trainer.accelerator", "cpu", *options, config=name)
    there = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.precision", precision]
    fit("--folder", "gpu", *there, *options, config=name, steps=20)
    (wanted, *_), found = (rows_of(Path(folder) / "metrics.csv") for folder in ("cpu", "gpu"))
    losses = [float(row[loss]) for row in found if row.get(loss)]
    assert losses[0] == pytest.approx(float(wanted[loss]), rel=1e-4 if precision == "32-true" else 0.02)
    assert np.isfinite(losses).all()
    assert any(float(row["train/encoder_grad_norm"]) > 0 for row in found if row.get("train/encoder_grad_norm"))


@real_data
@pytest.mark.parametrize(
    "name", [name for name in names_of("bit_vector_vae") + names_of("semi_supervised_vae") if "/digits/" not in name]
)
def test_every_config_trains_and_tests_on_real_images(name: str) -> None:
    options = ["--data.init_args.root", os.environ["SPARSEMARG_DATA"], "--data.init_args.download", "false"]
    options += ["--data.init_args.batch_size", "4", "--trainer.log_every_n_steps", "1"]
    if name.startswith("semi_supervised_vae"):
        options += ["--model.init_args.warm_start", "null"]
    else:
        options += ["--model.init_args.likelihood_images", "2"]
    for _, value in two_steps(name, *options):
        if "rate" in value:
            assert value["negative_elbo"] == pytest.approx(value["distortion"] + value["rate"], rel=1e-6)


@real_data
@pytest.mark.parametrize("method", ["sparsemap", "sparsemap_budget", "sparsemap_sorted", "topk"])
def test_published_configs_train_on_real_images(method: str) -> None:
    root = ["--data.init_args.root", os.environ["SPARSEMARG_DATA"], "--data.init_args.download", "false"]
    fit(*root, "--data.init_args.batch_size", "4", config=f"bit_vector_vae/{method}")
    first, second = rows_of(Path("runs/bit_vector_vae") / method / "metrics.csv")
    # A fresh decoder is near uniform over 256 levels: 8 bits a pixel and a little more.
    assert 7.5 < float(first["train/bits_per_dim"]) < 9
    assert float(second["train/bits_per_dim"]) != float(first["train/bits_per_dim"])


def test_run_folder_holds_everything() -> None:
    fit("--folder", "here", "--trainer.max_epochs", "1", steps=-1)
    files = {path.relative_to("here").as_posix() for path in Path("here").rglob("*") if path.is_file()}
    assert {"config.yaml", "versions.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= files
    assert any(name.startswith("tensorboard/events") for name in files)
    (start,) = yaml.safe_load(Path("here/versions.yaml").read_text())
    assert start["torch"] == torch.__version__
    assert {"sparsemarg", "python", "git", "lightning"} <= start.keys()
    validation = [row for row in rows_of(Path("here/metrics.csv")) if row["val/negative_elbo"]]
    assert [row["step"] for row in validation] == ["19"]
    assert int(float(validation[0]["val/distinct_codes"])) >= 1
    # The resolved configuration is itself a configuration, for both commands.
    fit("--ckpt_path", "last", "--trainer.max_epochs", "2", config="here/config.yaml", steps=22)
    assert rows_of(Path("here/metrics.csv"))[-1]["step"] == "21"
    training.run(["test", "--config", "here/config.yaml", "--verbose", "false", *QUIET])


def test_git_revision_is_that_of_the_checkout() -> None:
    folder = Path(run_record.__file__).parent
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    revision = run_record.git_revision()
    assert (revision or "").removesuffix("-dirty") == head.stdout.strip()


def test_demo_prints_a_table_and_draws(capsys: pytest.CaptureFixture[str]) -> None:
    demo.run(["demo", "--trainer.max_epochs", "1", *QUIET])
    printed = capsys.readouterr().out
    (test,) = rows_of(Path("demo/run/test.csv"))
    assert f"{float(test['test/negative_elbo']):.2f} nats" in printed
    assert f"{float(test['test/distinct_codes']):.0f} for 360 images" in printed
    for picture in ("reconstructions.png", "support.png"):
        assert (Path("demo") / picture).read_bytes().startswith(b"\x89PNG")


def test_command_line_imports_nothing_heavy() -> None:
    code = "import sys, sparsemarg.experiments.cli; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_and_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["configs"]) == 0
    assert DIGITS in capsys.readouterr().out.split()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "expected a command .* but got 'nonsense'"),
        (
            ["fit", "--config", "bit_vector_vae/sparsmap"],
            "'bit_vector_vae/sparsmap' is neither. Did you mean bit_vector_vae/sp",
        ),
        (["fit", "--config", DIGITS, "--trainer.max_epoch", "3"], "unrecognized arguments: --trainer.max_epoch"),
        (["fit", "--config", DIGITS, "--model.init_args.dimm", "3"], "no option 'dimm'. Did you mean dim[?] Its options are"),
        (
            ["fit", "--config", DIGITS, "--model.init_args.dim", "x"],
            "model.init_args.dim: Expected a <class 'int'>. Got value: x",
        ),
        (["fit"], "arguments are required: fit.data, fit.model"),
        (
            ["fit", "--config", "bit_vector_vae/topk", "--model.init_args.estimator.init_args.layer.init_args.k", "0"],
            "cannot be built: .*k",
        ),
        (["fit", "--config", DIGITS, "--model.dim", "16"], "gives scores of 16 bits but the estimator's structures have 32"),
        (["fit", "--config", DIGITS, "--data.batch_size", "0"], "batch_size must be at least 1, not 0"),
        (["fit", "--config", DIGITS, "--model.learning_rate", "-1"], "learning_rate must be above 0, not -1"),
        (["fit", "--config", DIGITS, "--trainer.devices", "0"], "the configuration cannot be built"),
        (["fit", "--config", DIGITS, "--folder", __file__], "takes the folder of a run, but"),
        (["fit", "--config", DIGITS, "--ckpt_path", "last"], "last.ckpt, but there is no such file. Train first"),
        (["fit", "--config", DIGITS, "--ckpt_path", "no.ckpt"], "no.ckpt, but there is no such file. Give an existing file"),
        (["test", "--config", DIGITS], "last.ckpt, but there is no such file"),
        (["fit", "--config", DIGITS, "--model.init_args.pixels", "784"], "784 pixels of 17 .* Digits has 64 pixels of 17: set"),
        (
            [
                *("fit", "--config", "bit_vector_vae/topk", "--data.init_args.root", "absent"),
                "--data.init_args.download",
                "false",
            ],
            "expected the FashionMNIST files in absent/FashionMNIST/raw, but they are missing .* --data.init_args.root",
        ),
    ],
)
def test_mistakes_are_explained(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    said = complaint(capsys, *arguments) if arguments[0] in ("fit", "test") else _plain_complaint(capsys, *arguments)
    assert re.search(message, said), said


def _plain_complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return " ".join(capsys.readouterr().err.split())


def test_unknown_key_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fit("--folder", "here")
    config = yaml.safe_load(Path("here/config.yaml").read_text())
    config["model"]["init_args"]["estimator"]["init_args"]["samples"] = 3
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    assert "Marginalize has no option 'samples'. Its options are layer" in complaint(capsys, "fit", "--config", "bad.yaml")


def test_unusable_checkpoints_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--folder", "here")
    last = Path("here/checkpoints/last.ckpt")
    again = ["fit", "--config", DIGITS, "--folder", "here"]
    assert "already holds a run. Go on with it by --ckpt_path last" in complaint(capsys, *again)

    other = complaint(capsys, *again, "--ckpt_path", "last", "--model.init_args.normalize_scores", "false")
    assert "another configuration: model.init_args.normalize_scores is False, the checkpoint has True" in other
    other = complaint(capsys, *again, "--ckpt_path", "last", "--data.init_args.batch_size", "8")
    assert "data.init_args.batch_size is 8, the checkpoint has 64" in other

    Path("short.ckpt").write_bytes(last.read_bytes()[:100_000])
    assert "(100,000 bytes) is truncated, damaged" in complaint(capsys, *again, "--ckpt_path", "short.ckpt")
    torch.save({"state_dict": {}}, "foreign.ckpt")
    assert "holds something else" in complaint(capsys, "test", "--config", DIGITS, "--ckpt_path", "foreign.ckpt")


# Checkpoints


class Unwritable:
    """An object whose pickling fails after part of the file was written."""

    def __reduce__(self) -> Any:
        raise OSError("no space left on device")


def test_failed_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(1000)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(1000), "bad": Unwritable()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_full_disk_leaves_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's own error, from a device that is always full."""
    fit("--folder", "here", steps=3)
    before = Path("here/checkpoints/last.ckpt").read_bytes()
    plain_open = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        target = Path("/dev/full") if self.name.endswith(".ckpt.tmp") and "w" in mode else self
        return plain_open(target, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    message = complaint(
        capsys, "fit", "--config", DIGITS, "--folder", "here", "--ckpt_path", "last", "--trainer.max_steps", "5"
    )
    assert "cannot write its files: [Errno 28] No space left on device" in message
    assert "--ckpt_path last" in message
    assert Path("here/checkpoints/last.ckpt").read_bytes() == before


def test_folder_without_write_access(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def forbidden(**options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), options["dir"])

    # Rights do not stop the superuser, who may be the one that runs the tests.
    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    message = complaint(capsys, "fit", "--config", DIGITS, "--folder", "here")
    assert "cannot write its files: [Errno 13] Permission denied: 'here'" in message
    assert os.listdir("here") == []


def test_failing_run_leaves_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    fit("--folder", "here", steps=3)
    before = Path("here/checkpoints/last.ckpt").read_bytes()

    def fail(self: BitVectorVAETask, images: Tensor) -> Tensor:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(BitVectorVAETask, "training_step", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit("--folder", "here", "--ckpt_path", "last", steps=5)
    assert Path("here/checkpoints/last.ckpt").read_bytes() == before


def test_metrics_csv_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    for step in range(4):
        first.log_metrics({"a": step / 3}, step)
    first.log_metrics({"b": 1.0}, 3)
    with path.open("a") as file:
        file.write("4,0.3")  # the process was killed in mid-write
    resumed = MetricsCSV(path, resume_step=3)
    resumed.log_metrics({"a": 7.0}, 3)
    rows = rows_of(path)
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        *((str(i), repr(i / 3), "") for i in range(3)),
        ("3", "7.0", ""),
    ]


# Exact resume


class Dice(LightningModule):
    """Keeps the epoch, the batch, and a number drawn from every global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.drawn: list[tuple[Any, ...]] = []

    def training_step(self, images: Tensor) -> Tensor:
        numbers = (torch.rand(()).item(), np.random.rand(), random.random())  # noqa: NPY002
        self.drawn.append((self.current_epoch, images.flatten().tolist(), *numbers))
        return self.weight * images.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Few(ImageData):
    pixels, levels = 1, 9

    def read(self) -> Any:
        images = torch.arange(8, dtype=torch.uint8)[:, None]
        return type("Splits", (), {"train": images, "val": images, "test": images})()


def roll(folder: Path, steps: int, resume: bool = False) -> list[tuple[Any, ...]]:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    dice = Dice()
    trainer = Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RandomState(), Checkpoints(), StepLimit(steps)],
    )
    trainer.fit(dice, datamodule=Few(2), ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
    return dice.drawn


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_epochs_batches_and_random_generators_continue(tmp_path: Path, stop: int) -> None:
    """Epochs have 4 steps: stopped within an epoch, at its end, and after it."""
    whole = roll(tmp_path / "whole", 10)
    first = roll(tmp_path / "parts", stop)
    second = roll(tmp_path / "parts", 10, resume=True)
    assert first + second == whole
    assert [epoch for epoch, *_ in whole] == [0] * 4 + [1] * 4 + [2] * 2


def same_state(ours: Any, theirs: Any) -> bool:
    """Whether nested dictionaries, lists and tensors are equal bit for bit."""
    if isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_state(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same_state, ours, theirs))
    return ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert (ours / "metrics.csv").read_text() == (theirs / "metrics.csv").read_text()
    for name in ("last", "best"):
        one, two = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for run in (ours, theirs))
        for key in ("global_step", "epoch", "state_dict", "optimizer_states", "callbacks", "Digits"):
            assert same_state(one[key], two[key]), f"{name}.ckpt: {key}"


def test_stopped_run_resumes_bit_for_bit() -> None:
    """Stopped within an epoch of 5 steps, at its end, just after it; with a limit on steps and with one on epochs."""

    def fit_to(folder: str, steps: int, epochs: int, *more: str) -> None:
        limits = ["--trainer.limit_train_batches", "5", "--trainer.max_epochs", str(epochs)]
        fit("--folder", folder, *limits, *more, config="bit_vector_vae/digits/topk", steps=steps)

    fit_to("whole", -1, 3)
    for stop in (2, 5, 6, 10):
        fit_to(f"steps{stop}", stop, 100)
        fit_to(f"steps{stop}", 15, 100, "--ckpt_path", "last")
        assert_same_run(Path(f"steps{stop}"), Path("whole"))
    fit_to("epochs", -1, 2)
    fit_to("epochs", -1, 3, "--ckpt_path", "last")
    assert_same_run(Path("epochs"), Path("whole"))


def launch(folder: str, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sparsemarg.experiments.cli", "fit", "--config", DIGITS, "--folder", folder]
    options = ["--trainer.max_epochs", "10", "--checkpoint.every_n_steps", "6", *QUIET, *arguments]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_run_killed_ten_times_resumes_bit_for_bit() -> None:
    """SIGKILL at ten random moments of ten epochs of 20 steps; then all is as after an undisturbed run.

    Some moments come before the first checkpoint, some before anything new was saved, some while a checkpoint is written. They
    are drawn in steps, plus a moment within a step: in seconds, a busy machine would never get to a checkpoint.
    """
    undisturbed = launch("whole")
    draw = random.Random(0)
    metrics, checkpoint = Path("parts/metrics.csv"), Path("parts/checkpoints/last.ckpt")
    saved = []
    for _ in range(10):
        resume = ["--ckpt_path", "last"] if checkpoint.exists() else []
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        killed = launch("parts", *resume)
        start = (saved[-1] if saved else 0) + 1  # a row a step below the header, once a resumed run has cut the file back
        rows, deadline = start + draw.randrange(14), time.monotonic() + 120
        while not metrics.exists() or metrics.stat().st_mtime_ns == before or len(metrics.read_text().splitlines()) < rows:
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL, "the run ended before it was killed"
        saved.append(torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0)
    assert saved == sorted(saved)
    assert saved[-1] > 0
    assert undisturbed.wait() == 0

    resumed = launch("parts", "--ckpt_path", "last")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors.decode()
    assert_same_run(Path("parts"), Path("whole"))


def test_resume_refuses_another_seed(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--folder", "here")
    with pytest.raises(UsageError, match="seed_everything is 7, the checkpoint has 42"):
        fit("--folder", "here", "--ckpt_path", "last", "--seed_everything", "7")


def test_a_demo_that_fails_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "demo" / "run" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert main(["demo", "--nonsense", "3"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert main(["demo", "--help"]) == 0
    assert "./demo" in capsys.readouterr().out
    assert kept.exists()
