"""Where tests of devices run, and what is compared there."""

from collections.abc import Callable, Iterator

import pytest
import torch
from sparsemarg.oracles import (
    Arborescence,
    AtLeastOne,
    BernoulliCube,
    Budget,
    ExactlyOne,
    Knapsack,
    LinearChain,
    Matching,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    Simplex,
    SpanningTree,
)
from sparsemarg.verification.pretended_device import THERE, PretendedDevice
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


TRIANGLE = [(0, 1), (1, 2), (0, 2), (2, 3)]
STRUCTURED: list[Polytope] = [
    Arborescence(4),
    Arborescence(4, single_root=True),
    AtLeastOne(4, [True, False, False, False]),
    ExactlyOne(4),
    Knapsack([3, 2, 1, 2], 4),
    LinearChain(4, 3),
    LinearChain(4, 3, regularize_transitions=False),
    Matching(3, 4),
    Permutahedron([3, 2, 1, 0]),
    Product(Simplex(2), Budget(3, 1), Simplex(2)),
    ProjectiveTree(3),
    Segmentation(5, 3),
    ShortestPath([(0, 1), (1, 3), (0, 2), (2, 3)]),
    SpanningTree(TRIANGLE),
]


class Cube(BernoulliCube):
    """Without kernels, as a user would write it."""
