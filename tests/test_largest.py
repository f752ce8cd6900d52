"""Largest sums in vector instructions, against NumPy: for whole and for broken vectors."""

from itertools import product

import numpy as np
import pytest
from sparsemarg.kernels.largest import VECTOR, WHOLE, larger_sums, largest_steps, largest_sums

COUNTS = [1, 7, 8, 9, 16, 17, 40]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_sums(dtype: type, count: int) -> None:
    """With and without a base, of as many terms as there may be, some of them `-inf`; forwards and backwards."""
    generator, width = np.random.default_rng(count), count + WHOLE
    one, other = generator.normal(size=(2, 6, width)).astype(dtype)
    one[generator.random(one.shape) < 0.3] = -np.inf
    base, found = generator.normal(size=width).astype(dtype), np.empty(width, dtype)
    for terms in (0, 1, 5):
        sums = one[1 : 1 + terms, :count], np.array([other[5 - k, k : k + count] for k in range(terms)]).reshape(terms, count)
        for own in (None, base):
            wanted = (sums[0] if own is None else own[:count] + sums[0]) + sums[1]
            largest_sums(own, one.ravel(), width, width, other.ravel(), 5 * width, 1 - width, terms, found, count)
            assert found[:count].tolist() == wanted.max(0, initial=-np.inf).tolist()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_larger_sums(dtype: type, count: int) -> None:
    least, other = np.random.default_rng(count).normal(size=(2, count + WHOLE)).astype(dtype)
    found, more = np.empty(count + WHOLE, dtype), dtype(0.3)
    larger_sums(least, more, other, found, count)
    assert found[:count].tolist() == np.maximum(least, more + other)[:count].tolist()
    larger_sums(least, dtype(-np.inf), other, found, count)
    assert found[:count].tolist() == least[:count].tolist()


@pytest.mark.parametrize(("dtype", "count"), [(np.float64, 8), *product((np.float32, np.float64), (16, 17, 20, 33, 40))])
def test_largest_steps(dtype: type, count: int) -> None:
    """Nothing is read or written beyond: NaN stands there, and a mark."""
    assert count * np.dtype(dtype).itemsize >= VECTOR
    generator = np.random.default_rng(count)
    for terms in (0, 1, 5):
        base, before = generator.normal(size=count).astype(dtype), generator.normal(size=terms).astype(dtype)
        one = generator.normal(size=(terms, count)).astype(dtype)
        one[generator.random(one.shape) < 0.3] = -np.inf
        around = np.full(count * terms + 40, np.nan, dtype)
        around[20 : 20 + count * terms] = one.ravel()
        own, found = np.full(count + 20, np.nan, dtype), np.full(count + 20, 7, dtype)
        own[:count] = base
        largest_steps(own[:count], around, 20, before, found[:count])
        wanted = (base + one + before[:, None]).max(0, initial=-np.inf)
        assert found.tolist() == [*wanted.tolist(), *[7] * 20]
