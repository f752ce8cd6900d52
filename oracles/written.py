"""Structures as one writes them down, a number for each position: heads, tags. Beyond the end of a shorter one it is -1."""

import torch
from torch import Tensor

from .checks import cannot_branch, checked_lengths, shown

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_numbers(name: str, numbers: Tensor, positions: int | None, largest: int, lengths: Tensor | None) -> Tensor:
    """The numbers [*B, positions] as int64, those beyond the lengths replaced by -1; of any number of positions if None.

    Raises:
        ValueError: no tensor of ints of that shape; a number that is not between 0 and the largest, but for -1 at the end; or
            nothing but -1.
    """
    fits = isinstance(numbers, Tensor) and numbers.dtype in WHOLE and numbers.ndim > 0 and numbers.shape[-1] > 0
    if not fits or positions not in (None, numbers.shape[-1]):
        got = f"{list(numbers.shape)} {numbers.dtype}" if isinstance(numbers, Tensor) else type(numbers).__name__
        wanted = "L" if positions is None else positions
        raise ValueError(f"{name} takes a tensor of ints [*B, {wanted}], a number for each position, not {got}")
    numbers, positions = numbers.to(torch.int64), numbers.shape[-1]
    if lengths is not None:
        lengths = checked_lengths(lengths, positions, name, numbers)
        if lengths.shape != numbers.shape[:-1]:
            raise ValueError(f"{name} takes a length for each problem, {list(numbers.shape[:-1])}, not {list(lengths.shape)}")
        beyond = torch.arange(positions, device=numbers.device) >= lengths.to(numbers.device)[..., None]
        numbers = torch.where(beyond, -1, numbers)
    if not cannot_branch(numbers):
        ended = (numbers == -1).cumsum(-1) > 0
        refuse(name, numbers, (numbers < -1) | (numbers > largest), f"it must be between 0 and {largest}, or -1 beyond the end")
        refuse(name, numbers, ended & (numbers >= 0), "it comes after a -1, which says that there is nothing more")
        refuse(name, numbers, ended & (torch.arange(positions, device=numbers.device) == 0), "there is no position at all")
    return numbers


def refuse(name: str, numbers: Tensor, wrong: Tensor, why: str) -> None:
    """Raises ValueError if something is wrong with one of the numbers, and shows the first."""
    if wrong.any():
        first = wrong.nonzero()[0]
        problem = f" of problem {shown(first[:-1])}" if len(first) > 1 else ""
        raise ValueError(f"{name}: number {numbers[tuple(first)].item()} at position {int(first[-1])}{problem}: {why}")


def check_structures(name: str, structures: Tensor, dim: int, instead: str) -> None:
    """Raises ValueError if they are not [*B, dim], or hold more than 0s and 1s, as a mean does, which cannot be read."""
    if structures.shape[-1:] != (dim,):
        raise ValueError(f"{name} reads structures [*B, {dim}], not {list(structures.shape)}")
    if not cannot_branch(structures) and not ((structures == 0) | (structures == 1)).all():
        raise ValueError(f"{name} reads structures, of 0s and 1s, such as those of `maximize`, `mode()` or `atoms`; {instead}")
