"""A device that is not there: tensors which say that they are on it, hold their values on the CPU, and may not be mixed.

It shows, on a machine without a GPU, what a GPU would refuse (a tensor in the wrong place, a random generator of the CPU, a
kernel for the CPU that reads one), and where Python waits for it. Kernels for GPUs, graphs and streams are not part of it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

# The one device besides the CPU for which autograd needs no driver.
THERE = torch.device("meta")
aten = torch.ops.aten
# Operations after which the host knows a value, or the size of a result that depends on values.
READS = {
    aten._linalg_check_errors.default,
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
# Copies from one device to another; all that are left wait, since the memory here is not pinned.
COPIES = {aten._to_copy.default, aten.copy_.default}
# Their second argument, indices, may be on the CPU, from where they are copied; masks are counted first.
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class PretendedDevice:
    """`THERE`, as long as it is entered: `scores.to(THERE)` is a tensor on a device of its own.

    Attributes:
        waits: how often the host waited for it, by operation: values read, sizes that depend on them, and copies.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._modes = (_Lists(), _Operations(self.waits))

    def __enter__(self) -> "PretendedDevice":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _There(Tensor):
    """A tensor on the pretended device, and the tensor on the CPU that has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function}: the device is pretended no more")


class _Lists(TorchFunctionMode):
    """Between Python's values and tensors there: by way of the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.tolist:
            return function(args[0].cpu())
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return function(*args, **kwargs | {"device": "cpu"}).to(THERE)
        return function(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in _flat((args, tuple(kwargs.values()))) if isinstance(value, Tensor)]
        there = any(isinstance(tensor, _There) for tensor in tensors)
        to = kwargs.get("device")
        if not there and not _is_there(to):
            return function(*args, **kwargs)
        if there:
            _check(function, args, kwargs, tensors)
        self.waits[function._schema.name.removeprefix("aten::")] += _waits(function, args, kwargs, there)
        found = function(*_here(args), **{name: _here(value) for name, value in kwargs.items()})
        if to is not None and not _is_there(to):
            return found
        found = _wrapped(found)
        # What is changed in place is returned as it is, with its new shape.
        return return_and_correct_aliasing(function, args, kwargs, found) if function._schema.is_mutable else found


def _check(function: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Raises RuntimeError where a GPU would."""
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"a generator of another device: {function} was given one of the CPU")
    if function in COPIES:
        return
    if function in INDEXED:
        tensors = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
    for tensor in tensors:
        # Only in operations by entries may a single number be elsewhere.
        if not isinstance(tensor, _There) and not (tensor.dim() == 0 and torch.Tag.pointwise in function.tags):
            raise RuntimeError(
                f"expected all tensors on one device, but {function} was given {list(tensor.shape)} on {tensor.device}"
            )


def _waits(function: Any, args: Any, kwargs: dict[str, Any], there: bool) -> bool:
    if function is aten._to_copy.default:
        to = kwargs.get("device")
        return to is not None and _is_there(to) != there
    if function is aten.copy_.default:
        return isinstance(args[0], _There) != isinstance(args[1], _There)
    if function in INDEXED:
        indices = [index for index in args[1] if index is not None]
        return any(not isinstance(index, _There) or index.dtype in (torch.bool, torch.uint8) for index in indices)
    return function in READS


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device) == THERE


def _here(value: Any) -> Any:
    """What stands for a value on the CPU."""
    if isinstance(value, (tuple, list)):
        return type(value)(_here(each) for each in value)
    if isinstance(value, _There):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value == THERE else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_wrapped(each) for each in value)
    return _There(value) if isinstance(value, Tensor) else value


def _flat(values: tuple[Any, ...] | list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value
