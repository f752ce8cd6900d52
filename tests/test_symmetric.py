"""Symmetric matrices by half, against NumPy on the whole ones."""

import numpy as np
import pytest
from sparsemarg.kernels import symmetric

SIZES = [8, 16, 40]


def a_matrix(size: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """A symmetric matrix, whole and in tiles with room for one more row of them, which holds NaN."""
    generator = np.random.default_rng(size)
    whole = generator.normal(size=(size, size))
    whole += whole.T
    tiles = np.full((symmetric.tiles_of(size + symmetric.SIDE), symmetric.SIDE, symmetric.SIDE), np.nan)
    symmetric.put(whole, tiles)
    return whole, tiles, generator


def in_full(tiles: np.ndarray, size: int) -> np.ndarray:
    """The matrix [S, S] of these tiles, looked up entry by entry."""

    def entry(i: int, k: int) -> float:
        (block, inside), (other, there) = divmod(i, symmetric.SIDE), divmod(k, symmetric.SIDE)
        if block < other:
            return entry(k, i)
        return tiles[block * (block + 1) // 2 + other, inside, there]

    return np.array([[entry(i, k) for k in range(size)] for i in range(size)])


def test_how_many_tiles() -> None:
    assert [symmetric.tiles_of(size) for size in (0, 1, 8, 9, 16, 17, 24)] == [0, 1, 1, 3, 3, 6, 6]


@pytest.mark.parametrize("size", SIZES)
def test_times_a_vector(size: int) -> None:
    whole, tiles, generator = a_matrix(size)
    vector, out = generator.normal(size=size), np.full(size, np.nan)
    symmetric.times(tiles, vector, out)
    np.testing.assert_allclose(out, whole @ vector, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_square_is_added(size: int) -> None:
    whole, tiles, generator = a_matrix(size)
    vector = generator.normal(size=size)
    symmetric.add_square(tiles, -0.7, vector)
    np.testing.assert_allclose(in_full(tiles, size), whole - 0.7 * np.outer(vector, vector), rtol=0, atol=1e-12)
    assert np.isnan(tiles[symmetric.tiles_of(size) :]).all()


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_read_and_cleared(size: int) -> None:
    whole, tiles, _ = a_matrix(size)
    out = np.full(size, np.nan)
    for row in range(size):
        symmetric.read_row(tiles, row, out)
        assert out.tolist() == whole[row].tolist()
    for row in (size // 3, size - 1, 0):
        symmetric.clear_row(tiles, row, size)
        whole[row], whole[:, row] = 0, 0
        assert in_full(tiles, size).tolist() == whole.tolist()
    assert np.isnan(tiles[symmetric.tiles_of(size) :]).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_matrix_grows_in_place(size: int) -> None:
    whole, tiles, _ = a_matrix(size)
    symmetric.clear_block(tiles, size // symmetric.SIDE)
    assert in_full(tiles, size + symmetric.SIDE).tolist() == np.pad(whole, (0, symmetric.SIDE)).tolist()
