"""Kernels that rely on an order of their threads are refused, and no others, by `races`, which watches those interpreted.

`test_triton` runs this file as it does `triton_checks`.
"""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError


@triton.jit
def _reads_back(values, BARRIER: tl.constexpr):
    place = tl.arange(0, 8)
    tl.store(values + place, place + 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values + 8 + place, tl.load(values + 7 - place))


@triton.jit
def _turns(values, BARRIER: tl.constexpr):
    place = tl.arange(0, 8)
    turned = tl.load(values + 7 - place)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values + place, turned)


@triton.jit
def _counts(values, BARRIER: tl.constexpr):
    count = tl.load(values)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values, count + 1.0)


@triton.jit
def _replaces(values, BARRIER: tl.constexpr):
    place = tl.arange(0, 8)
    tl.store(values + place, tl.sum(tl.load(values + place), 0) + 1.0, mask=place < 4)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values + place, -1.0, mask=place < 2)


def run(kernel: Any, programs: int, values: Tensor, given: int) -> None:
    kernel[(programs,)](values, given)


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (_reads_back, "loaded once stored"),
        (_turns, "stored once loaded"),
        (_counts, "stored once loaded"),  # one thread stores, all load
        (_replaces, "stored twice"),
    ],
)
def test_between_threads_there_is_a_barrier(kernel: Any, what: str) -> None:
    run(kernel, 1, torch.arange(16.0), True)
    with pytest.raises(InterpreterError, match=what):
        run(kernel, 1, torch.arange(16.0), False)


@triton.jit
def _passes_on(values, STEP: tl.constexpr):
    row = 4 + tl.program_id(0)
    tl.store(values + row + STEP, tl.load(values + row) + 1.0)


@triton.jit
def _gathers(values, STEP: tl.constexpr):
    tl.store(values, tl.program_id(0) + 1.0 + tl.load(values + STEP + tl.program_id(0)))


def test_programs_keep_to_themselves() -> None:
    run(_passes_on, 4, torch.zeros(16), 8)
    with pytest.raises(InterpreterError, match="loaded where another program stored"):
        run(_passes_on, 4, torch.zeros(16), 1)
    with pytest.raises(InterpreterError, match="stored where another program loaded"):
        run(_passes_on, 4, torch.arange(16.0), -1)
    with pytest.raises(InterpreterError, match="stored where another program did"):
        run(_gathers, 2, torch.zeros(16), 4)


def test_the_end_of_a_tensor_is_that_of_its_memory() -> None:
    values = torch.arange(32.0)
    run(_passes_on, 4, values[:12], 4)
    for step, given in ((8, values[:12]), (-8, values[8:])):  # of memory that is there, but not the kernel's
        with pytest.raises(InterpreterError, match="outside of the tensors"):
            run(_passes_on, 4, given, step)


def test_what_is_there_may_be_stored_again() -> None:
    values = torch.arange(8.0)
    run(_turns, 1, torch.ones(8), False)
    run(_turns, 1, values, True)
    assert values.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
