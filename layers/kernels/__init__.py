"""Compiled twins of tensor operations, for the CPU. All but `dispatch` need Numba to be imported."""

from .dispatch import compiled as compiled
from .dispatch import in_threads as in_threads
