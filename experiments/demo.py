"""`sparsemarg demo`: the ordinary training and test of a named configuration on 8x8 digits, a table and two pictures."""

import csv
import inspect
import shutil
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import training
from .bit_vector_vae import BitVectorVAETask
from .command_parser import check_left_out
from .data import ImageData

CONFIG = "bit_vector_vae/digits/sparsemap_normalized"
EPOCHS = "60"  # of the configuration's 100: two minutes at most on two cores, and within 1 nat of its bound
FOLDER = Path("demo")


def run(arguments: list[str]) -> None:
    """Train, test, and write `reconstructions.png` and `support.png` into ./demo; further arguments go to `fit` and `test`.

    The run itself lies in ./demo/run, where it replaces an earlier demo's once it is trained.

    Raises:
        UsageError: --folder or --ckpt_path is given.
    """
    if {"-h", "--help"} & set(arguments):
        print(f"usage: sparsemarg demo [FIT_OPTION ...]\n\n{inspect.getdoc(run)}")
        return
    check_left_out("demo", ("--folder", "--ckpt_path"), arguments)
    # The tensors are tiny: a second thread gains nothing, and waits for its core where another process holds it
    # (measured on two cores, one of them busy: 80 ms a step with one thread, 2 s with two).
    torch.set_num_threads(1)
    run_folder, unfinished = FOLDER / "run", FOLDER / "run-unfinished"
    common = ["--config", CONFIG, "--trainer.enable_model_summary", "false"]
    shutil.rmtree(unfinished, ignore_errors=True)
    training.run(["fit", *common, "--folder", str(unfinished), "--trainer.max_epochs", EPOCHS, *arguments[1:]])
    shutil.rmtree(run_folder, ignore_errors=True)
    unfinished.rename(run_folder)
    tested = training.run(["test", *common, "--folder", str(run_folder), "--verbose", "false", *arguments[1:]])
    task, data = tested.model, tested.datamodule
    if not isinstance(task, BitVectorVAETask) or not isinstance(data, ImageData):
        raise TypeError(f"{CONFIG} should be a BitVectorVAETask on ImageData")
    draw_reconstructions(task, data, FOLDER / "reconstructions.png")
    draw_support(run_folder / "metrics.csv", FOLDER / "support.png")
    print(_table(run_folder / "test.csv", len(data.splits.test)))
    print(f"Pictures: {FOLDER / 'reconstructions.png'} and {FOLDER / 'support.png'}. All of the run: {run_folder}.")


def draw_reconstructions(task: BitVectorVAETask, data: ImageData, path: Path, count: int = 12) -> None:
    """Draw test images above what the decoder makes of their most probable codes."""
    images = data.splits.test[:count]
    task.eval()
    with torch.no_grad():
        codes = task.vae(images).estimate.mode
    rows = {
        "original": images,
        "mean of p(x | z)\nat the most\nprobable code": task.vae.reconstruct(codes),
        "code z, 32 bits": codes,
    }
    figure = Figure(figsize=(0.9 * count + 1.6, 3.3), layout="constrained")
    figure.suptitle(f"Bit-vector VAE with SparseMAP: {count} test digits and their reconstructions")
    axes = figure.subplots(len(rows), count, gridspec_kw={"height_ratios": [2, 2, 1]})
    for (label, pictures), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for picture, axis in zip(pictures, line, strict=True):
            height = 8 if len(picture) == data.pixels else 4
            top = data.levels - 1 if len(picture) == data.pixels else 1
            axis.imshow(picture.reshape(height, -1).numpy(), cmap="gray_r", vmin=0, vmax=top)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)


def draw_support(metrics: Path, path: Path) -> None:
    """Draw support size (mean and quartiles) and the bound over training."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["train/support_mean"]]
    held_out = [row for row in rows if row.get("val/negative_elbo")]
    steps = [int(row["step"]) + 1 for row in train]

    def series(name: str, of: list[dict[str, str]] = train) -> list[float]:
        return [float(row[name]) for row in of]

    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle("Bit-vector VAE with SparseMAP on 8x8 digits, D = 32 bits (2$^{32}$ codes)")
    upper, lower = figure.subplots(2, sharex=True)
    upper.fill_between(
        steps, series("train/support_q25"), series("train/support_q75"), alpha=0.3, label="quartiles of the batch"
    )
    upper.plot(steps, series("train/support_mean"), label="mean of the batch")
    upper.set_title("codes with mass = decoder calls for an exact gradient", fontsize="medium")
    _finish(upper, "support size (codes per image)")
    upper.set_ylim(bottom=0)
    lower.plot(steps, series("train/bits_per_dim"), label="training batch")
    lower.plot([int(row["step"]) + 1 for row in held_out], series("val/bits_per_dim", held_out), label="validation")
    _finish(lower, "negative ELBO (bits per pixel)")
    lower.set_xlabel("training step (one batch of up to 64 images)")
    figure.savefig(path, dpi=150)


def _finish(axis: Axes, label: str) -> None:
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend()


def _table(test_metrics: Path, images: int) -> str:
    with test_metrics.open(newline="") as file:
        metrics = {name.removeprefix("test/"): float(value) for name, value in next(csv.DictReader(file)).items()}
    quartiles = " / ".join(f"{metrics[f'support_q{q}']:.0f}" for q in (25, 50, 75))
    lines = {
        "negative ELBO": f"{metrics['negative_elbo']:.2f} nats = {metrics['bits_per_dim']:.3f} bits/dim",
        "decoder calls per image": f"mean {metrics['decoder_calls']:.2f}, quartiles {quartiles} (of 2^32 codes)",
        "distinct codes used": f"{metrics['distinct_codes']:.0f} for {images} images",
    }
    width = max(map(len, lines))
    title = f"Test set, {images} images"
    return "\n".join(["", title, "-" * len(title), *(f"{name:<{width}}  {text}" for name, text in lines.items()), ""])
