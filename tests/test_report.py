"""The report. Truth is arithmetic on files written by hand, and what pictures and tables must hold."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from sparsemarg.experiments import cli, training
from sparsemarg.experiments.errors import UsageError
from sparsemarg.experiments.named_configs import config_names
from sparsemarg.experiments.report import runs
from sparsemarg.experiments.report.figures import FIGURES, _close
from sparsemarg.experiments.report.groups import Mean, constants, group, style
from sparsemarg.experiments.report.runs import KEPT_ROWS, find_runs, keep
from sparsemarg.experiments.report.tables import results

STEPS = 40  # four epochs of ten


def write_run(folder: Path, config: str, seed: int, test: dict[str, float] | None = None, *, options: str = "") -> Path:
    """A run's folder as training leaves it: calls fall from 20 to 1, the bound falls with the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = f"sparsemarg fit --config {config} --data.init_args.root /somewhere/data --seed_everything {seed} {options}"
    start = {"command": command, "started": "2026-01-02T03:04:05+00:00", "step": 20, "seconds": 60.0, "device": "cpu"}
    start |= {"threads": 1, "torch": "2.15.0+cpu", "git": "0123456789abcdef", "resumed_from": None}
    (folder / "versions.yaml").write_text(
        yaml.safe_dump([start, start | {"step": STEPS, "command": command + " --ckpt_path last"}])
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        names = [
            "step",
            "epoch",
            *(f"train/{name}" for name in ("decoder_calls", *(f"support_q{q}" for q in (10, 25, 50, 75, 90)))),
        ]
        held_out = ["val/support_mean", "val/bits_per_dim", "val/negative_elbo", "val/accuracy"]
        held_out += ["val/success_expected", "val/success_argmax", "val/distinct_codes"]
        writer = csv.DictWriter(file, [*names, *held_out])
        writer.writeheader()
        for step in range(STEPS):
            calls = max(1, 20 - step)
            writer.writerow(dict(zip(names, [step, step // 10, *[calls] * 6], strict=True)))
            if step % 10 == 9:
                values = dict.fromkeys(held_out, 10 - step / 10 + seed)
                writer.writerow({"step": step, "epoch": step // 10, **values})
    if test:
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *(f"test/{name}" for name in test)])
            writer.writeheader()
            writer.writerow({"step": STEPS, **{f"test/{name}": value for name, value in test.items()}})
    return folder


def bits(nll: float) -> dict[str, float]:
    metrics = {"rate": 20.0, "distortion": 1900.0 + nll, "decoder_calls": 2.0, "bits_per_dim": nll + 0.1}
    metrics |= {"bits_per_dim_importance": nll, "bits_per_dim_appendix_d": nll + 0.01, "distinct_codes": 9.0}
    return metrics | {"bits_per_dim_importance_error": 2e-4, "likelihood_images": 512.0, "effective_samples_mean": 300.0}


def test_runs_of_different_seeds_are_one_row(tmp_path: Path) -> None:
    for seed, nll in ((1, 3.0), (2, 4.0), (3, 8.0)):
        write_run(tmp_path / str(seed), "bit_vector_vae/sparsemap", seed, bits(nll))
    write_run(tmp_path / "other", "bit_vector_vae/sfe_plus", 1, bits(3.5))
    first, second = group(find_runs([tmp_path]))
    assert [run.seed for run in first.runs] == [1, 2, 3]
    found = first.test("bits_per_dim_importance")
    assert found == Mean(5.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3)))
    assert second.test("bits_per_dim_importance") == Mean(3.5, None)
    table = results([first, second]).splitlines()
    assert "| SparseMAP | 3 | 5.000 ± 1.528 | 300 ± 0 | 5.010 ± 1.528 | 3.720 |" in table[2]
    assert "| SFE+ | one run | 3.500 | 300 | 3.510 | 3.610 |" in table[3]
    assert any("of the first 512 test images; Monte Carlo error at most 0.0002 bits/dim" in line for line in table)


def test_what_a_run_says_of_itself(tmp_path: Path) -> None:
    write_run(tmp_path, "bit_vector_vae/sparsemap", 5, options="--trainer.max_epochs 4 --data.init_args.batch_size=32")
    (run,) = find_runs([tmp_path])
    assert (run.config, run.folder, run.method, run.seed) == ("bit_vector_vae/sparsemap", "bit_vector_vae", "sparsemap", 5)
    # Where data lie is nobody's business.
    assert run.options == (("data.init_args.batch_size", "32"), ("trainer.max_epochs", "4"))
    assert (run.steps, run.epochs, run.seconds) == (STEPS, 4, 120.0)
    assert run.test == {}


def test_steps_of_an_epoch_that_is_not_over(tmp_path: Path) -> None:
    """Of validations within epochs, the last of an epoch is at its end, but for an epoch that goes on."""
    folder = write_run(tmp_path, "bit_vector_vae/sparsemap", 0)
    path = folder / "metrics.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("39,")) + "\n")
    lines = path.read_text().splitlines()
    within = [line.replace("29,2,", "34,3,", 1) for line in lines if line.startswith("29,2,")]
    path.write_text("\n".join([*lines, *within]) + "\n")
    (one,) = group(find_runs([tmp_path]))
    assert one.epoch(35) == 3.5


def test_decoder_calls_are_integrated_over_training(tmp_path: Path) -> None:
    write_run(tmp_path, "bit_vector_vae/sparsemap", 0)
    (one,) = group(find_runs([tmp_path]))
    epochs, calls = one.calls()
    assert epochs == [1, 2, 3, 4]
    each = [max(1, 20 - step) / 10 for step in range(STEPS)]
    assert calls == pytest.approx([sum(each[:end]) for end in (10, 20, 30, 40)])


def test_options_tell_groups_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "bit_vector_vae/sparsemap", 1)
    write_run(tmp_path / "b", "bit_vector_vae/sparsemap", 1, options="--model.init_args.learning_rate 0.1")
    labels = [one.label for one in group(find_runs([tmp_path]))]
    assert labels == ["SparseMAP (no further options)", "SparseMAP (learning_rate 0.1)"]


def test_options_that_all_groups_have_do_not_tell_them_apart(tmp_path: Path) -> None:
    for folder, epochs in (("a", 4), ("b", 8)):
        options = f"--model.init_args.learning_rate 0.1 --trainer.max_epochs {epochs}"
        write_run(tmp_path / folder, "bit_vector_vae/sparsemap", 1, options=options)
    groups = group(find_runs([tmp_path]))
    assert [one.label for one in groups] == ["SparseMAP (max_epochs 4)", "SparseMAP (max_epochs 8)"]
    assert [one.line for one in groups] == ["-", "--"]


def test_the_same_run_cannot_count_twice(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "bit_vector_vae/sparsemap", 1)
    write_run(tmp_path / "b", "bit_vector_vae/sparsemap", 1)
    with pytest.raises(UsageError, match="would count twice: give one of them"):
        group(find_runs([tmp_path]))


def test_other_data_are_said_to_be_other(tmp_path: Path) -> None:
    success = {"success_expected": 0.88, "success_argmax": 0.9, "decoder_calls": 2.5, "distinct_codes": 40.0}
    write_run(tmp_path, "signal_game/caltech101/sparsemax", 1, success)
    table = results(group(find_runs([tmp_path])))
    assert "| Sparsemax | one run | 88.00 | 93.35 ± 0.50 | 90.00 | 2.50 | 3.13 ± 0.48 | 40 |" in table
    assert "other images than the published" in table


def test_kept_files_give_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "a", "bit_vector_vae/sparsemap", 1, bits(3.0))
    write_run(tmp_path / "runs" / "b", "bit_vector_vae/d128/sparsemap", 1, bits(3.2))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "runs", "--output", "one", "--keep", "kept"]) == 0
    assert cli.main(["report", "kept", "--output", "two"]) == 0
    one, two = ((tmp_path / name / "RESULTS.md").read_text() for name in ("one", "two"))
    assert one.replace("--output one", "--output two") == two
    assert "/somewhere" not in "".join(path.read_text() for path in (tmp_path / "kept").rglob("*") if path.is_file())


def test_kept_metrics_are_few_and_hold_every_validation(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "bit_vector_vae/sparsemap", 1)
    path = tmp_path / "run" / "metrics.csv"
    lines = path.read_text().splitlines()
    long = [line.replace("39,", f"{step},", 1) for step in range(STEPS, 5000) for line in [lines[-2]]]
    path.write_text("\n".join([*lines, *long]) + "\n")
    (run,) = find_runs([tmp_path / "run"])
    keep(run, tmp_path / "kept")
    (kept,) = find_runs([tmp_path / "kept"])
    assert len(kept.metrics) <= KEPT_ROWS
    assert kept.rows("val/bits_per_dim") == run.rows("val/bits_per_dim")
    assert kept.metrics[0] == run.metrics[0]
    assert kept.metrics[-1] == run.metrics[-1]
    assert set(map(str, kept.metrics)) <= set(map(str, run.metrics))


def test_what_was_kept_of_an_earlier_test_goes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "bit_vector_vae/sparsemap", 1, bits(3.0))
    for tested in (True, False):
        if not tested:
            (tmp_path / "run/test.csv").unlink()
        (run,) = find_runs([tmp_path / "run"])
        keep(run, tmp_path / "kept")
        (kept,) = find_runs([tmp_path / "kept"])
        assert bool(kept.test) == tested


def test_runs_at_different_stages(tmp_path: Path) -> None:
    """Tested; trained further since; not tested; killed before it validated; and stopped before its first row."""
    for seed in (1, 2, 3, 4, 5):
        write_run(tmp_path / str(seed), "bit_vector_vae/sparsemap", seed, bits(3.0) if seed < 3 else None)
    early = (tmp_path / "2/test.csv").read_text().replace(f"\n{STEPS},", "\n10,")
    (tmp_path / "2/test.csv").write_text(early)
    rows = (tmp_path / "4/metrics.csv").read_text().splitlines()
    (tmp_path / "4/metrics.csv").write_text("\n".join(rows[:3]) + "\n")
    (tmp_path / "5/metrics.csv").write_text(rows[0] + "\n")
    (one,) = group(find_runs([tmp_path]))
    assert [run.seed for run in one.runs] == [1, 2, 3, 4]
    table = results([one])
    assert "| SparseMAP | 4, 2 tested | 3.000 ± 0.000 |" in table
    assert (
        "fewer steps than were trained, at the best checkpoint or before training went on: SparseMAP, seed 2: 10 of 40."
        in table
    )
    epochs, means = one.curve("val/bits_per_dim")
    assert epochs == [1, 2, 3, 4]
    assert [mean.value for mean in means] == pytest.approx([10 - step / 10 + 2 for step in (9, 19, 29, 39)])
    with pytest.raises(UsageError, match="has trained yet"):
        find_runs([tmp_path / "5"])


def test_nan_and_runs_without_a_row_of_training_are_drawn(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "runs" / str(seed), "bit_vector_vae/sparsemap", seed) for seed in (1, 2)]
    other = write_run(tmp_path / "runs/3", "bit_vector_vae/topk", 1)
    game = write_run(tmp_path / "runs/4", "signal_game/sparsemax", 1)
    for folder in folders:
        lines = (folder / "metrics.csv").read_text().splitlines()
        (folder / "metrics.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(f"{10 - 3.9 + 1}", "nan")]) + "\n")
    lines = (other / "metrics.csv").read_text().splitlines()
    (other / "metrics.csv").write_text("\n".join([*lines[:-1], ",".join([*lines[-1].split(",")[:8], *["nan"] * 7])]) + "\n")
    lines = (game / "metrics.csv").read_text().splitlines()
    (game / "metrics.csv").write_text("\n".join([lines[0], lines[-1]]) + "\n")  # a validation alone
    assert cli.main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/figures/figure4_message_support.png").exists()


def test_a_run_that_goes_on_from_its_own_configuration_keeps_its_name(tmp_path: Path) -> None:
    write_run(tmp_path, "bit_vector_vae/sparsemap", 1, options="--data.init_args.batch_size 32 --trainer.max_epochs 4")
    starts = yaml.safe_load((tmp_path / "versions.yaml").read_text())
    starts[-1]["command"] = f"sparsemarg fit --config {tmp_path}/config.yaml --trainer.max_epochs 9 --ckpt_path last"
    (tmp_path / "versions.yaml").write_text(yaml.safe_dump(starts))
    (run,) = find_runs([tmp_path])
    assert run.config == "bit_vector_vae/sparsemap"
    assert run.options == (("data.init_args.batch_size", "32"), ("trainer.max_epochs", "9"))


def test_all_figures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, config in enumerate(["bit_vector_vae/sparsemap", "bit_vector_vae/d128/topk", "semi_supervised_vae/dense"]):
        for seed in (1, 2):
            write_run(tmp_path / "runs" / f"{number}{seed}", config, seed, bits(3.0 + seed) | {"accuracy": 0.9 + seed / 100})
    success = {"success_expected": 0.88, "success_argmax": 0.9, "decoder_calls": 2.5, "distinct_codes": 40.0}
    write_run(tmp_path / "runs" / "game", "signal_game/sparsemax", 1, success)
    assert cli.main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    for name in FIGURES:
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / "out" / "figures" / f"{name}.pdf").stat().st_size > 5_000
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    for name in FIGURES:
        assert f"](figures/{name}.png)" in text
    assert "`sparsemarg fit --config semi_supervised_vae/dense` | 1, 2 | 4 of 200 | 40 | 2 min | cpu, 1 thread(s)" in text
    assert "4 rows of 7 runs" in capsys.readouterr().out


def test_every_published_method_and_configuration_exists() -> None:
    data = constants()
    assert set(data["published"]) <= set(config_names())
    assert {config.rpartition("/")[0] for config in config_names()} == set(data["titles"])
    assert {config.rpartition("/")[2] for config in config_names()} <= set(data["methods"])
    assert style("unheard of")["label"] == "unheard of"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no run in"),
        ({"versions.yaml": "- a: ["}, r"cannot be read \(.*take it out"),
        ({"versions.yaml": "[]", "config.yaml": "seed_everything: 1"}, r"cannot be read \(.*take it out"),
        ({"run.yaml": "config: a/b"}, r"cannot be read \(KeyError\('options'\)\)"),
    ],
)
def test_bad_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, str] | None, message: str
) -> None:
    for name, text in (content or {}).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        find_runs([tmp_path])
    assert cli.main(["report", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    write_run(tmp_path / "runs", "bit_vector_vae/sparsemap", 1)
    (tmp_path / "file").write_text("kept")
    for folder in ("file", "file/below"):
        assert cli.main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / folder)]) == 2
        assert "--output takes a folder, but" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="expected the folder of a run"):
        find_runs([tmp_path / "none"])


@pytest.mark.slow
def test_from_training_to_report(tmp_path: Path) -> None:
    """The real files of a real run, which `tune` or a script may have started."""
    run = tmp_path / "run"
    options = [
        "--config",
        "bit_vector_vae/digits/sparsemap_sorted",
        "--folder",
        str(run),
        "--trainer.enable_progress_bar",
        "false",
    ]
    training.run(["fit", *options, "--trainer.max_epochs", "2"])
    training.run(["test", *options, "--model.init_args.likelihood_samples", "16"])
    (found,) = find_runs([run])
    assert found.config == "bit_vector_vae/digits/sparsemap_sorted"
    assert found.options == (("trainer.max_epochs", "2"),)
    assert found.epochs == 2
    assert "bits_per_dim_importance" in found.test
    assert cli.main(["report", str(run), "--output", str(tmp_path / "out")]) == 0


def test_commands_name_packaged_configurations_and_other_files() -> None:
    command = "sparsemarg fit --config signal_game/digits/topk --config tuning/best.yaml --trainer.max_steps 10 --folder here"
    names, options = runs._parsed(command)
    assert names == ["signal_game/digits/topk", "tuning/best.yaml"]
    assert options == {"config": "tuning/best.yaml", "trainer.max_steps": "10"}
    assert runs._parsed("sparsemarg fit --config /a/configs/signal_game/nvil.yaml")[0] == ["signal_game/nvil"]


@pytest.mark.parametrize(
    ("values", "top", "limits"),
    [
        ([0.0, 80, 94, 92, 91, 93], True, (87.85, 94.3)),  # the second half begins with 92; a value of the first is better
        ([300.0, 103, 101, 102], False, (100.9, 103.05)),
        ([math.inf, 5.0, math.inf, 4.0], False, (3.9, 5.05)),
        ([7.0], False, (6.9, 7.05)),
        ([math.inf], True, (0.0, 1.0)),
    ],
)
def test_axes_leave_out_how_bad_a_curve_began(values: list[float], top: bool, limits: tuple[float, float]) -> None:
    axis = Figure().subplots()
    group: Any = SimpleNamespace(curve=lambda column: (range(len(values)), [SimpleNamespace(value=v) for v in values]))
    _close(axis, [group], "val/accuracy", top=top)
    assert axis.get_ylim() == pytest.approx(limits)
