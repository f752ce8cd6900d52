"""Sets as bits, against the same in numbers, for whole and for broken words."""

import math

import numpy as np
import pytest
import torch
from sparsemarg.kernels import bits
from sparsemarg.layers import SolverStats
from sparsemarg.layers.functional import refit, sparsemap, sparsemax
from sparsemarg.layers.solvers import ActiveSet
from sparsemarg.oracles import BernoulliCube, Budget, Explicit, LinearChain, Polytope, Product, Simplex
from torch import Tensor

DIMS = [1, 8, 63, 64, 65, 130]


def packed(values: np.ndarray) -> np.ndarray:
    """0/1 [n, D] -> [n, W]."""
    words = np.zeros((len(values), bits.words_of(values.shape[1])), np.uint64)
    for row, word in zip(values, words, strict=True):
        bits.differences(row, np.zeros_like(row), word)
    return words


@pytest.mark.parametrize("dim", DIMS)
def test_bits_are_in_the_order_of_coordinates(dim: int) -> None:
    for place in range(dim):
        words = packed(np.eye(dim)[place : place + 1])[0]
        assert [int(word) for word in words] == [
            2 ** (place - 64 * w) if 0 <= place - 64 * w < 64 else 0 for w in range(len(words))
        ]


@pytest.mark.parametrize("dim", DIMS)
def test_what_is_computed_with_bits(dim: int) -> None:
    generator = np.random.default_rng(dim)
    sets = generator.integers(0, 2, (9, dim)).astype(np.float64)
    words, values, weights = packed(sets), np.full(64 * bits.words_of(dim), np.nan), generator.normal(size=9)
    values[:dim] = generator.normal(size=dim)
    assert bits.total(values, words[0]) == pytest.approx(values[:dim] @ sets[0], abs=1e-12)
    sums = np.full(len(values), np.nan)
    bits.combine(weights, words, sums)
    np.testing.assert_allclose(sums, np.pad(weights @ sets, (0, len(values) - dim)), rtol=0, atol=1e-12)
    each = np.full(9, np.nan)
    bits.totals(values, words, each)
    np.testing.assert_allclose(each, sets @ values[:dim], rtol=0, atol=1e-12)
    on, common = generator.integers(0, 2, 9).astype(bool), np.full(9, np.nan)
    bits.overlaps(words, on, words[3], common)
    assert common.tolist() == np.where(on, sets @ sets[3], 0).tolist()
    other = np.zeros_like(words[0])
    bits.differences(sets[1], sets[2], other)
    assert other.tolist() == (words[1] ^ words[2]).tolist()


@pytest.mark.parametrize("dim", DIMS)
def test_sets_are_written_in_bits_and_read(dim: int) -> None:
    generator = np.random.default_rng(dim)
    values = generator.integers(-2, 3, dim).astype(np.float64)
    for least in (-1.0, 0.0, 5.0):
        wanted, words = values > least, np.full(bits.words_of(dim), 7, np.uint64)
        assert bits.where_above(values, least, words) == wanted.sum()
        assert words.tolist() == packed(wanted[None].astype(np.float64))[0].tolist()
        assert words.tolist() == bits.in_words(wanted[None])[0].tolist()
        read = np.full(dim, np.nan)
        bits.spread(words, read)
        assert read.tolist() == wanted.tolist()


@pytest.mark.parametrize("dim", [64, 65, 300])
def test_the_first_words_of_longer_ones(dim: int) -> None:
    generator = np.random.default_rng(dim)
    sets, values, weights = generator.integers(0, 2, (9, dim)), generator.normal(size=64), generator.normal(size=9)
    first, sums, each = packed(sets.astype(np.float64))[:, :1], np.empty(64), np.empty(9)
    bits.combine(weights, first, sums)
    bits.totals(values, first, each)
    np.testing.assert_allclose(sums, weights @ sets[:, :64], rtol=0, atol=1e-12)
    np.testing.assert_allclose(each, sets[:, :64] @ values, rtol=0, atol=1e-12)


def test_are_bits() -> None:
    assert bits.are_bits(np.array([[0.0, 1.0], [-0.0, 1.0]]))
    for value in (-1.0, 0.5, 2.0, np.nan, np.inf):
        assert not bits.are_bits(np.array([[0.0, 1.0], [1.0, value]]))


@pytest.fixture(params=["bit_atoms", "seen_bits"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module that holds the atoms: of short structures, or of long ones."""
    monkeypatch.setattr("sparsemarg.layers.solvers.kernels.compiled_rows.LONG", 1 if request.param == "seen_bits" else math.inf)
    return request.param


def solved(polytope: Polytope, scores: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled method finds the structures and weights of the plain one, and the same gradients."""
    upstream = torch.randn(scores.shape, dtype=scores.dtype, generator=torch.Generator().manual_seed(1))

    def gradient() -> Tensor:
        leaf = scores.clone().requires_grad_()
        return torch.autograd.grad((sparsemap(leaf, polytope).mean() * upstream).sum(), leaf)[0]

    fast, ours = ActiveSet().solve(scores, polytope), gradient()
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    plain, theirs = ActiveSet().solve(scores, polytope), gradient()
    assert torch.equal(fast.atoms, plain.atoms)
    torch.testing.assert_close(fast.probs, refit(scores, plain.atoms, plain.probs), atol=1e-11, rtol=0)
    assert torch.equal(fast.stats.iterations, plain.stats.iterations)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("kind")
def test_structures_of_three_words(monkeypatch: pytest.MonkeyPatch) -> None:
    polytope = Product(Budget(60, 20), Simplex(9), Budget(62, 31))
    solved(polytope, torch.randn(20, 131, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), monkeypatch)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("odd", [2.0, -1.0, 0.5])
def test_structures_of_which_only_the_first_are_bits(odd: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method starts with bits and has to begin again."""
    vertices = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [odd, 0, 0.25]], dtype=torch.float64)
    polytope = Explicit(vertices)
    scores = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = polytope.maximize(scores)
    scores = scores[((first == 0) | (first == 1)).all(-1)]
    found = ActiveSet().solve(scores, polytope)
    assert (found.atoms[found.probs > 0] == odd).any()
    solved(polytope, scores, monkeypatch)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    "polytope", [BernoulliCube(70), Budget(70, 20), Simplex(70), Product(Simplex(9), Budget(61, 5))], ids=repr
)
def test_only_rows_that_are_not_finite_are_broken(polytope: Polytope, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite score that nobody checked for is not passed over; finite ones whose sum is not are no harm."""
    scores = torch.randn(4, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[1, 3], scores[2, :8] = torch.inf, 8e307 * torch.tensor([1, 1, 1, 1, -1, -1, -1, -1])

    def converged() -> list[bool]:
        found = sparsemap(scores, polytope, solver=ActiveSet(max_iter=200), check=False).stats
        assert isinstance(found, SolverStats)
        return found.converged.tolist()

    ours = converged()
    assert not ours[1]
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert ours == converged()


@pytest.mark.parametrize("slots", [1, 8, 24])
def test_room_for_atoms_is_made_as_they_come(slots: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bits, however often; from memory that holds anything."""
    polytope, scores = Product(Simplex(9), Budget(62, 31)), torch.randn(9, 71, generator=torch.Generator().manual_seed(0))
    wanted = ActiveSet().solve(scores.double(), polytope)
    monkeypatch.setattr("sparsemarg.layers.solvers.kernels.compiled_rows.SLOTS", slots)

    def dirty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        return np.full(math.prod(shape) * np.dtype(dtype).itemsize, 255, np.uint8).view(dtype).reshape(shape)

    for module in ("compiled_rows", kind):
        monkeypatch.setattr(f"sparsemarg.layers.solvers.kernels.{module}.borrow", dirty)
    found = ActiveSet().solve(scores.double(), polytope)
    assert torch.equal(found.atoms, wanted.atoms)
    assert torch.equal(found.probs, wanted.probs)


@pytest.mark.usefixtures("kind")
def test_partly_regularised_bits_of_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Budget):
        regularized = slice(0, 70)

    polytope = Half(130, 40)
    scores = torch.randn(9, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = sparsemap(scores, polytope)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    torch.testing.assert_close(fast.mean(), sparsemap(scores, polytope).mean(), atol=1e-8, rtol=0)


def test_long_structures_are_the_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of several lengths, also with transitions that only score: the same packed atoms, weights and gradients."""
    for polytope in (LinearChain(9, 6), LinearChain(9, 6, regularize_transitions=False)):
        scores = torch.randn(12, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        scores = polytope.mask(3 * scores, torch.arange(12) % 9 + 1)
        found = []
        for long in (1, math.inf):
            monkeypatch.setattr("sparsemarg.layers.solvers.kernels.compiled_rows.LONG", long)
            leaf = scores.clone().requires_grad_()
            one = sparsemap(leaf, polytope, solver=ActiveSet())
            (gradient,) = torch.autograd.grad((one.probs * torch.arange(len(one.probs))).sum(), leaf)
            found.append((one, gradient))
        (long, pulled), (short, wanted) = found
        assert torch.equal(long.atoms, short.atoms)
        assert torch.equal(long.row, short.row)
        torch.testing.assert_close(long.probs, short.probs, atol=1e-12, rtol=0)
        torch.testing.assert_close(pulled, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparsemax_sees_every_broken_row(dtype: torch.dtype) -> None:
    """It looks at one entry of each row that comes out: wherever the cause is, that has to be NaN."""
    for count in (1, 2, 7, 8, 16, 33, 70):
        for value in (torch.nan, torch.inf):
            for place in range(count):
                scores = torch.randn(3, count, dtype=dtype, generator=torch.Generator().manual_seed(place))
                scores[1, place] = value
                with pytest.raises(ValueError, match="row 1"):
                    sparsemax(scores)
                with pytest.raises(ValueError, match="row 1"):
                    sparsemax(scores.T, 0)
        with pytest.raises(ValueError, match="-inf"):
            sparsemax(torch.full((3, count), -torch.inf, dtype=dtype))
