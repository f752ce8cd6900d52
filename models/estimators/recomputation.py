"""Whether a forward pass runs for the first time: what counts batches must not count one twice."""

import torch


def recomputing() -> bool:
    """Whether a backward pass is under way on this thread, in which `torch.utils.checkpoint` runs a forward pass again."""
    # torch has no public way to ask; its own checkpoints do so, in every torch that we support.
    return torch._C._current_graph_task_id() != -1
