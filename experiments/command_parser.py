"""The argument parser of commands that are not Lightning's."""

import argparse
from collections.abc import Iterable
from typing import NoReturn

from .errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of `sparsemarg NAME`; a mistake in them is a UsageError.

    Args:
        name: of the command.
        description: for its help.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(f"sparsemarg {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` lists what can be given.")


def check_left_out(name: str, options: Iterable[str], arguments: list[str]) -> None:
    """Raises UsageError if the arguments hold one of the options of `fit` that the command of this name sets itself."""
    for option in options:
        if any(argument.partition("=")[0] == option for argument in arguments):
            raise UsageError(f"{name} sets {option} itself: leave it out.")
