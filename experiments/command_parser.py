"""The argument parser of commands that are not Lightning's."""

import argparse
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
