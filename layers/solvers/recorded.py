"""Iterations recorded once and replayed: on a GPU as a CUDA graph, which the host starts by a single call.

Some eighty small kernels make an iteration of the active set method in tensor operations. Started one by one they take the host
longer than the device. What is recorded is a whole window of `POLL` iterations on memory of its own, for one polytope and one
shape of the state; the host copies a state in, replays, copies it out, and looks whether rows have converged.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ...oracles import Polytope
from .limits import POLL

# Recordings that are kept. Each holds a state and what its iterations compute in between; the oldest goes first.
MOST = 64

Window = Callable[..., None]  # changes the tensors that it is given, in place
Recorder = Callable[[Window, Sequence[Tensor]], Callable[[], None]]  # runs it once, and returns what runs it again


class State(Protocol):
    """What is iterated: tensors, and a polytope whose oracle is asked."""

    @property
    def polytope(self) -> Polytope:
        """Whose oracle."""
        ...

    def tensors(self) -> list[Tensor]:
        """All tensors of the state, always in the same order."""
        ...

    def of(self, tensors: Sequence[Tensor]) -> Self:
        """The state that these tensors are."""
        ...

    def iterate(self, tol: float) -> None:
        """One iteration: of operations that depend on the shapes alone, if the oracle's do."""
        ...


S = TypeVar("S", bound=State)


def by_cuda_graph(window: Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Runs a window on a stream of its own, and captures it.

    Meanwhile torch's synchronisation check is on, which is one for the process: what waits for the device in another thread at
    this moment fails. Graphs that are replayed on one stream share their memory: nothing in it outlives a replay.

    Raises:
        RuntimeError: the window waits for the device, or does something else that cannot be captured.
    """
    device = tensors[0].device
    current = torch.cuda.current_stream(device)
    place = (device, current.cuda_stream)
    if place not in _places:
        _places[place] = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    stream, pool = _places[place]
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # around the capture too, which if it fails may stay on its stream
        mode = torch.cuda.get_sync_debug_mode()
        try:
            _set_synchronisation_check("error")
            window(*tensors)
        finally:
            _set_synchronisation_check(mode)
            current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on to use the device, such as one that pins memory for a data loader.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                window(*tensors)
        except BaseException:
            _places.pop(place, None)  # a pool can be left as if it were still being captured to
            raise
    return graph.replay


def _set_synchronisation_check(mode: str | int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the check is a prototype
        torch.cuda.set_sync_debug_mode(mode)


# By device and stream that graphs are replayed on: the stream that they are captured on, and their pool of memory. Within a
# pool memory is given out again on the stream where it was free, so graphs share it if they are captured on the same one.
_places: dict[tuple[torch.device, int], tuple[torch.cuda.Stream, Any]] = {}


class Recording(Generic[S]):
    """A window of iterations, with the memory on which it runs.

    Args:
        state: of which shape. The window has been run once when this is made: see `result`.
        tol: as in `State.iterate`.
        record: how.
    """

    def __init__(self, state: S, tol: float, record: Recorder) -> None:
        self.tol = tol
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.memory = [tensor.clone(memory_format=torch.contiguous_format) for tensor in state.tensors()]
            self.state = state.of(self.memory)  # with it the polytope stays, and so do the tensors that are its attributes
            self.again = record(self._window, self.memory)

    def replay(self, state: S) -> S:
        """The state after a window of iterations."""
        for own, given in zip(self.memory, state.tensors(), strict=True):
            own.copy_(given)
        self.again()
        return self.result()

    def result(self) -> S:
        """The state after the last window, in memory of its own."""
        return self.state.of([tensor.clone() for tensor in self.memory])

    def _window(self, *memory: Tensor) -> None:
        after = _iterated(self.state.of(memory), self.tol)
        for own, new in zip(memory, after.tensors(), strict=True):
            own.copy_(new)


_kept: OrderedDict[tuple[object, ...], Recording[Any] | Polytope] = OrderedDict()
_lock = threading.RLock()  # an oracle that is being recorded may record another


def advance(state: S, tol: float, record: Recorder = by_cuda_graph) -> S:
    """The state after `POLL` iterations, by a recording if there can be one.

    Args:
        state: is not changed.
        tol: as in `State.iterate`.
        record: how. A recording is kept, for the polytope itself and not one that is equal.

    Warns:
        UserWarning: once for each shape, where the oracle cannot be recorded, or there is no memory for it even if all other
            recordings are given up; the iterations then run one by one.
    """
    tensors, polytope = state.tensors(), state.polytope
    device = tensors[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    key = (id(polytope), record, tol, device, stream, *((tensor.shape, tensor.dtype) for tensor in tensors))
    with _lock:  # the memory is one; on a stream what is asked of it runs in this order
        found = _kept.get(key)
        if isinstance(found, Recording):
            _kept.move_to_end(key)
            return found.replay(state)
        if found is None:
            made = _recording(state, tol, record)
            _kept[key] = made or polytope  # kept too: while it lives, no other has its id
            while len(_kept) > MOST:
                _kept.popitem(last=False)
            if made is not None:
                return made.result()
    return _iterated(state, tol)


def _recording(state: S, tol: float, record: Recorder) -> Recording[S] | None:
    """A recording, for which the others make way if they must; None, and a warning, if there can be none."""
    others = [key for key, kept in _kept.items() if isinstance(kept, Recording)]
    while True:
        try:
            return Recording(state, tol, record)
        except RuntimeError as error:
            if not (others and isinstance(error, torch.OutOfMemoryError)):
                _warn(state.polytope, error)
                return None
        while others:  # not while the error is handled, which holds on to what had been allocated
            del _kept[others.pop()]


def _iterated(state: S, tol: float) -> S:
    """The state after `POLL` iterations, which update some of its tensors in place, and others not; it is not changed."""
    after = state.of([tensor.clone() for tensor in state.tensors()])
    for _ in range(POLL):
        after.iterate(tol)
    return after


def forget() -> None:
    """Gives up all recordings, and with them their memory."""
    with _lock:
        _kept.clear()
        _places.clear()


def _warn(polytope: Polytope, error: RuntimeError) -> None:
    if isinstance(error, torch.OutOfMemoryError):
        advice = "A recording keeps the memory of its iterations; smaller batches need less of it"
    else:
        advice = (
            "To be recorded, `maximize` may not read values on the host (`if` on a tensor, .item(), nonzero, boolean masks as "
            "indices) nor copy from it: `sparsemarg.oracles.placed` keeps tensors on a device"
        )
    warnings.warn(
        f"ActiveSet(record=True): the iterations on {polytope!r} cannot be recorded and run one by one "
        f"({str(error).splitlines()[0]}). {advice}",
        stacklevel=2,
    )
