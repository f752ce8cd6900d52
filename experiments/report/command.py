"""`sparsemarg report`: RESULTS.md and figures from the folders of runs."""

import argparse
import os
from pathlib import Path

from ..command_parser import CommandParser
from ..folders import check_writable_folder
from .figures import draw
from .groups import Group, group, title
from .runs import find_runs, keep
from .tables import origins, results

DESCRIPTION = """Write RESULTS.md, the figures of Correia et al. 2020 (1 to 5; Table 1 is a table of RESULTS.md) and the game's
learning curves from the folders of runs, with the published numbers beside. Runs of the same configuration and options with
different seeds are one row: their mean and its standard error. Copy what is needed of the runs into a small folder with --keep,
and report from it later."""

INTRODUCTION = """# Results

Written by `{command}` from runs on the data that the tables name. "Published" are the numbers of Correia, Niculae,
Aziz and Martins (NeurIPS 2020) and, where the paper draws them only, of the first author's thesis. Epochs are those
begun of those in the configuration, which has the published number (those on digits are ours). To train a run, give
its command, with `--seed_everything` for another seed; to train it further, the same with `--ckpt_path last`; to
evaluate it, `sparsemarg test` with the same `--config` and `--folder`, which takes the checkpoint of the best validation, if
there was one."""

TASKS = {
    "semi_supervised_vae": """Classes are the argmax of the classifier's scores. The negative ELBO has all its terms for every
method, with the classes' entropy and log K, on a fixed binarisation of the test images. Decoder calls count classes whose
probability is not 0 in the dtype of the scores: a confident softmax underflows.""",
    "signal_game": """"Own messages": the receiver's best guess upon a symbol of the sender's own distribution, an exact
expectation. "Argmax message": the best guess upon the most probable symbol. Both are the same measure for every method;
the published one depends on the method: a symbol drawn, for the 0/1 loss a guess drawn, too, and relaxed symbols for Gumbel.
The published ± cannot all be standard errors: 16.19 of ten success rates would be a standard deviation of 51 points, and none
above 45 has a mean of 23.5.
Chance is 6.25 % for 16 images.""",
    "bit_vector_vae": """The estimate of log p(x) in the third column is the same for every method: importance sampling from a
defensive mixture around the posterior's codes (`sparsemarg.models.likelihood.mixture_importance`). The published numbers
are of the fifth column's kind, which depends on the method: for sparse posteriors the sum over their support and samples
of the rest from the prior, for others importance sampling from the posterior.""",
}


def run(arguments: list[str]) -> None:
    """Draw the figures and write RESULTS.md."""
    known = _parse(arguments[1:])
    groups = group(find_runs(known.runs))
    check_writable_folder("--output", known.output)
    check_writable_folder("--figures", known.output / known.figures)
    if known.keep:
        for one in groups:
            for member in one.runs:
                print(f"kept {keep(member, known.keep)}")
    pictures = draw(groups, known.output / known.figures)
    command = f"sparsemarg report {' '.join(map(str, [known.keep] if known.keep else known.runs))} --output {known.output}"
    parts = [INTRODUCTION.format(command=command)]
    for task in dict.fromkeys(one.config.partition("/")[0] for one in groups):
        parts += _section([one for one in groups if one.config.startswith(f"{task}/")], task)
        parts += [f"![{path.stem}]({Path(os.path.relpath(path, known.output)).as_posix()})" for path in pictures.get(task, [])]
    target = known.output / "RESULTS.md"
    target.write_text("\n\n".join(parts) + "\n")
    count = sum(len(one.runs) for one in groups)
    print(f"{target}: {len(groups)} rows of {count} runs; figures in {known.output / known.figures}")


def _section(groups: list[Group], task: str) -> list[str]:
    parts = []
    for folder in dict.fromkeys(one.folder for one in groups):
        members = [one for one in groups if one.folder == folder]
        parts += [f"## {title(folder)}", TASKS.get(task, ""), results(members)]
        parts += [f"<details><summary>Where these come from</summary>\n\n{origins(members)}\n\n</details>"]
    return parts


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = CommandParser("report", DESCRIPTION)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or folders that hold some, at any depth")
    parser.add_argument("--output", type=Path, default=Path("report"), help="where RESULTS.md goes; by default %(default)s")
    parser.add_argument("--figures", default="figures", help="folder of the figures in it; by default %(default)s")
    parser.add_argument("--keep", type=Path, help="copy what a report needs of the runs into this folder: some 100 kB each")
    return parser.parse_args(arguments)
