"""How often the host waits for a GPU: where Python reads a value, where a size depends on values, and in copies."""

import warnings
from collections.abc import Callable

import torch


def host_waits(step: Callable[[], object]) -> int:
    """The number of waits of one call, by torch's own synchronisation check, in the forward and in the backward pass.

    Copies of memory that is not pinned count, in either direction; `torch.cuda.synchronize()` does not.
    """
    step()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in found)
