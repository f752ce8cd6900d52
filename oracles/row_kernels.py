"""How the compiled oracles are called: those that solve one problem after the other, each a module with a function `best`.

Either for a batch of scores, in `maximize`, or by a compiled solver, which asks for each row when it needs an answer.
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels import compiled, in_threads, readable
from .base import Polytope
from .checks import check_rows
from .kinds import kind_of


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


def row_oracle(polytope: Polytope, scores: Tensor) -> Any | None:
    """What a compiled solver asks in place of the polytope's `maximize`: see `kernels.row_oracles`, which needs Numba.

    A class that has one has a method `row_oracle` of scores [B, D] float64. It counts as long as no subclass, nor the polytope
    itself, has changed `maximize` since. All structures are 0/1.

    Args:
        polytope: any.
        scores: [B, D] float64 on the CPU, `-inf` where they are in all questions about that row; else of no matter.

    Returns:
        None if there is none.
    """
    kind = kind_of(polytope)
    if kind is not None:
        from .kernels.bit_rows import BitVectors

        return BitVectors(kind, getattr(polytope, "budget", 0))
    made, solved = (
        next((cls for cls in type(polytope).__mro__ if name in vars(cls)), None) for name in ("row_oracle", "maximize")
    )
    if made is None or solved is None or not issubclass(made, solved) or "maximize" in getattr(polytope, "__dict__", ()):
        return None
    return polytope.row_oracle(scores)  # pyright: ignore[reportAttributeAccessIssue]
