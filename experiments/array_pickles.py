"""Reads NumPy arrays from pickles that are not trusted."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UsageError

# What a pickled array or NumPy scalar names, by all of NumPy's module names so far. None of them runs code from the pickle.
_ALLOWED = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in [("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")]
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def load_arrays(path: Path) -> np.ndarray:
    """The array in a pickle of Python 2 or 3; of numbers, of strings, or an object array of strings.

    Whatever else a pickle can name is refused before it is imported, so that a file from elsewhere cannot run code.

    Raises:
        UsageError: the file is damaged, or holds anything but an array.
    """
    try:
        with path.open("rb") as file:
            array = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UsageError(
            f"{path} must be a pickled NumPy array and nothing else, but it is not, or it is damaged ({error}): get the file "
            "from where it was made, or write the features to an .npz file"
        ) from error
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path} must be a pickled NumPy array, but is a {type(array).__name__}")
    if array.dtype == object:
        others = [item for item in array.flat if not isinstance(item, str | bytes | np.str_)]
        if others:
            raise UsageError(f"{path} must be an array of strings, but holds a {type(others[0]).__name__}")
        decoded = [item.decode("latin1") if isinstance(item, bytes) else str(item) for item in array.flat]
        return np.array(decoded, dtype=str).reshape(array.shape)
    return np.char.decode(array, "latin1") if array.dtype.kind == "S" else array
