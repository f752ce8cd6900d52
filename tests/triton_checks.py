"""The Triton kernels, interpreted on the CPU: the same as tensor operations and as the formulas.

`test_triton` runs this file in a process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

import os

import pytest
import torch
from sparsemarg.kernels import in_triton
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import sparsemax
from sparsemarg.layers.solvers import ActiveSet
from sparsemarg.layers.solvers.kernels import triton_active_set, triton_iteration
from sparsemarg.layers.solvers.oracle import Oracle
from sparsemarg.layers.solvers.supports import Support
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.oracles import BernoulliCube, Budget, Polytope, Product, Simplex
from sparsemarg.oracles.simplex_projection import project_by_sorting
from torch import Tensor

assert os.environ.get("TRITON_INTERPRET") == "1"


def scores_of(count: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    """Random, tied, masked but for one, of large size, and masked in places."""
    scores = scale * torch.randn(5, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    scores[1] = scores[1].round()
    scores[2, 1:] = -torch.inf
    scores[3] += 1e4
    scores[4, : count // 2] = -torch.inf
    return scores.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, 255, 256, 257, 40_000])  # the last is beyond what stays on chip
def test_sparsemax(count: int, dtype: torch.dtype) -> None:
    ours, theirs = (scores_of(count, dtype).requires_grad_() for _ in range(2))
    probs, wanted = sparsemax(ours), project_by_sorting(theirs)
    assert type(probs.grad_fn).__name__ != type(wanted.grad_fn).__name__  # it is the kernel
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(probs, wanted, atol=tolerance, rtol=0)
    assert torch.equal(probs > 0, wanted > 0)
    weights = torch.randn(5, count, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found, expected = (torch.autograd.grad(x, leaf, weights)[0] for x, leaf in ((probs, ours), (wanted, theirs)))
    torch.testing.assert_close(found, expected, atol=10 * tolerance, rtol=0)


def test_sparsemax_derivatives() -> None:
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, scores)
    assert torch.autograd.gradgradcheck(sparsemax, scores)
    columns = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sparsemax(columns, dim=1), project_by_sorting(columns.mT).mT)


@pytest.mark.parametrize("count", [3, 40_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sparsemax_passes_on_what_it_was_told_not_to_look_for(bad: float, count: int) -> None:
    scores = torch.zeros(3, count)
    scores[1, count // 2] = bad
    scores[2] = -torch.inf
    probs = sparsemax(scores, check=False)
    assert probs[1:].isnan().all()
    torch.testing.assert_close(probs[0], torch.full((count,), 1 / count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 7, 300])
def test_packed_sums(dim: int, dtype: torch.dtype) -> None:
    """Of rows with more atoms than a chunk, one, and a probability of 0."""
    generator = torch.Generator().manual_seed(dim)
    row = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 1, 200, 129]))
    atoms = torch.randn(len(row), dim, generator=generator).to(dtype)
    probs = torch.rand(len(row), generator=generator).to(dtype)
    probs[0] = 0
    ours, theirs = (probs.clone().requires_grad_() for _ in range(2))
    found = SparseDistribution(atoms, ours, row, (4,))
    mean, entropy = found.mean(), found.entropy()
    assert {type(value.grad_fn).__name__ for value in (mean, entropy)} == {"_PackedMeanBackward", "_PackedEntropyBackward"}
    logs = theirs.clamp(min=torch.finfo(dtype).tiny).log()
    wanted = torch.zeros(4, dim, dtype=dtype).index_add(0, row, theirs[:, None] * atoms)
    others = torch.zeros(4, dtype=dtype).index_add(0, row, -theirs * logs)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(mean, wanted, atol=tolerance, rtol=0)
    torch.testing.assert_close(entropy, others, atol=tolerance, rtol=0)
    weights = torch.randn(4, dim, generator=generator).to(dtype)
    for one, other in ((mean * weights, wanted * weights), (entropy, others)):
        gradients = [torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in ((one, ours), (other, theirs))]
        torch.testing.assert_close(gradients[0][1:], gradients[1][1:], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("pairs", "pixels", "rank", "levels"), [(3, 20, 5, 256), (2, 64, 5, 17), (1, 33, 20, 100), (0, 8, 5, 17)]
)
def test_pixel_likelihood(pairs: int, pixels: int, rank: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(pixels)
    features = torch.randn(pairs, pixels, rank, generator=generator)
    head = torch.nn.Linear(rank, levels)
    images = torch.randint(0, levels, (pairs, pixels), generator=generator)
    inputs = (features.requires_grad_(), head.weight, head.bias)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    costs, wanted = pixel_cross_entropy(features, head, images), plain(*exact, images)
    torch.testing.assert_close(costs.double(), wanted, rtol=1e-5, atol=0)
    weights = torch.linspace(-1, 1, pairs)
    found = torch.autograd.grad(costs, inputs, weights)
    expected = torch.autograd.grad(wanted, exact, weights.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(pixel_cross_entropy(features, head, images), costs)


def solved_twice(polytope: Polytope, scores: Tensor, solver: ActiveSet, monkeypatch: pytest.MonkeyPatch) -> list[Support]:
    """By the kernel and in tensor operations."""
    assert in_triton(".solvers.kernels.triton_active_set", "sparsemarg.layers", "solve", scores.device) is not None
    fast = solver.solve(scores, polytope)
    with monkeypatch.context() as switched:
        switched.setenv("SPARSEMARG_KERNELS", "off")
        return [fast, solver.solve(scores, polytope)]


def assert_same(fast: Support, plain: Support, spacing: float = 1e-15) -> None:
    """`spacing` is that of the scores' floating point numbers, to which weights are determined."""
    assert torch.equal(fast.atoms, plain.atoms)
    tolerance = max(1e-12, 10 * spacing)
    torch.testing.assert_close(fast.probs, plain.probs, atol=tolerance, rtol=0)
    assert torch.equal(fast.stats.iterations, plain.stats.iterations)
    assert torch.equal(fast.stats.converged, plain.stats.converged)
    torch.testing.assert_close(fast.stats.gap, plain.stats.gap, atol=tolerance, rtol=0)
    torch.testing.assert_close(fast.stats.margin, plain.stats.margin, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["normal", "small", "integer", "equal", "large"])
@pytest.mark.parametrize("polytope", [BernoulliCube(10), Budget(12, 5), Budget(9, 4, exactly=True), Simplex(20)], ids=repr)
def test_active_set(polytope: Polytope, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(3, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scores = {
        "normal": scores,
        "small": 0.1 * scores,
        "integer": (2 * scores).round(),
        "equal": torch.full_like(scores, 0.25),
        "large": 1e6 + scores,
    }[kind]
    fast, plain = solved_twice(polytope, scores, ActiveSet(), monkeypatch)
    assert fast.stats.converged.all()
    assert_same(fast, plain, 1e6 * torch.finfo(torch.float64).eps if kind == "large" else 1e-15)
    assert fast.sensitivity is not None
    for atoms, probs, found in zip(fast.atoms, fast.probs, fast.sensitivity, strict=True):
        used = probs > 0
        assert not found[~used].any()
        assert not found[:, ~used].any()
        # That of the KKT system: its inverse without the last row and column.
        count = int(used.sum())
        system = torch.ones(count + 1, count + 1, dtype=torch.float64)
        system[-1, -1] = 0
        shifted = atoms[used] - atoms[used][:1]  # which changes nothing, as weights sum to 1
        system[:-1, :-1] = shifted @ shifted.T
        torch.testing.assert_close(found[used][:, used], system.inverse()[:-1, :-1], atol=1e-9, rtol=0)


def test_limits_of_the_active_set_are_those_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    oracle = Oracle.of(BernoulliCube(12), scores)

    def solved(**limits: float) -> triton_active_set.Solved:
        with monkeypatch.context() as changed:
            for name, value in limits.items():
                changed.setattr(triton_active_set if name == "WEIGHT_PRUNE" else triton_iteration, name, value)
            found = triton_active_set.solve(oracle, 60, 1e-9)
        assert found is not None
        return found

    usual = solved()
    assert usual.converged.all()
    assert (usual.weights > 0).sum(-1).min() > 4
    assert not solved(SETTLED=-1.0).converged.any()  # weights are never optimal
    assert ((solved(PIVOT_NOISE=1e9).weights > 0).sum(-1) == 1).all()  # no atom is independent of the first
    assert ((solved(WEIGHT_PRUNE=1e12).weights > 0).sum(-1) == 1).all()  # all but the heaviest are negligible
    torch.testing.assert_close(solved(PIVOT_IN_DOUBT=1e9).weights, usual.weights, atol=1e-12, rtol=0)  # distances, always
    assert not torch.equal(solved(WEIGHT_NOISE=1.0).weights, usual.weights)  # no weight blocks a step


def test_active_set_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = 0.1 * torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    fast, plain = solved_twice(BernoulliCube(12), scores, ActiveSet(max_iter=4), monkeypatch)
    assert not fast.stats.converged.any()
    assert_same(fast, plain)


def test_rows_that_need_more_atoms_than_the_kernel_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_active_set, "MOST_SLOTS", 16)
    scores = torch.rand(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    scores[1] = (8 * scores[1]).round()
    fast, plain = solved_twice(BernoulliCube(30), scores, ActiveSet(), monkeypatch)
    assert int((fast.probs > 0).sum(-1).max()) > 16
    assert_same(fast, plain)


def test_problems_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.zeros(2, 6, dtype=torch.float64)
    masked = scores.index_fill(1, torch.tensor([2]), -torch.inf)
    for polytope, given in (
        (Product(Simplex(2), Simplex(4)), scores),
        (BernoulliCube(6), masked),
        (BernoulliCube(6), scores[:0]),
    ):
        assert_same(*solved_twice(polytope, given, ActiveSet(), monkeypatch))


@pytest.mark.parametrize("row", [[0, -0.2, -0.59999996], [0, -0.2, -0.6, -0.6], [0, -0.6, -0.2, -0.6]])
def test_sparsemax_ends_where_rounding_decides(row: list[float]) -> None:
    for scores in (torch.tensor([row]), torch.tensor([row + [-torch.inf] * 40_000])):
        torch.testing.assert_close(sparsemax(scores), project_by_sorting(scores), atol=1e-6, rtol=0)


def test_pixel_likelihood_of_a_level_that_is_switched_off() -> None:
    features, head = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0)), torch.nn.Linear(5, 17)
    images = torch.randint(4, 17, (2, 20))
    with torch.no_grad():
        head.bias[3] = -torch.inf
    inputs = (features.requires_grad_(), head.weight)
    found = torch.autograd.grad(pixel_cross_entropy(features, head, images).sum(), inputs)
    expected = torch.autograd.grad(plain(features, head.weight, head.bias, images).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
