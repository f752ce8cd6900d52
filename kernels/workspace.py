"""Memory that compiled kernels keep from one call to the next.

The system hands out fresh pages zeroed, one fault at a time, which takes longer than the arithmetic that is done on them.
"""

import math
import os
import threading

import numpy as np

from .vectors import Array

# So much is kept and no more; arrays of less than a few pages are not worth it.
MOST_BYTES = 2**28
LEAST_BYTES = 2**16

_kept: list[Array] = []
_lock = threading.Lock()
# The child of a fork gets the lock as it is, but not the thread that holds it.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def borrow(shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
    """An array that may hold anything, in the smallest memory kept that is large enough, or in fresh memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with _lock:
        fits = [place for place, memory in enumerate(_kept) if size <= len(memory) <= 4 * size]
        memory = _kept.pop(min(fits, key=lambda place: len(_kept[place]))) if fits else None
    if memory is None:
        memory = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)


def give_back(array: Array) -> None:
    """Keeps the memory of a borrowed array that is not used any more; what was kept for the longest time makes room."""
    memory = array
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    if memory.nbytes >= LEAST_BYTES:
        with _lock:
            _kept.append(memory)
            while sum(map(len, _kept)) > MOST_BYTES:
                _kept.pop(0)
