"""The configurations that ship with the package, found by names such as `bit_vector_vae/sparsemap`."""

import difflib
from pathlib import Path

import yaml

from .errors import UsageError

CONFIG_FOLDER = Path(__file__).parent / "configs"


def config_names() -> list[str]:
    """List the names of all packaged configurations."""
    return sorted(path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() for path in CONFIG_FOLDER.rglob("*.yaml"))


def config_path(name: str) -> Path:
    """Find the file of a configuration: an existing file, else a packaged name (with or without `.yaml`).

    Raises:
        UsageError: there is neither; the message lists the names that come closest.
    """
    if Path(name).is_file():
        return Path(name)
    names = config_names()
    packaged = name.removesuffix(".yaml")
    if packaged in names:
        return CONFIG_FOLDER / f"{packaged}.yaml"
    close = difflib.get_close_matches(packaged, names, n=3, cutoff=0.4) or names[:3]
    raise UsageError(
        f"--config expects a file or the name of a packaged configuration, but {name!r} is neither. "
        f"Did you mean {' or '.join(close)}? `sparsemarg configs` lists all names."
    )


def resolve_configs(arguments: list[str]) -> tuple[list[str], str | None]:
    """Replace the value of every `--config` (`-c`) by the path of its file.

    Returns:
        The new arguments, and a name for the run: the packaged name or the file's stem of the first `--config`.

    Raises:
        UsageError: there is no such file or name, or it cannot be read as YAML.
    """
    resolved: list[str] = []
    run_name: str | None = None
    expect_value = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if expect_value or (equals and flag in ("-c", "--config")):
            given = argument if expect_value else value
            path = config_path(given)
            _check_readable(path)
            run_name = run_name or _run_name(path)
            resolved.append(str(path) if expect_value else f"{flag}={path}")
            expect_value = False
        else:
            expect_value = argument in ("-c", "--config")
            resolved.append(argument)
    return resolved, run_name


def _check_readable(path: Path) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config expects a YAML file, but {path} is none: {error}") from error


def _run_name(path: Path) -> str:
    if path.is_relative_to(CONFIG_FOLDER):
        return path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix()
    return path.stem
