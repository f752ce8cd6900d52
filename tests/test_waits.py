"""How often the host waits for a GPU, by a device that is pretended; and what such a device is."""

from itertools import pairwise

import pytest
import torch
from cases import scores_for
from devices import WAIT_FREE
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import ActiveSet, SortedDecomposition
from sparsemarg.oracles import BernoulliCube, Polytope, placed
from sparsemarg.verification.pretended_device import THERE, PretendedDevice


def waits(polytope: Polytope, max_iter: int) -> int:
    """Of one solve on a device, for the first of which constants may have been copied."""
    with PretendedDevice() as pretended:
        scores = scores_for(polytope, "small", batch=16).to(THERE)
        for _ in range(2):
            pretended.waits.clear()
            sparsemap(scores, polytope, solver=ActiveSet(max_iter=max_iter), coding="pairs", check=False)
    return pretended.waits.total()


@pytest.mark.parametrize("polytope", WAIT_FREE, ids=repr)
def test_the_host_waits_once_in_eight_iterations(polytope: Polytope) -> None:
    """To look whether rows have converged; and once more where it puts these aside."""
    counted = [waits(polytope, max_iter) for max_iter in (8, 16, 24)]
    assert all(0 <= more - fewer <= 2 for fewer, more in pairwise(counted))
    assert counted[0] <= 14


def test_closed_forms_wait_as_often_in_any_dimension() -> None:
    with PretendedDevice() as pretended:
        counted = []
        for dim in (8, 100):
            scores = scores_for(BernoulliCube(dim), "normal").to(THERE).requires_grad_()
            pretended.waits.clear()
            found = sparsemap(scores, BernoulliCube(dim), solver=SortedDecomposition(), coding="pairs")
            torch.autograd.grad(found.mean().tanh().sum() + found.entropy().sum(), scores)
            counted.append(pretended.waits.total())
    assert counted[0] == counted[1] <= 5


def test_a_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with PretendedDevice() as pretended:
        there = torch.zeros(3).to(THERE)
        with pytest.raises(RuntimeError, match="was given \\[3\\] on cpu"):
            there.add(torch.zeros(3))
        with pytest.raises(RuntimeError, match="was given one of the CPU"):
            torch.rand(3, device=THERE).uniform_(generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert (there + torch.tensor(2.0)).cpu().tolist() == [2.0, 2.0, 2.0]  # single numbers may be anywhere
        pretended.waits.clear()
        assert bool((there == 0).all())
        assert len(there[there == 0]) == 3
        assert pretended.waits.total() == 2


def test_constants_are_copied_once_and_again_when_they_change() -> None:
    with PretendedDevice() as pretended:
        constant = torch.arange(3.0)
        first = placed(constant, THERE, torch.float64)
        pretended.waits.clear()
        assert placed(constant, THERE, torch.float64) is first
        assert placed(constant, constant.device) is constant
        assert pretended.waits.total() == 0
        constant[0] = 7
        assert placed(constant, THERE, torch.float64).tolist() == [7, 1, 2]
        with torch.inference_mode():
            made = placed(constant, THERE)
        assert not made.is_inference()
