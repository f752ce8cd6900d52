"""jsonargparse's report of a wrong configuration, in a sentence."""

import difflib
import inspect
import re
from importlib import import_module

# Lines that say how the parser works rather than what is wrong.
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but"
)


def explain(report: str) -> str:
    """Name the key, what is wrong with it, and what is accepted there.

    Args:
        report: the message of a `jsonargparse.ArgumentError`: a tree by indentation.
    """
    keys: list[str] = []
    classes: list[str] = []
    causes: list[str] = []
    for line in (line.strip().removeprefix("- ") for line in report.splitlines()):
        if match := re.match(r'Parser key "(.+)":$', line):
            keys.append(match[1])
        elif match := re.match(r"Problem with given class_path '(.+)':$", line):
            classes.append(match[1])
        elif line and not _NOISE.match(line):
            causes.append(_with_options(line, classes[-1] if classes else None))
    where = f"{'.init_args.'.join(keys)}: " if keys else ""
    return where + ("; ".join(causes) or " ".join(report.split()))


def _with_options(cause: str, class_path: str | None) -> str:
    unknown = re.match(r"Option '(.+)' is not accepted", cause)
    if not unknown or class_path is None:
        return cause
    module, _, name = class_path.rpartition(".")
    try:
        options = [p for p in inspect.signature(getattr(import_module(module), name)).parameters if p != "kwargs"]
    except (ImportError, AttributeError, ValueError):
        return cause
    close = difflib.get_close_matches(unknown[1], options, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{name} has no option {unknown[1]!r}.{hint} Its options are {', '.join(options)}."
