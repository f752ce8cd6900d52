"""Models that are exported, for batches of any size, against themselves."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import lp_sparsemap, sparsemap, sparsemap_marginals, sparsemax, topk_sparsemax
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, Solver, SortedDecomposition
from sparsemarg.oracles import BernoulliCube, Budget, Factor, FactorGraph, Knapsack, Simplex
from torch import Tensor, nn


class Scored(nn.Module):
    """A layer on what a linear map makes of its input."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.layer = nn.Linear(5, 16), layer

    def forward(self, given: Tensor) -> Tensor:
        return self.layer(self.encoder(given))


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    """For batches of 2 to 512 rows, by way of 4."""
    return torch.export.export(model, (torch.randn(4, 5),), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=512)},))


def sorted_bits(scores: Tensor) -> SparseDistribution:
    return sparsemap(scores, BernoulliCube(16), solver=SortedDecomposition())


def weighted(q: SparseDistribution) -> Tensor:
    return q.expectation(lambda atoms, row: atoms.cumsum(-1).square().sum(-1) * (1 + row))


PACKINGS = Knapsack(range(1, 17), 20)

# What a model may make of scores [B, 16] and be exported.
EXPORTED: dict[str, Callable[[Tensor], Tensor]] = {
    "sparsemax": sparsemax,
    "sparsemax of categories": lambda t: SparseDistribution.from_simplex(sparsemax(t)).mean(),
    "marginals of bits": lambda t: sparsemap_marginals(t, BernoulliCube(16)),
    "marginals of subsets": lambda t: sparsemap_marginals(t, Budget(16, 4)),
    "bits": lambda t: weighted(sorted_bits(t)),
    "entropy of bits": lambda t: sorted_bits(t).entropy(),
    "padded bits": lambda t: sorted_bits(t).padded()[1],
    "best bits": lambda t: sorted_bits(t).top(3)[0],
    "mode of bits": lambda t: sorted_bits(t).mode(),
    "sorted subsets": lambda t: sparsemap(t, Budget(16, 4), solver=SortedDecomposition()).mean(),
    "k best bits": lambda t: weighted(topk_sparsemax(t, BernoulliCube(16), 4)),
    "k best subsets": lambda t: topk_sparsemax(t, Budget(16, 4), 4).mean(),
    "k best categories": lambda t: topk_sparsemax(t, Simplex(16), 4).mean(),
    "the best of a dynamic program": PACKINGS.maximize,
    "k best of a dynamic program": lambda t: topk_sparsemax(t, PACKINGS, 4).mean(),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_models_take_batches_of_any_size(name: str) -> None:
    """By `torch.export`, whose sizes are symbols: one that Python reads would be held for fixed."""
    torch.manual_seed(0)
    model = Scored(EXPORTED[name])
    program = exported(model).module()
    for size in (2, 7, 100):
        given = 3 * torch.randn(size, 5)
        torch.testing.assert_close(program(given), model(given))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
def test_exported_models_run_without_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Scored(lambda t: sparsemax(t).square().sum(-1) + sorted_bits(t).entropy()).eval()
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "model.pt2"))
        run = torch._inductor.aoti_load_package(package)
        for size in (2, 100):
            given = 3 * torch.randn(size, 5)
            torch.testing.assert_close(run(given), model(given))


@pytest.mark.parametrize("solver", [ActiveSet(), PairwiseFrankWolfe()])
def test_what_iterates_says_that_it_cannot_be_exported(solver: Solver) -> None:
    for layer in (
        lambda t: sparsemap(t, BernoulliCube(16), solver=solver).mean(),
        lambda t: sparsemap_marginals(t, BernoulliCube(16), solver=solver),
    ):
        with pytest.raises(ValueError, match=r"cannot be exported.*SortedDecomposition"):
            exported(Scored(layer))
    graph = FactorGraph(16, [Factor(Simplex(2), [k, k + 1]) for k in range(0, 16, 2)])
    with pytest.raises(ValueError, match="lp_sparsemap cannot be exported"):
        exported(Scored(lambda t: lp_sparsemap(t, graph).mean))
