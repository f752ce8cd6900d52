"""Where a command may write what it makes: asked before the work, not after it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While this lasts no other process may say the same of the folder, where the file system has locks.

    It ends with the process, however that ends.

    Raises:
        UsageError: another process does.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process trains in {folder}: wait for it, or give another --folder.") from error
        except OSError:
            pass  # no locks there
        yield
    finally:
        os.close(held)
