"""Where tests of devices run, and what is compared there."""

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import POLYTOPES
from sparsemarg.oracles import (
    Arborescence,
    BernoulliCube,
    Budget,
    Explicit,
    LinearChain,
    Matching,
    OracleFromSolver,
    Polytope,
    Simplex,
)
from sparsemarg.verification.pretended_device import THERE, PretendedDevice
from sparsemarg.verification.results import SHIPPED, RingRuns
from torch import Tensor

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_gpu:
        test = mark(test)
    return test


@pytest.fixture(params=[pytest.param("cuda", marks=needs_gpu), "pretended"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    with PretendedDevice():
        yield THERE


Work = Callable[[torch.device], list[Tensor]]


def assert_same(device: torch.device, work: Work, tolerance: float = 1e-9) -> None:
    """That the work ends there, with what it gives on the CPU."""
    found, wanted = work(device), work(torch.device("cpu"))
    assert {tensor.device.type for tensor in found} == {device.type}
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=tolerance, rtol=0)


def f(atoms: Tensor, row: Tensor) -> Tensor:
    """A function of structures that is not linear."""
    return atoms.cumsum(-1).tanh().sum(-1) + row / 10


# What ships, but for what `cases.POLYTOPES` has; and transitions that are not regularised.
STRUCTURED: list[Polytope] = [
    *(polytope for polytope in SHIPPED if not isinstance(polytope, Simplex | BernoulliCube | Budget | Explicit | RingRuns)),
    LinearChain(4, 3, regularize_transitions=False),
]


class Cube(BernoulliCube):
    """Without kernels, as a user would write it."""


# Others are on the CPU (SciPy's assignments, a user's solver), or look whether they are done (arborescences).
WAIT_FREE: list[Polytope] = [
    *(polytope for polytope in STRUCTURED if not isinstance(polytope, Arborescence | Matching | OracleFromSolver)),
    Cube(40),
    *POLYTOPES.values(),
]
