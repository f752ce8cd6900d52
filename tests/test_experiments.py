"""Configurations, the command line and what it says of mistakes. Small runs on the embedded digits."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from experiment_cases import DIGITS, ON_DIGITS, QUIET, complaint, fit, real_data, rows_of
from experiment_cases import in_temporary_folder as in_temporary_folder
from sparsemarg.experiments import cli, demo, run_record, training
from sparsemarg.experiments.cli import main
from sparsemarg.experiments.named_configs import config_names

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
        options += ["--model.init_args.likelihood_images", "2", "--model.init_args.likelihood_samples", "32"]
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
    demo.run(["demo", "--trainer.max_epochs", "1", "--model.init_args.hidden", "50", *QUIET])
    printed = capsys.readouterr().out
    (test,) = rows_of(Path("demo/run/test.csv"))
    assert f"{float(test['test/negative_elbo']):.2f} nats" in printed
    assert f"{float(test['test/distinct_codes']):.0f} for 360 images" in printed
    for picture in ("reconstructions.png", "support.png"):
        assert (Path("demo") / picture).read_bytes().startswith(b"\x89PNG")


def test_command_line_imports_nothing_heavy() -> None:
    code = "import sys, sparsemarg.experiments.cli; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("bar", [True, False])
def test_the_progress_bar_shows_every_step(bar: bool) -> None:
    trainer = fit("--folder", "here", "--trainer.enable_progress_bar", str(bar).lower()).trainer
    assert trainer.progress_bar_metrics.keys() == ({"loss", "support", "decoder_calls"} if bar else set())
    assert "loss" not in Path("here/metrics.csv").read_text().splitlines()[0].split(",")


def test_help_and_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["configs"]) == 0
    assert DIGITS in capsys.readouterr().out.split()
    assert main(["configs", "--nothing"]) == 2
    assert main(["fit"]) == 2
    assert "--config with one of `sparsemarg configs`" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["configs"], ["bench", "--help"]], ids=" ".join)
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sparsemarg.experiments.cli", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writing)
    stopped = "sparsemarg: stopped, because nobody reads what it prints any more\n" if arguments[0] == "bench" else ""
    # argparse says nothing of output that it could not write.
    assert (done.returncode, done.stderr) in ((0, ""), (141, stopped))


def test_no_output_at_all_is_no_mistake() -> None:
    """Standard output is closed, as that of a daemon may be."""
    command = f"exec {sys.executable} -m sparsemarg.experiments.cli configs >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str]) -> None:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(cli.Command, "load", lambda command: broken)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["configs"])


def test_a_demo_that_fails_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "demo" / "run" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert main(["demo", "--nonsense", "3"]) == 2
    assert main(["demo", "--folder", "elsewhere"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert main(["demo", "--help"]) == 0
    assert "./demo" in capsys.readouterr().out
    assert kept.exists()


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
        (["fit", "--config", DIGITS, "--trainer.limit_train_batches", "0.001"], "the trainer cannot do this: You requested to"),
        (
            ["fit", "--config", DIGITS, "--trainer.val_check_interval", "1000"],
            "cannot do this: `val_check_interval` .1000. must",
        ),
        (["fit", "--config", DIGITS, "--trainer.limit_train_batches", "0"], "limit_train_batches 0 leaves nothing to do"),
        (
            ["test", "--config", DIGITS, "--trainer.limit_test_batches", "0.0"],
            "limit_test_batches 0 leaves nothing to do",
        ),
        (
            ["fit", "--config", "bit_vector_vae/topk", "--model.init_args.estimator.init_args.layer.init_args.k", "0"],
            "cannot be built: .*k",
        ),
        (["fit", "--config", DIGITS, "--model.dim", "16"], "gives scores of 16 bits but the estimator's structures have 32"),
        (["fit", "--config", DIGITS, "--data.batch_size", "0"], "batch_size must be at least 1, not 0"),
        (["fit", "--config", DIGITS, "--model.learning_rate", "-1"], "learning_rate must be above 0, not -1"),
        (["fit", "--config", DIGITS, "--model.rank", "0"], "cannot be built: Decoder: rank must be at least 1, not 0"),
        (
            ["fit", "--config", "signal_game/digits/sparsemax", "--model.temperature", "0"],
            "cannot be built: Sender: temperature must be above 0",
        ),
        (
            ["fit", "--config", "semi_supervised_vae/digits/dense", "--model.unlabelled_weight", "-1"],
            "cannot be built: model: unlabelled_weight must be at least 0",
        ),
        (["fit", "--config", DIGITS, "--data", "DigitsGame"], "takes data of the kind ImageData, and DigitsGame is none"),
        (
            ["fit", "--config", DIGITS, "--model.learning_rate", "1e30"],
            "training diverged: scores row .* Lower the learning",
        ),
        (["fit", "--config", DIGITS, "--trainer.devices", "0"], "the configuration cannot be built"),
        (["fit", "--config", DIGITS, "--folder", __file__], "--folder takes a folder, but"),
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"model:\n  a: [1\n", 'but bad.yaml is none: .* in "bad.yaml", line 2'), (b"a: \xff\xfe", "bad.yaml is none: .* 0xff")],
    ids=["syntax", "bytes"],
)
def test_a_file_that_is_no_yaml_is_named(capsys: pytest.CaptureFixture[str], content: bytes, reason: str) -> None:
    Path("bad.yaml").write_bytes(content)
    said = _plain_complaint(capsys, "fit", "--config", "bad.yaml")
    assert re.search(reason, said), said


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


def test_what_a_run_says_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    often = ["--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2"]
    assert main(["fit", "--config", DIGITS, "--folder", "here", "--trainer.max_steps", "2", *often, *QUIET]) == 0
    (row,) = (row for row in rows_of(Path("here/metrics.csv")) if row["val/negative_elbo"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"here: 2 steps, best val/negative_elbo {float(row['val/negative_elbo']):.6g}"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparsemarg {metadata.version('sparsemarg')}\n"
