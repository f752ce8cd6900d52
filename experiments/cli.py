"""The `sparsemarg` command line.

A command is a line in COMMANDS: its help and the function that runs it, given as module and name. The module
is imported when the command is chosen, so that `sparsemarg --help` answers at once and no command needs the
packages of another.
"""

import os
import select
import signal
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata

from .errors import UsageError


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        help: one line.
        module: relative to this package.
        function: takes the arguments, the command's name first; what it returns is ignored.
    """

    help: str
    module: str
    function: str

    def load(self) -> Callable[[list[str]], object]:
        return getattr(import_module(self.module, __package__), self.function)


COMMANDS = {
    "fit": Command("train: --config NAME_OR_FILE, any setting as --a.b VALUE, --ckpt_path last resumes", ".training", "fit"),
    "test": Command("evaluate a trained run on its test split", ".training", "run"),
    "tune": Command("successive halving: --config NAME --grid OPTION=V1,V2 --steps N, any option of fit", ".tune", "run"),
    "report": Command("figures, tables and RESULTS.md from the folders of runs", ".report.command", "run"),
    "configs": Command("list the named configurations", ".cli", "list_configs"),
    "extract-features": Command("features of a folder of images, for the signal game", ".extract_features", "run"),
    "verify": Command("cross-check a polytope: MODULE:CLASS --name value, or --all", "..verification.command", "run"),
    "bench": Command("time everything, in turn with other libraries; --quick takes under a minute", ".bench.command", "run"),
    "example": Command("run a small example with a structured polytope: NAME", ".examples.command", "run"),
    "demo": Command("train on 8x8 digits for some minutes and draw pictures in ./demo", ".demo", "run"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 after a message on how to correct the command.

    When whoever reads what it prints has gone, such as `head`, it ends with the code of a broken pipe.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:  # there is none if it was closed from the start
                sys.stdout.flush()
    except BrokenPipeError:
        if sys.stdout is None or not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        if arguments[:1] not in ([], ["-h"], ["--help"], ["configs"]):
            print("sparsemarg: stopped, because nobody reads what it prints any more", file=sys.stderr)
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments == ["--version"]:
        print(f"sparsemarg {metadata.version('sparsemarg')}")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise UsageError(f"expected a command ({', '.join(COMMANDS)}), but got {arguments[0]!r}.")
        COMMANDS[arguments[0]].load()(arguments)
    except UsageError as error:
        message = " ".join(str(error).split())
        print(textwrap.fill(f"sparsemarg: {message}", 100, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
        return 2
    return 0


def list_configs(arguments: list[str]) -> None:
    """Print the names that `--config` takes; there are no arguments."""
    from .command_parser import CommandParser
    from .named_configs import config_names

    CommandParser("configs", "List the named configurations, which `--config` takes.").parse_args(arguments[1:])
    print("\n".join(config_names()))


def _reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _usage() -> str:
    width = 2 + max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: sparsemarg COMMAND [--help] ...", "       sparsemarg --version", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
