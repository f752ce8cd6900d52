"""Structures with parts that take scores but are not penalised: transitions of a chain, pairs of a graph."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .base import Polytope
from .placement import lasting, placed, traced, version


@dataclass(frozen=True)
class Parts:
    """Coordinates split in two: those that the l2 term applies to, and the rest.

    Attributes:
        regularized: [R] int64, increasing.
        rest: [D - R] int64, increasing, not empty.
        order: [D] int64, where each coordinate is in (regularized, rest).
    """

    regularized: Tensor
    rest: Tensor
    order: Tensor

    @staticmethod
    def of(polytope: Polytope, device: torch.device | None = None) -> "Parts | None":
        """The parts that `polytope.regularized` names, on the device; None where that is all coordinates.

        Raises:
            ValueError: it is neither None, a slice, a mask [D] nor indices; it names no coordinate, one twice, or one beyond D.
        """
        named = getattr(polytope, "regularized", None)
        if named is None:
            return None
        if traced():
            parts = _parts(polytope, named)
        else:
            is_tensor = isinstance(named, Tensor)
            kept: _Kept = _of_tensors.setdefault(named, {}) if is_tensor else _of_others
            key = (polytope.dim, version(named) if is_tensor else repr(named))
            if key not in kept:
                with torch.no_grad():
                    kept[key] = lasting(_parts)(polytope, named)
            parts = kept[key]
        if parts is None or device is None:
            return parts
        return Parts(placed(parts.regularized, device), placed(parts.rest, device), placed(parts.order, device))

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] -> [..., R] and [..., D - R]."""
        return values[..., self.regularized], values[..., self.rest]

    def join(self, regularized: Tensor, rest: Tensor) -> Tensor:
        """[..., R] and [..., D - R] -> [..., D]: the inverse of `split`."""
        return torch.cat([regularized, rest], -1)[..., self.order]

    def penalized(self, values: Tensor) -> Tensor:
        """The values [..., D] with 0 on the rest."""
        return values.index_fill(-1, self.rest, 0)


_Kept = dict[tuple[int, int | str], Parts | None]  # by dimension, and version or text of what `regularized` is
_of_tensors: Any = WeakTensorKeyDictionary()  # a `_Kept` for each
_of_others: _Kept = {}


def _parts(polytope: Polytope, named: object) -> Parts | None:
    """What `regularized` says, on the CPU."""
    index = _index(polytope, named)
    if len(index) == polytope.dim:
        return None
    rest = torch.ones(polytope.dim, dtype=torch.bool)
    rest[index] = False
    others = rest.nonzero()[:, 0]
    return Parts(index, others, torch.cat([index, others]).argsort())


def _index(polytope: Polytope, named: object) -> Tensor:
    """What `regularized` names, as increasing indices on the CPU."""
    dim = polytope.dim
    index = None
    if isinstance(named, slice):
        index = torch.arange(dim)[named] if (named.step or 1) > 0 else None
    elif isinstance(named, Tensor) and named.dtype == torch.bool and named.shape == (dim,):
        index = named.cpu().nonzero()[:, 0]
    elif isinstance(named, Tensor) and named.dtype == torch.int64 and named.dim() == 1:
        index = named.cpu().sort().values
    if index is None:
        got = f"{named.dtype} {list(named.shape)}" if isinstance(named, Tensor) else repr(named)
        raise ValueError(
            f"{type(polytope).__name__}.regularized must be None (all coordinates), a slice with a positive step, a bool mask "
            f"[{dim}] or int64 indices [R], not {got}"
        )
    if len(index) == 0 or len(index.unique()) != len(index) or index[0] < 0 or index[-1] >= dim:
        raise ValueError(
            f"{type(polytope).__name__}.regularized must name at least one coordinate, each once, between 0 and {dim - 1}, not "
            f"{index.tolist() if len(index) <= 8 else f'{len(index)} from {int(index[0])} to {int(index[-1])}'}"
        )
    return index
