"""What Triton's interpreter hides: threads of a program run side by side, so do programs, and memory has an end.

The interpreter makes each operation whole before the next begins. On a GPU a thread may load what another has yet to store,
unless a barrier is between. From `forbid_races` on, an interpreted kernel fails where it relies on that order, or leaves its
tensors:

- within a program, between two barriers: no value is loaded that was stored, stored twice, or replaced after it was loaded. A
  block may be replaced at the very addresses at which it was loaded: to threads they are dealt out alike. What is there may be
  stored again;
- between programs of one launch: nobody loads or stores where another stores;
- all that is loaded or stored lies in a tensor that the launch was given.

Where a reduction makes threads wait as well, this is stricter than the hardware. What is stored that is there already does not
count, so what is found depends on the data of a test. Atomic operations, of which there are none, fail.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

Addresses = NDArray[np.uint64]


class _Block(NamedTuple):
    """The addresses that an operation was given, in their order, and in ascending order those that its mask left."""

    given: Addresses
    used: Addresses

    @staticmethod
    def of(given: Addresses, mask: NDArray[np.bool_]) -> "_Block":
        return _Block(given, np.unique(given[np.broadcast_to(mask, given.shape)]))

    def meets(self, other: "_Block") -> bool:
        if not self.used.size or not other.used.size or self.used[0] > other.used[-1] or self.used[-1] < other.used[0]:
            return False
        return bool(np.isin(self.used, other.used, assume_unique=True).any())

    def by_the_same_threads(self, other: "_Block") -> bool:
        """A single value is loaded by all threads and stored by one."""
        return self.given.size > 1 and np.array_equal(self.given, other.given)


class _Accesses:
    """Where was loaded and stored."""

    def __init__(self) -> None:
        self.loaded: list[_Block] = []
        self.stored: list[_Block] = []

    def add(self, other: "_Accesses") -> None:
        for own, new in ((self.loaded, other.loaded), (self.stored, other.stored)):
            if new:
                every = np.unique(np.concatenate([block.used for block in new]))
                own.append(_Block(every, every))


class _Launch:
    """What the program that runs did since its last barrier and before that, and what the programs before it did."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.extents = [(tensor.data_ptr(), tensor.data_ptr() + _bytes(tensor)) for tensor in tensors if tensor.numel()]
        self.since_barrier, self.program, self.others = _Accesses(), _Accesses(), _Accesses()

    def barrier(self) -> None:
        self.program.add(self.since_barrier)
        self.since_barrier = _Accesses()

    def next_program(self) -> None:
        self.barrier()
        self.others.add(self.program)
        self.program = _Accesses()

    def touch(self, block: _Block) -> None:
        inside = [(start <= block.used) & (block.used < end) for start, end in self.extents]
        assert np.any(inside, 0).all() if inside else not block.used.size, "outside of the tensors that the kernel was given"

    def load(self, block: _Block) -> None:
        self.touch(block)
        assert not any(block.meets(stored) for stored in self.others.stored), "loaded where another program stored"
        assert not any(block.meets(stored) for stored in self.since_barrier.stored), "loaded once stored, without a barrier"
        self.since_barrier.loaded.append(block)

    def store(self, block: _Block) -> None:
        """Of other values than were there."""
        assert not any(block.meets(loaded) for loaded in self.others.loaded), "stored where another program loaded"
        assert not any(block.meets(stored) for stored in self.others.stored), "stored where another program did"
        assert not any(block.meets(stored) for stored in self.since_barrier.stored), "stored twice without a barrier"
        elsewhere = [loaded for loaded in self.since_barrier.loaded if not block.by_the_same_threads(loaded)]
        assert not any(block.meets(loaded) for loaded in elsewhere), "stored once loaded, without a barrier"
        self.since_barrier.stored.append(block)


def _bytes(tensor: Tensor) -> int:
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def forbid_races() -> None:
    """In all kernels that this process interprets from now on."""
    launcher: Any = interpreter.GridExecutor
    builder: Any = interpreter.InterpreterBuilder
    running: Any = interpreter.interpreter_builder
    prepare, begin = launcher._init_args_hst, builder.set_grid_idx
    load, store = builder.create_masked_load, builder.create_masked_store

    def watched_launch(self: Any, arguments: Any, by_name: Any) -> Any:
        given, given_by_name = prepare(self, arguments, by_name)
        tensors = [value for value in (*given, *given_by_name.values()) if isinstance(value, Tensor)]
        running.launch = _Launch(tensors)
        return given, given_by_name

    def watched_program(self: Any, *indices: int) -> None:
        self.launch.next_program()
        begin(self, *indices)

    def watched_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        self.launch.load(_Block.of(ptrs.data, mask.data))
        return load(self, ptrs, mask, *rest)

    def watched_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        self.launch.touch(_Block.of(ptrs.data, mask.data))
        before = load(self, ptrs, mask, None, None, None, None).data
        self.launch.store(_Block.of(ptrs.data, mask.data & (before != value.data)))
        return store(self, ptrs, value, mask, *rest)

    def barrier(self: Any) -> None:
        self.launch.barrier()

    def unwatched(self: Any, *given: Any) -> None:
        raise NotImplementedError("atomic operations are not watched for races")

    launcher._init_args_hst = watched_launch
    builder.set_grid_idx, builder.create_barrier = watched_program, barrier
    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    builder.create_atomic_cas = builder.create_atomic_rmw = unwatched
