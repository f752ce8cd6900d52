"""The command `sparsemarg verify`."""

import argparse
import ast
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..oracles import Polytope
from .harness import verify
from .report import Report
from .results import SHIPPED, as_markdown

_DESCRIPTION = """\
Cross-checks a polytope against references that share no code with the library.

  sparsemarg verify my_module:MyPolytope --dim 5 --budget 2    arguments of the class follow as --name value
  sparsemarg verify --all                                      every polytope that ships, with every solver

Exit code: 0 if everything passed, 1 if a check failed or none could run, 2 if the command is wrong."""


def run(arguments: list[str]) -> None:
    """Runs `sparsemarg verify ...`; arguments[0] is "verify".

    Raises:
        SystemExit: with code 1 if a check failed or none could run, 2 if the command is wrong.
    """
    code = main(arguments[1:])
    if code:
        raise SystemExit(code)


def main(arguments: list[str]) -> int:
    """The same with the exit code returned: 0 passed, 1 failed, 2 misused."""
    parser = argparse.ArgumentParser(
        "sparsemarg verify",
        description=_DESCRIPTION,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,  # what is left are the arguments of a class
    )
    parser.add_argument("target", nargs="?", help="module:Class (or module:instance) of a polytope")
    parser.add_argument("--all", action="store_true", help="verify every polytope that ships")
    parser.add_argument("--write", metavar="FILE", help="with --all: write the table of errors to a Markdown file")
    parser.add_argument("--json", metavar="FILE", help="write the reports as JSON")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help="only checks whose name holds this")
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave out checks whose name holds this")
    parser.add_argument("--batch", type=int, default=4, help="rows of each kind of scores (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the random scores (0)")
    try:
        known, rest = parser.parse_known_args(arguments)
        polytopes = _polytopes(known, rest)
        for option in ("json", "write"):
            _check_writable(option, getattr(known, option))
        settings: dict[str, Any] = {"batch": known.batch, "seed": known.seed, "only": known.only, "skip": known.skip}
        reports = []
        for polytope in polytopes:
            reports.append(verify(polytope, **settings))
            print(_line(reports[-1]) if known.all else reports[-1], flush=True)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ValueError as error:
        print(f"sparsemarg verify: {error}", file=sys.stderr)
        return 2
    failed = [report for report in reports if not report.ok]
    if known.all:
        for report in failed:
            print(f"\n{report}")
        print(f"\n{len(reports) - len(failed)} of {len(reports)} polytopes passed")
    if known.json:
        Path(known.json).write_text("[" + ",\n".join(report.to_json() for report in reports) + "]\n")
    if known.write:
        Path(known.write).write_text(as_markdown(reports))
    return 1 if failed else 0


def _check_writable(option: str, file: str | None) -> None:
    """Before the work, not after it. What is in the file stays until there is something to write."""
    if file is None:
        return
    try:
        with Path(file).open("a"):
            pass
    except OSError as error:
        raise ValueError(f"--{option} takes a file to write to, and {file} is none: {error.strerror}") from error


def _polytopes(known: argparse.Namespace, rest: list[str]) -> list[Polytope]:
    if known.all:
        if known.target or rest:
            raise ValueError(f"--all takes no polytope and no arguments of one, but got {known.target or ' '.join(rest)}")
        return list(SHIPPED)
    if known.write:
        raise ValueError("--write needs --all")
    if not known.target:
        raise ValueError("name a polytope as module:Class, or pass --all; see sparsemarg verify --help")
    return [_made(known.target, _arguments(rest))]


def _made(target: str, arguments: dict[str, Any]) -> Polytope:
    module_name, _, name = target.partition(":")
    if not name:
        raise ValueError(f"a polytope is named module:Class, e.g. sparsemarg.oracles:Budget, not {target!r}")
    sys.path.insert(0, "")  # as `python -m` does: the user's module lies in the current directory
    try:
        module = import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from error
    finally:
        sys.path.remove("")
    found = getattr(module, name, None)
    if found is None:
        raise ValueError(f"module {module_name!r} has no {name!r}")
    if not isinstance(found, type) and not inspect.isfunction(found):
        if arguments:
            raise ValueError(f"{target} is an instance, which takes no arguments")
        return found
    try:
        return found(**arguments)
    except Exception as error:
        takes = f"{name}{inspect.signature(found)}"
        raise ValueError(
            f"cannot make {name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())}): {error}; it is {takes}"
        ) from error


def _arguments(rest: list[str]) -> dict[str, Any]:
    """["--dim", "5", "--exactly"] -> {"dim": 5, "exactly": True}: values are Python literals, or strings."""
    arguments: dict[str, Any] = {}
    place = 0
    while place < len(rest):
        word = rest[place]
        if not word.startswith("--"):
            raise ValueError(f"expected an argument of the polytope as --name value, but got {word!r}")
        name, has_value, value = word[2:].partition("=")
        if not has_value and place + 1 < len(rest) and not rest[place + 1].startswith("--"):
            place += 1
            value, has_value = rest[place], "="
        arguments[name.replace("-", "_")] = _literal(value) if has_value else True
        place += 1
    return arguments


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _line(report: Report) -> str:
    passed, failed, skipped = (len(report.with_status(status)) for status in ("passed", "failed", "skipped"))
    seconds = sum(result.seconds for result in report.results)
    verdict = "passed" if report.ok else "FAILED"
    return f"{verdict}  {passed:3d} passed {failed:3d} failed {skipped:3d} skipped  {seconds:5.1f} s  {report.polytope}"
