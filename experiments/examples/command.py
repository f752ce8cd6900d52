"""`sparsemarg example`: run one of the examples, print what came out and draw its picture."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

from ..command_parser import CommandParser
from ..errors import UsageError
from ..folders import check_writable_folder


@dataclass(frozen=True)
class Example:
    """A module of this folder with a function `run(steps)`, which returns numbers by name and a picture.

    Attributes:
        module: its name.
        steps: of training, by default.
        help: one line.
    """

    module: str
    steps: int
    help: str

    def load(self) -> Callable[[int], tuple[dict[str, float], Figure]]:
        return import_module(f".{self.module}", __package__).run


EXAMPLES = {
    "windows": Example("windows", 600, "a new polytope in ten lines, verified and trained: which rows a classifier needs"),
    "alignments": Example("alignments", 60, "a classifier with latent alignments: digits matched to templates row by row"),
    "pixels": Example("pixel_selection", 800, "feature selection: the ten pixels that tell digits apart"),
    "paths": Example("grid_paths", 100, "shortest paths in a grid, whose costs are learned from paths taken"),
    "decisions": Example("decisions", 400, "predict, then decide: a wrong model of costs, trained by its decisions (SPO+)"),
}

DESCRIPTION = "Train a small model with a structured polytope and draw a picture:\n\n" + "\n".join(
    f"  {name:<12}{example.help}" for name, example in EXAMPLES.items()
)


def run(arguments: list[str]) -> None:
    """Run the example named, print its numbers and save its picture as FOLDER/NAME.png."""
    parser = CommandParser("example", DESCRIPTION)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the list a list
    parser.add_argument("name", choices=[*EXAMPLES])
    parser.add_argument("--steps", type=int, help="of training; by default a number that takes seconds to a minute")
    parser.add_argument("--folder", type=Path, default=Path("examples"), help="of the picture; by default examples")
    options = parser.parse_args(arguments[1:])
    example = EXAMPLES[options.name]
    steps = example.steps if options.steps is None else options.steps
    if steps < 1:
        raise UsageError(f"--steps must be at least 1, not {steps}.")
    check_writable_folder("--folder", options.folder)
    results, figure = example.load()(steps)
    for name, value in results.items():
        print(f"{name}: {value:.4g}")
    path = options.folder / f"{options.name}.png"
    figure.savefig(path, dpi=150)
    print(f"Picture: {path}")
