"""The examples run, learn something, and draw."""

import tempfile
from pathlib import Path

import pytest
import torch
from sparsemarg.experiments.cli import main
from sparsemarg.experiments.examples.command import EXAMPLES
from sparsemarg.experiments.examples.windows import Windows
from torch import Tensor


def results_of(text: str) -> dict[str, float]:
    lines = [line.rpartition(": ") for line in text.strip().splitlines()[:-1]]
    return {name: float(value) for name, _, value in lines}


# Steps of training, and what then is better than chance or than before, by a margin.
EXPECTED = {
    "windows": (150, lambda found: found["test accuracy"] > 0.6 and found["rows seen, of 8"] < 6),
    "alignments": (
        5,
        lambda found: (
            found["test accuracy, aligned, digits one row lower"] > 0.1 + found["test accuracy, rigid, digits one row lower"]
        ),
    ),
    "pixels": (
        200,
        lambda found: (
            found["test accuracy, 10 pixels by k-subset SparseMAP"]
            > 0.05 + found["test accuracy, 10 pixels by chance (mean of 20)"]
        ),
    ),
    "paths": (30, lambda found: found["regret after training"] < 0.5 * found["regret before training"]),
    "decisions": (
        150,
        lambda found: all(
            regret < found["regret in %, costs of degree 6, least squares, knows costs"] - 1
            for name, regret in found.items()
            if "degree 6" in name and "squares" not in name
        ),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps, improved = EXPECTED[name]
    assert main(["example", name, "--steps", str(steps), "--folder", str(tmp_path)]) == 0
    found = results_of(capsys.readouterr().out)
    assert improved(found), found
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_windows_are_runs_of_rows() -> None:
    scores = torch.tensor([[-1.0, 2, -0.5, 1, -3, 2.4], [-3, -2, -1, -2, -3, -4]])
    expected: Tensor = torch.tensor([[0.0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]])
    assert torch.equal(Windows(6).maximize(scores), expected)


def test_mistakes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", "tetris"]) == 2
    assert "'alignments'" in capsys.readouterr().err
    assert main(["example", "paths", "--steps", "0"]) == 2
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for command in (["example", "paths", "--folder"], ["bench", "--quick", "--output"]):
        for folder in (file, file / "below"):
            assert main([*command, str(folder)]) == 2
            message = " ".join(capsys.readouterr().err.split())
            assert f"{command[-1]} takes a folder, but" in message
            assert "is a file: give another path" in message

    def forbidden(**options: object) -> None:
        raise PermissionError(13, "Permission denied", options["dir"])

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)  # rights do not stop the superuser
    assert main(["example", "paths", "--folder", str(tmp_path)]) == 2
    assert "(Permission denied)" in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == "kept"
