"""How often the host has to wait for the device because Python reads a value, such as a condition on a tensor.

Copies that wait, such as a tensor made from a list or printed, are not counted.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# What reads a tensor's value from Python, or makes a tensor whose size depends on values.
READS = ("aten::_local_scalar_dense", "aten::nonzero")


def host_waits(step: Callable[[], object]) -> int:
    """The number of waits of one call."""
    step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as record:
        step()
    return sum(event.count for event in record.key_averages() if event.key in READS)
