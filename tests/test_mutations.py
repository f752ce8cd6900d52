"""Seeded defects of polytopes: each must be caught, and by the check whose business it is. No alarm where nothing is wrong."""

from collections.abc import Callable

import pytest
import torch
from defects import DEFECTS
from mutation_cases import Wrapped, cheap
from sparsemarg.layers.solvers import ActiveSet
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, Permutahedron, Polytope, Product, Simplex
from sparsemarg.verification import verify


@pytest.mark.parametrize(("defect", "check"), DEFECTS, ids=[defect.__name__ for defect, _ in DEFECTS])
def test_defect_of_a_polytope(defect: Callable[[], Polytope], check: str) -> None:
    report = cheap(defect())
    assert check in [result.check for result in report.failed], str(report)
    (result,) = [result for result in report.failed if result.check == check]
    assert "\n" not in result.message
    assert "verify(polytope" in result.code


def test_the_unspoiled_polytope_passes() -> None:
    report = cheap(Wrapped())
    assert report.ok, str(report)
    assert [result.check for result in report.with_status("skipped")] == ["marginals: Jacobian", "solvers agree"]


@pytest.mark.parametrize("size", [1e-2, 300.0, 5e3])
def test_large_structures_are_no_mistake(size: float) -> None:
    """Their means have as many digits as others."""
    for polytope in (
        Explicit(size * torch.tensor([[0.0, 1], [0.7, 0.3], [1, 0], [0.333, 0.6]])),
        Permutahedron([size, 0.0, -size]),
    ):
        report = verify(polytope, solvers=[ActiveSet()], skip=["by cvxpy"])
        assert report.ok, str(report)


def random_instance(seed: int) -> Polytope:
    """A small correct polytope."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def part(kind: int, largest: int) -> Polytope:
        dim = integer(1, largest)
        match kind:
            case 0:
                return Explicit(torch.randn(integer(1, 12), dim, generator=generator, dtype=torch.float64))
            case 1:
                bits = torch.rand(integer(1, 12), dim, generator=generator) < 0.5
                return Explicit(bits.double().unique(dim=0))
            case 2:
                return BernoulliCube(dim)
            case 3:
                return Budget(dim, integer(0, dim), exactly=bool(integer(0, 1)))
            case _:
                return Simplex(dim)

    kind = integer(0, 5)
    if kind < 5:
        return part(kind, 5)
    return Product(part(integer(1, 4), 3), part(integer(1, 4), 3))


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))])
def test_no_false_alarm(seed: int) -> None:
    polytope = random_instance(seed)
    report = verify(polytope, batch=2, seed=seed, solvers=[ActiveSet()], skip=["by cvxpy"])
    assert report.ok, str(report)
