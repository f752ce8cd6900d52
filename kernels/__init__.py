"""What compiled twins of tensor operations are made of. All but `dispatch`, `sorting` and `stale` need Numba."""

from .dispatch import compiled as compiled
from .dispatch import in_threads as in_threads
from .dispatch import in_triton as in_triton
from .dispatch import part_of as part_of
from .dispatch import readable as readable
from .dispatch import triton_or_compiled as triton_or_compiled
from .dispatch import uncompiled as uncompiled
