"""Compiled twins of tensor operations. All but `dispatch` need Numba, for the CPU, or Triton, for GPUs, to be imported."""

from .dispatch import compiled as compiled
from .dispatch import in_threads as in_threads
from .dispatch import in_triton as in_triton
from .dispatch import part_of as part_of
from .dispatch import readable as readable
