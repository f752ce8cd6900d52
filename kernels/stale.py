"""What Numba compiled is forgotten when what it was compiled from has changed.

Numba keeps compiled functions in `__pycache__` and compiles one again when the file has changed in which it stands. But what it
calls, inlines, and reads constants from stands in other files, too: after a change of those it would run as it was before.
"""

import ast
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDERS = [PACKAGE / name for name in ("kernels", "layers", "models", "oracles")]


def forget_stale(folders: Iterable[Path]) -> list[Path]:
    """Delete, and return, every index of Numba's that is older than its module, or than one of those which that imports.

    By the times of the files: a change that leaves a file with an older time than the index has is not seen. Nor are indices
    in another folder than `__pycache__`, as the environment variable NUMBA_CACHE_DIR names one.
    """
    folders = list(folders)
    indices = {index: _time(index) for folder in folders for index in folder.rglob("__pycache__/*.nbi")}
    oldest = min(indices.values(), default=0.0)
    if all(_time(file) <= oldest for folder in folders for file in folder.rglob("*.py")):
        return []
    imported = cache(_imported)
    stale = []
    for index, written in indices.items():
        module = index.parents[1] / f"{index.name.split('.')[0]}.py"
        if not module.exists() or any(_time(file) > written for file in _sources(module, imported)):
            # Another process may have been first; and where it is not allowed, Numba does not use that folder either.
            with suppress(OSError):
                index.unlink()
            stale.append(index)
    return stale


def _time(file: Path) -> float:
    """When it was last changed; long ago if another process has deleted it meanwhile."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sources(module: Path, imported: Callable[[Path], set[Path]]) -> set[Path]:
    """The file, and those that it imports, and those that they import, and so on."""
    found, left = {module}, [module]
    while left:
        new = imported(left.pop()) - found
        found |= new
        left += new
    return found


def _imported(module: Path) -> set[Path]:
    """The files of the modules that a file imports by a relative import; not those of packages."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            of = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found.update(filter(Path.is_file, [of.with_suffix(".py"), *(of / f"{name.name}.py" for name in node.names)]))
    return found
