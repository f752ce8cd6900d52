"""Symmetric matrices by half, compiled for the CPU: what is bound by memory goes through half of it.

A matrix of S = 8 n rows is the T = n (n + 1) / 2 tiles of its lower triangle, [T, 8, 8] float64, row after row of them; those
on the diagonal are whole. One more row of tiles leaves those before it where they are.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import INDEX, LANES, Lanes
from .vectors import UNCOUNTED, Array

SIDE = LANES


def tiles_of(size: int) -> int:
    """T, for so many rows."""
    return first_tile(-(-size // SIDE))


@numba.njit(inline="always")
def first_tile(block: int) -> int:
    """Where the tiles of a row of them begin."""
    return block * (block + 1) // 2


@numba.njit(cache=True, **UNCOUNTED)
def times(tiles: Array, vector: Array, out: Array) -> None:
    """out [S] = M x, for x [S]: every tile is read once, for its rows and for its columns."""
    _times(tiles, vector, out)  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **UNCOUNTED)
def add_square(tiles: Array, scale: float, vector: Array) -> None:
    """M += scale x x', for x [S]."""
    _add_square(tiles, scale, vector)  # pyright: ignore[reportCallIssue]


@numba.njit(cache=True, **UNCOUNTED)
def read_row(tiles: Array, row: int, out: Array) -> None:
    """out [S] = M[row]."""
    block, inside = row // SIDE, row % SIDE
    first = first_tile(block)
    for other in range(block + 1):
        for k in range(SIDE):
            out[SIDE * other + k] = tiles[first + other, inside, k]
    for other in range(block + 1, out.shape[0] // SIDE):
        for k in range(SIDE):
            out[SIDE * other + k] = tiles[first_tile(other) + block, k, inside]


@numba.njit(cache=True, **UNCOUNTED)
def clear_row(tiles: Array, row: int, size: int) -> None:
    """M[row] = 0 and M[:, row] = 0, for a matrix of `size` rows."""
    block, inside = row // SIDE, row % SIDE
    first = first_tile(block)
    for other in range(block + 1):
        for k in range(SIDE):
            tiles[first + other, inside, k] = 0.0
    for other in range(block, size // SIDE):
        for k in range(SIDE):
            tiles[first_tile(other) + block, k, inside] = 0.0


@numba.njit(cache=True, **UNCOUNTED)
def clear_block(tiles: Array, block: int) -> None:
    """Zeros in eight rows, 8 `block` and on, as far as the diagonal: a matrix grows by them."""
    first = first_tile(block)
    for other in range(block + 1):
        for i in range(SIDE):
            for k in range(SIDE):
                tiles[first + other, i, k] = 0.0


@numba.njit(cache=True)
def put(matrix: Array, tiles: Array) -> None:
    """M = matrix [S, S]."""
    for block in range(matrix.shape[0] // SIDE):
        for other in range(block + 1):
            tiles[first_tile(block) + other] = matrix[SIDE * block : SIDE * (block + 1), SIDE * other : SIDE * (other + 1)]


@intrinsic
def _times(context: Any, tiles: Any, vector: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
    """`times`: while a row of tiles is gone through, the sums of its eight rows stay in registers."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        matrix, given, result = (lanes.array(kind, value) for kind, value in zip(signature.args, arguments, strict=True))
        place = cgutils.alloca_once_value(builder, INDEX(0))

        def tile_row(i: int) -> Any:
            return lanes.load(matrix.data, builder.add(builder.load(place), INDEX(SIDE * i)))

        def next_tile() -> None:
            builder.store(builder.add(builder.load(place), INDEX(SIDE * SIDE)), place)

        with cgutils.for_range(builder, lanes.blocks(given, 0)) as rows:
            sums = lanes.variables(SIDE)
            with cgutils.for_range(builder, rows.index) as columns:
                start = lanes.place(columns.index)
                x, below = (
                    lanes.load(given.data, start),
                    [lanes.load(result.data, start), lanes.zeros],
                )  # two: shorter to wait for
                for i, sum_ in enumerate(sums):
                    here, factor = tile_row(i), lanes.load_repeated(given.data, lanes.place(rows.index, i))
                    builder.store(lanes.add_product(here, x, builder.load(sum_)), sum_)
                    below[i % 2] = lanes.add_product(here, factor, below[i % 2])
                lanes.store(builder.fadd(*below), result.data, start)
                next_tile()
            start = lanes.place(rows.index)
            x = lanes.load(given.data, start)
            whole = [lanes.add_product(tile_row(i), x, builder.load(sum_)) for i, sum_ in enumerate(sums)]
            lanes.store(lanes.totals(whole), result.data, start)
            next_tile()
        return c.get_dummy_value()

    return types.void(tiles, vector, out), generate


@intrinsic
def _add_square(context: Any, tiles: Any, scale: Any, vector: Any) -> tuple[Any, Callable[..., Any]]:
    """`add_square`."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder)
        matrix, given = lanes.array(signature.args[0], arguments[0]), lanes.array(signature.args[2], arguments[2])
        place, scaled = cgutils.alloca_once_value(builder, INDEX(0)), lanes.repeat(arguments[1])
        with cgutils.for_range(builder, lanes.blocks(given, 0)) as rows:
            shares = [builder.fmul(scaled, lanes.load_repeated(given.data, lanes.place(rows.index, i))) for i in range(SIDE)]
            with cgutils.for_range(builder, builder.add(rows.index, INDEX(1))) as columns:
                x = lanes.load(given.data, lanes.place(columns.index))
                for share in shares:
                    here = builder.load(place)
                    lanes.store(lanes.add_product(share, x, lanes.load(matrix.data, here)), matrix.data, here)
                    builder.store(builder.add(here, INDEX(SIDE)), place)
        return c.get_dummy_value()

    return types.void(tiles, types.float64, vector), generate
