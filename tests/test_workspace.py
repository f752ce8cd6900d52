"""Memory that kernels keep: never two borrowers of the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sparsemarg.kernels import workspace
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import BernoulliCube, Polytope
from torch import Tensor


def test_memory_is_kept_and_lent_to_one_at_a_time() -> None:
    workspace._kept.clear()
    first = workspace.borrow((100, 200), np.float64)
    workspace.give_back(first)
    again = workspace.borrow((100, 150), np.float64)
    assert np.shares_memory(first, again)
    other = workspace.borrow((100, 150), np.float64)
    assert not np.shares_memory(again, other)
    workspace.give_back(workspace.borrow((3,), np.int8))  # too small to keep
    assert not workspace._kept
    for _ in range(3):
        workspace.give_back(np.empty(workspace.MOST_BYTES // 2, np.uint8))
    assert sum(map(len, workspace._kept)) <= workspace.MOST_BYTES
    workspace._kept.clear()


def test_threads_and_oracles_that_solve_do_not_disturb_each_other() -> None:
    scores = torch.rand(16, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cube = BernoulliCube(40)
    wanted = sparsemap(scores, cube)

    class Solving(Polytope):
        """A cube whose oracle solves another problem meanwhile."""

        dim = 40

        def maximize(self, scores: Tensor) -> Tensor:
            sparsemap(-scores, cube)
            return cube.maximize(scores)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda polytope: sparsemap(scores, polytope), [cube] * 6 + [Solving()] * 2))
    for each in found:
        assert torch.equal(each.atoms, wanted.atoms)
        assert torch.equal(each.probs, wanted.probs)
