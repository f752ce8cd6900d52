"""Where compiled kernels stand in for tensor operations, and how to do without."""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .stale import FOLDERS, forget_stale

SWITCH = "SPARSEMARG_KERNELS"
_NO_DISPATCH: Any = Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]  # of classes that have none
_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(module: str, package: str | None, function: str, device: torch.device) -> Callable[..., Any] | None:
    """A function of a module that needs Numba, or None where tensor operations have to do its work.

    There are kernels for the CPU where Numba is installed (`pip install sparsemarg[fast]`). The environment variable
    SPARSEMARG_KERNELS=off turns them off. Each has a plain twin, and tests hold the two together.

    Args:
        module, package: as of `importlib.import_module`. The module is imported when it is first asked for.
        function: its name there.
        device: of the tensors.
    """
    if device.type != "cpu" or torch.compiler.is_compiling() or _off():
        return None
    return _loaded(module, package, function)


def in_triton(module: str, package: str | None, function: str, device: torch.device) -> Callable[..., Any] | None:
    """A function of a module that needs Triton, or None: the same for GPUs, where Triton is installed (with torch on Linux).

    With TRITON_INTERPRET=1, set before Triton is imported, they are interpreted and serve the CPU too: for tests.
    """
    if torch.compiler.is_compiling():
        return None
    if not (_interpreted() if device.type == "cpu" else device.type == "cuda" and _triton_runs()) or _off():
        return None
    return _loaded(module, package, function)


def triton_or_compiled(
    triton: str, numba: str, package: str | None, function: str, device: torch.device, on_arrays: Callable[..., None]
) -> Callable[..., None] | None:
    """A function of contiguous tensors that is written twice, in Triton and with Numba, or None: `in_triton`, else `compiled`.

    Args:
        triton, numba: the modules.
        package, function, device: as of `compiled`.
        on_arrays: what runs the compiled function, which it is given first, on the tensors' arrays.
    """
    kernel = in_triton(triton, package, function, device)
    if kernel is not None:
        return kernel
    kernel = compiled(numba, package, function, device)
    return None if kernel is None else partial(on_arrays, kernel)


def readable(tensor: Tensor) -> bool:
    """Whether a kernel may read a tensor and stand in for tensor operations on it.

    Not while code is compiled or a `torch.func` transform is active, be the tensor part of it or not; not in forward mode; not
    if the tensor stands for many, as the gradients in `torch.autograd.grad(..., is_grads_batched=True)` do; and not where
    operations are recorded, counted or replaced by a `TorchDispatchMode` (`make_fx`) or by the tensor's own class. Nor if its
    memory holds the negative of its values, as that of `z.conj().imag` does.
    """
    # torch has no public way to ask for the second, the third and the fifth; they are in every torch that we support.
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if transformed or torch._C._len_torch_dispatch_stack() or not torch._C._has_storage(tensor):
        return False
    if tensor.is_neg():
        return False
    if type(tensor).__torch_dispatch__ is not _NO_DISPATCH:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    # To ask for the level takes a tenth of the time, and outside of `forward_ad.dual_level` there are no tangents.
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(tensor).tangent is None


def on_cpu(tensor: Tensor) -> bool:
    """Whether arrays may stand in for tensor operations: on the CPU, `readable`, and with kernels not turned off."""
    return tensor.device.type == "cpu" and readable(tensor) and not _off()


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates what `torch.compile` is to call as it is: loops that end where the data say. It may use kernels there."""
    return cast(Callable[_P, _R], torch.compiler.disable(function))


def _off() -> bool:
    return SWITCH in os.environ and os.environ[SWITCH] == "off"  # `get` takes three times as long where there is none


@cache
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _triton_runs() -> bool:
    """Whether Triton can start kernels on a GPU here: to do so it compiles some code with the system's C compiler."""
    try:
        import_module("triton").runtime.driver.active.get_current_device()
    except (ImportError, RuntimeError, OSError, AssertionError, subprocess.CalledProcessError):
        return False  # an assertion: where it does not find libcuda.so.1, though torch does
    return True


@cache
def _loaded(module: str, package: str | None, function: str) -> Callable[..., Any] | None:
    _forget_once()
    try:
        return getattr(import_module(module, package), function)
    except (ImportError, RuntimeError):  # no Numba or Triton, or no folder in which it may keep what it compiled
        return None


@cache
def _forget_once() -> None:
    forget_stale(FOLDERS)


# Numbers to pass over for each thread. Starting one takes as long as to pass over 2^17 of them; but where two threads share a
# core's caches, as those of a small virtual machine do, a second one is worth it from some 2^21 numbers on.
WORTH_A_THREAD = 2**20


def in_threads(work: Callable[[slice], None], count: int, numbers: int | None = None) -> None:
    """Do the work on the parts of range(count) in as many threads as torch uses. It must let go of Python's lock.

    If it passes over its `numbers` a few times and no more, in fewer threads where these are few.
    """
    most = count if numbers is None else min(count, max(1, numbers // WORTH_A_THREAD))
    threads = min(torch.get_num_threads(), most) if most > 1 else most
    if threads == 1:
        work(slice(0, count))
    elif threads > 1:
        bounds = [count * part // threads for part in range(threads + 1)]
        list(_pool(torch.get_num_threads()).map(work, [slice(start, end) for start, end in pairwise(bounds)]))


def part_of(rows: Any, part: slice) -> Any:
    """The same named tuple of arrays for the rows of a slice."""
    if part == slice(0, len(rows[0])):
        return rows
    return type(rows)(*(field[part] for field in rows))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # the child of a fork has none of the threads
