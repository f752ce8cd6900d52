"""Constants of polytopes, such as tables of vertices and indices, on the device of the scores."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_P = ParamSpec("_P")
_R = TypeVar("_R")
_kept: Any = WeakTensorKeyDictionary()  # by constant: by device and dtype, the version that was copied and the copy


def placed(constant: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`constant.to(device, dtype)`; a copy on another device is kept for as long as there is the constant.

    A copy from the host waits for the device, which solvers never do within iterations, and in a CUDA graph there can be none.

    Args:
        constant: without gradient. It may change in place; it is then copied again.
        device, dtype: of what is returned, which may be the constant itself and is not to be changed; by default its own dtype.
    """
    wanted = constant.dtype if dtype is None else dtype
    if constant.device == device or traced():
        return constant.to(device, wanted)
    copies, now = _kept.setdefault(constant, {}), version(constant)
    if copies.get((device, wanted), (None,))[0] != now:
        # A tensor made in inference mode could not be used outside of it. Converted first, it is whole for all streams.
        with torch.inference_mode(False), torch.no_grad():
            copies[device, wanted] = now, constant.to(wanted).to(device)
    return copies[device, wanted][1]


def lasting(make: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates what makes constants: they are on the CPU whatever the default device is (`with torch.device("meta")`), and
    what is made in inference mode can be saved for a backward pass all the same."""

    @wraps(make)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.inference_mode(False), torch.device("cpu"):
            return make(*args, **kwargs)

    return made


def traced() -> bool:
    """Whether tensors that are made now are of no use later: while code is compiled, or inside of a `torch.func` transform."""
    # torch has no public way to ask for the latter; this is in every torch that we support.
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def version(tensor: Tensor) -> int:
    """A number that differs once the tensor has changed in place; those made in inference mode are taken not to."""
    return 0 if tensor.is_inference() else tensor._version
