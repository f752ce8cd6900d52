"""How tests run the command line: small, on the embedded digits, in a folder of their own."""

import csv
import os
from pathlib import Path

import pytest
import torch
from sparsemarg.experiments import training
from sparsemarg.experiments.cli import main

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
