"""Compiled sorting and selection, and packed rows by their lengths, against NumPy."""

import numpy as np
import pytest
from sparsemarg.kernels import ordering, runs, selection

COUNTS = [0, 1, 7, 8, 9, 31, 100, 127, 128, 129, 256, 257, 700, 1500]


def numbers(count: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(count)
    drawn = generator.normal(size=count)
    if kind == "ties":
        drawn = generator.integers(-2, 3, size=count).astype(float)
    elif kind == "infinite":
        drawn = generator.choice([-np.inf, -1.0, 0.5, np.inf], size=count)
    return drawn


@pytest.mark.parametrize("kind", ["any", "ties", "infinite"])
@pytest.mark.parametrize("count", COUNTS)
def test_order_is_a_stable_sort(count: int, kind: str) -> None:
    """Of longer arrays, too: what lies behind the numbers does not matter."""
    drawn, length = numbers(count, kind), ordering.room(count) + ordering.room(5)
    values = np.full(length, -np.inf)
    values[:count] = drawn
    ranks, found = np.full(length, -7), np.full(count, -7)
    ordering.order(values, count, ranks, found)
    assert found.tolist() == np.argsort(drawn, kind="stable").tolist()
    assert values[:count].tolist() == drawn.tolist()


@pytest.mark.parametrize("kind", ["any", "ties", "infinite"])
@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (5, 0), (5, 5), (9, 4), (40, 3), (128, 9), (128, 100), (300, 17)])
def test_the_smallest_are_the_first_in_order(count: int, wanted: int, kind: str) -> None:
    values = numbers(count, kind)
    found = np.full(wanted, -7, np.int32)
    selection.smallest(values, selection.sieve_of(count, wanted), found)
    assert found.tolist() == np.argsort(values, kind="stable")[:wanted].tolist()


@pytest.mark.parametrize("kind", ["any", "ties", "infinite", "rising", "falling", "equal"])
@pytest.mark.parametrize("count", [1, 2, 3, 9, 100, 500])
def test_the_nth_largest(count: int, kind: str) -> None:
    alike = {"rising": np.arange(float(count)), "falling": -np.arange(float(count)), "equal": np.ones(count)}
    values = alike[kind] if kind in alike else numbers(count, kind)
    found = [selection.nth_largest(values.copy(), n) for n in range(1, count + 1)]
    assert found == sorted(values.tolist(), reverse=True)


@pytest.mark.parametrize("lengths", [[], [3], [0, 2, 0, 0, 1], [1] * 70])
def test_packed_rows(lengths: list[int]) -> None:
    number = np.array(lengths, np.int64)
    first = runs.first_of(number)
    assert first.tolist() == [0, *np.cumsum(number)]
    assert runs.row_of(first).tolist() == np.repeat(np.arange(len(number)), number).tolist()
    assert runs.none_empty(number) == all(lengths)
