"""Where a command may write what it makes: asked before the work, not after it."""

import tempfile
from pathlib import Path

from .errors import UsageError


def check_writable_folder(option: str, folder: Path) -> None:
    """Makes the folder where there is none.

    Raises:
        UsageError: it is a file, or cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{option} takes a folder, but {error.filename} is a file: give another path.") from error
    except OSError as error:
        raise UsageError(
            f"{option} takes a folder to write to, but nothing can be written to {folder} ({error.strerror})."
        ) from error
