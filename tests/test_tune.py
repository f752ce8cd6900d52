"""Successive halving. Truth is the plain training of the grid's points."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from sparsemarg.experiments import cli, training, tune

CONFIG = "bit_vector_vae/digits/topk"
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
GRID = ["--grid", "model.init_args.learning_rate=1e-6,0.001,0.003", "--grid", "model.init_args.normalize_scores=false,true"]
SEARCH = [
    "--config",
    CONFIG,
    *GRID,
    *QUIET,
    "--data.init_args.batch_size",
    "256",
    "--steps",
    "5",
    "--rounds",
    "3",
    "--factor",
    "2",
]


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # tiny tensors


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_search_keeps_the_best_half_and_trains_no_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tune.run(["tune", *SEARCH])
    folder = Path("tuning") / CONFIG
    rows = rows_of(folder / "trials.csv")
    rounds = [[row for row in rows if row["steps"] == steps] for steps in ("5", "10", "20")]
    assert [len(each) for each in rounds] == [6, 3, 2]
    for before, after in pairwise(rounds):
        best = sorted(float(row["val/negative_elbo"]) for row in before)[: len(after)]
        point = ("model.init_args.learning_rate", "model.init_args.normalize_scores")
        kept = {tuple(row[name] for name in point) for row in after}
        assert kept == {tuple(row[name] for name in point) for row in before if float(row["val/negative_elbo"]) in best}

    # A point that went through three rounds is the run that never stopped.
    best = min(rounds[-1], key=lambda row: float(row["val/negative_elbo"]))
    chosen = yaml.safe_load((folder / "best.yaml").read_text())["model"]["init_args"]
    assert chosen["learning_rate"] == float(best["model.init_args.learning_rate"]) > 1e-5
    options = ["--config", str(folder / "best.yaml"), "--data.init_args.batch_size", "256", "--trainer.max_steps", "20"]
    training.run(["fit", "--config", CONFIG, *options, "--folder", "whole", *QUIET])
    (last,) = [row for row in rows_of(Path("whole/metrics.csv")) if row["step"] == "19" and row["val/negative_elbo"]]
    assert last["val/negative_elbo"] == best["val/negative_elbo"]

    # Started again, it trains nothing.
    monkeypatch.setattr(tune.Trial, "train", lambda *_: pytest.fail("trained again"))
    assert cli.main(["tune", *SEARCH]) == 0
    assert rows_of(folder / "trials.csv") == rows


def test_diverged_runs_come_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"1": float("nan"), "2": 3.0, "3": 2.0}
    monkeypatch.setattr(tune.Trial, "score", lambda self, metric, step: value[self.values["seed_everything"]])
    search = ["tune", "--config", CONFIG, "--grid", "seed_everything=1,2,3", "--steps", "1", "--rounds", "1"]
    for goal, best in (("min", "3"), ("max", "2")):
        assert cli.main([*search, "--goal", goal]) == 0
        assert f"with seed_everything {best}" in capsys.readouterr().out


def test_a_run_with_scores_that_are_not_finite_diverged(capsys: pytest.CaptureFixture[str]) -> None:
    search = ["tune", "--config", "bit_vector_vae/digits/gumbel", "--grid", "model.init_args.learning_rate=1e30,0.001", *QUIET]
    assert cli.main([*search, "--steps", "20", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "learning_rate=1e30 diverged: scores row" in printed
    assert "with model.init_args.learning_rate 0.001" in printed
    rows = rows_of(Path("tuning/bit_vector_vae/digits/gumbel/trials.csv"))
    assert [row["val/negative_elbo"] == "nan" for row in rows] == [True, False]


def test_scores_of_another_search_are_not_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tune.Trial, "score", lambda self, metric, step: 1.0)
    search = ["tune", "--config", CONFIG, "--grid", "model.init_args.learning_rate=0.1,0.01", "--steps", "1"]
    assert cli.main([*search, "--model.init_args.hiden", "4"]) == 2  # nothing is trained, so that it binds nobody
    assert cli.main(search) == 0
    (Path("tuning") / CONFIG / "learning_rate=0.1").mkdir()
    (Path("tuning") / CONFIG / "learning_rate=0.1/metrics.csv").touch()
    assert cli.main([*search, "--rounds", "2"]) == 0
    capsys.readouterr()
    for other in ([*search, "--model.init_args.hidden", "4"], [*search, "--config", "bit_vector_vae/digits/sfe"]):
        assert cli.main(other) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"the search in tuning/{CONFIG} passes `--config {CONFIG}` to fit, not `--config {CONFIG} {other[-2]}" in message
    (Path("old") / "learning_rate=0.1").mkdir(parents=True)
    (Path("old") / "learning_rate=0.1/metrics.csv").write_text("step\n")
    assert cli.main([*search, "--folder", "old"]) == 2
    assert "no search.yaml that says how" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("model.init_args.learning_rate=0.01,x", "learning_rate: Expected a"),
        ("model.init_args.nothing=1,2", "no option 'nothing'"),
    ],
)
def test_every_point_is_checked_before_one_is_trained(grid: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--config", CONFIG, "--grid", grid, "--steps", "5", *QUIET]) == 2
    assert message in capsys.readouterr().err
    assert not Path("tuning").exists()


def test_options_that_share_a_value() -> None:
    both = "model.init_args.entropy_coefficient+model.init_args.cost.init_args.entropy_coefficient"
    search = ["tune", "--config", "signal_game/digits/sfe_01", "--grid", f"{both}=0.5", *QUIET]
    tune.run([*search, "--steps", "2", "--rounds", "1", "--metric", "train/cost", "--trainer.log_every_n_steps", "1"])
    folder = Path("tuning/signal_game/digits/sfe_01")
    for file in (folder / "best.yaml", folder / "entropy_coefficient=0.5/config.yaml"):
        model = yaml.safe_load(file.read_text())["model"]["init_args"]
        assert model["entropy_coefficient"] == model["cost"]["init_args"]["entropy_coefficient"] == 0.5
    assert rows_of(folder / "trials.csv")[0][both] == "0.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "model.init_args.learning_rate"], "--grid expects OPTION=VALUE,VALUE"),
        (["--grid", "a+=1"], "--grid expects OPTION=VALUE,VALUE"),
        (["--grid", "a=1,2", "--grid", "a=3"], "--grid names a twice"),
        (["--grid", "a=1,2,1"], "--grid a=1,2,1 names a value twice"),
        (["--grid", "a=1", "--factor", "1"], "--factor at least 2"),
        (["--grid", "a=1", "--metric", "test/negative_elbo"], "test data choose nothing"),
        (["--grid", "a=1", "--trainer.max_steps=3"], "tune sets --trainer.max_steps itself"),
        ([], "the following arguments are required: --grid"),
        (
            ["--grid", "model.init_args.learning_rate=0.001", "--metric", "val/success", *QUIET],
            "logged no val/success after 5 steps",
        ),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--config", CONFIG, "--steps", "5", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
