"""How the compiled oracles are called: those that solve one problem after the other, each a module with a function `best`."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import compiled, in_threads, readable
from .base import Polytope
from .checks import check_rows


def best_in_rows(
    module: str, polytope: Polytope, scores: Tensor, by_row: tuple[Tensor, ...], others: tuple[Any, ...], passes: int
) -> Tensor | None:
    """The best structures [B, D] by `best(scores, *by_row, *others, structures)` of a module of `kernels`.

    Args:
        scores: [B, D].
        by_row: [B, ...] each, what else the kernel reads of every row.
        others: what it reads besides, tensors or numbers.
        passes: it takes as long as to pass over the scores so many times.

    Returns:
        None where tensor operations have to do its work.
    """
    kernel = compiled(f".kernels.{module}", __package__, "best", scores.device)
    if kernel is None or scores.dtype not in (torch.float32, torch.float64) or not readable(scores):
        return None
    check_rows(scores, polytope.dim)
    structures = scores.new_empty(scores.shape)
    given, out = [tensor.detach().contiguous().resolve_neg().numpy() for tensor in (scores, *by_row)], structures.numpy()
    rest = [other.numpy() if isinstance(other, Tensor) else other for other in others]
    in_threads(lambda part: kernel(*(each[part] for each in given), *rest, out[part]), len(out), passes * out.size)
    return structures
