"""The benchmarks run and write what they say. How fast anything is, no test says."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import on_gpu
from sparsemarg.experiments.bench import command
from sparsemarg.experiments.bench.case import Case, Outcome
from sparsemarg.experiments.bench.timing import Times, interleave
from sparsemarg.experiments.bench.waits import host_waits
from sparsemarg.experiments.cli import main
from torch import Tensor


def test_quick_benchmarks_write_a_page_and_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites = ["sparsemax", "top-k", "score scale", "structured", "decoder"]
    assert main(["bench", *suites, "--quick", "--rounds", "1", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "torch softmax" in printed
    record = json.loads((tmp_path / "results.json").read_text())
    assert {case["suite"] for case in record["cases"]} == set(suites)
    assert all(seconds and min(seconds) > 0 for case in record["cases"] for seconds in case["seconds"].values())
    page = (tmp_path / "BENCHMARKS.md").read_text()
    for case in record["cases"]:
        assert case["operation"] in page
        assert len(case["yardstick"]) == len(next(iter(case["seconds"].values())))
    paces = [int(pace) for pace in re.findall(r"\| (\d+)% \|", page)]
    assert len(paces) == len(record["cases"])
    assert max(paces) == 100


def test_repeats_keep_the_attempt_at_the_best_pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the yardstick, not by what ours took."""
    attempts = iter([(5.0, 1.0), (1.0, 3.0), (2.0, 2.0), (9.0, 1.05)])

    def timed(case: Case, rounds: int) -> Outcome:
        ours, yardstick = next(attempts)
        return Outcome(case, {"ours": Times((ours,))}, {}, Times((yardstick,)))

    cases = [Case("sparsemax", name, {}, dict) for name in ("steady", "slow")]
    monkeypatch.setattr(command, "_timed", timed)
    monkeypatch.setattr(command, "_cases", lambda *_: cases)
    assert main(["bench", "sparsemax", "--rounds", "1", "--repeats", "5", "--output", str(tmp_path)]) == 0
    found = {
        case["operation"]: case["seconds"]["ours"] for case in json.loads((tmp_path / "results.json").read_text())["cases"]
    }
    assert found == {"steady": [5.0], "slow": [9.0]}
    assert next(attempts, None) is None


@pytest.mark.slow
def test_memory_and_scaling(tmp_path: Path) -> None:
    assert main(["bench", "memory", "scaling", "--quick", "--rounds", "1", "--output", str(tmp_path)]) == 0
    memory = json.loads((tmp_path / "results.json").read_text())["peak_megabytes"]
    # Not how little: that something was measured. The plain step holds 1.5 GB of logits by itself.
    assert memory["ours"] > 0
    assert memory["plain torch"] > 1400
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_candidates_run_in_turn() -> None:
    order: list[str] = []
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 20)
    rounds = ["".join(order[place : place + 2]) for place in range(0, len(order), 2)]
    assert len(rounds) == 21
    assert set(rounds) == {"ab", "ba"}
    assert list(times) == ["a", "b"]
    assert {name: len(taken.seconds) for name, taken in times.items()} == {"a": 20, "b": 20}


def test_medians_and_quartiles() -> None:
    times = Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert times.median == 3.0
    assert times.quartiles == (2.0, 4.0)
    assert Times((7.0,)).quartiles == (7.0, 7.0)


def test_explain_says_which_path_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["bench", "--explain"]) == 0
    assert "sparsemax: compiled kernel (Numba)" in capsys.readouterr().out
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert main(["bench", "--explain"]) == 0
    assert "sparsemax: tensor operations" in capsys.readouterr().out


def test_mistakes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "everything"]) == 2
    assert "there is no suite 'everything'; the suites are 'sparsemax', 'top-k'" in capsys.readouterr().err
    assert main(["bench", "--rounds", "0"]) == 2
    assert "must be at least 1 and --repeats at least 0, not 0, 1 and 0" in capsys.readouterr().err


@on_gpu
def test_waits_are_reads_copies_and_sizes_that_depend_on_values() -> None:
    values = torch.arange(4.0, device="cuda", requires_grad=True)

    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: Tensor) -> Tensor:
            return given.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * gradients[0].sum().item()

    assert host_waits(lambda: values + 1) == 0
    assert host_waits(lambda: bool((values > 1).all())) == 1
    assert host_waits(lambda: [float(value) for value in values]) == 4
    assert host_waits(lambda: values.tolist()) == 1
    assert host_waits(lambda: torch.ones(3).to("cuda")) == 1
    assert host_waits(lambda: values[values > 1]) >= 1
    assert host_waits(lambda: Reads.apply(values).sum().backward()) == 1  # pyright: ignore
    assert torch.cuda.get_sync_debug_mode() == 0


def test_waits_are_what_torch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | int] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        warnings.warn("something else", stacklevel=1)
        if modes == ["warn"]:
            for _ in range(3):
                warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        assert host_waits(step) == 3
    assert modes == ["warn", 0]
