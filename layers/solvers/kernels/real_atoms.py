"""The atoms of the compiled active set method where structures are not all 0/1: vectors relative to the origin, in units.

What `atoms` names is compiled as a part of what calls it.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ....kernels.sums import add_up, dot
from ....kernels.vectors import UNCOUNTED, Array, maximum
from ....kernels.workspace import borrow, give_back
from ....oracles import Parts
from .row_algebra import add_combination, products


class Reals(NamedTuple):
    """The atoms of every row, as in `tensor_rows.TensorRows`."""

    target: Array  # [B, R]
    prices: Array  # [B, D - R]
    unit: Array  # [B]
    regularized: Array  # [R] int64
    rest: Array  # [D - R] int64
    atoms: Array  # [B, S, R] the atoms where they are regularised; anything in slots beyond `high`
    vertices: Array  # [B, S, D] the atoms as the oracle gave them; likewise
    gains: Array  # [B, S] <a_s, t> where they are not regularised
    mean: Array  # [B, R]
    reach: Array  # [B, R]
    reach_of_rest: Array  # [B, D - R]


class RealScratch(NamedTuple):
    """What is computed of one row at a time."""

    answer: Array  # [D] the oracle's
    residual: Array  # [R] t - A p
    found: Array  # [R] the answer, relative to the origin and in units
    rest: Array  # [R] what is left of it


class RealStructures(NamedTuple):
    """The structures of supports, N in all."""

    atoms: Array  # [N, D]


def units(origin: Tensor) -> Tensor:
    """[B] powers of two: of the largest coordinate of each origin [B, D]; 1 for 0/1 structures."""
    largest = origin.abs().amax(-1)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1), 1)


def begin(target: Tensor, origin: Tensor, parts: Parts | None, slots: int) -> Reals:
    """Of scores [B, D] and their origin [B, D], with the origin as the only atom and room for `slots`."""
    unit, every = units(origin), torch.arange(origin.shape[1])
    regularized, rest = (every, every[:0]) if parts is None else (parts.regularized, parts.rest)
    relative, prices = ((target - origin) / unit[:, None])[:, regularized], (target / unit[:, None])[:, rest]
    fixed = (tensor.contiguous().numpy() for tensor in (relative, prices, unit, regularized, rest))
    batch, dim, width = *origin.shape, len(regularized)
    made = Reals(
        *fixed,
        atoms=borrow((batch, slots, width), np.float64),
        vertices=borrow((batch, slots, dim), np.float64),
        gains=np.zeros((batch, slots)),
        mean=np.zeros((batch, width)),
        reach=np.zeros((batch, width)),
        reach_of_rest=np.zeros((batch, dim - width)),
    )
    made.atoms[:, 0], made.vertices[:, 0] = 0, origin.numpy()
    return made


def scratch(state: Reals) -> RealScratch:
    """Of anything."""
    return RealScratch(np.empty(state.vertices.shape[2]), *np.empty((3, state.target.shape[1])))


def structures(count: int, state: Reals) -> RealStructures:
    """Room for so many, 0."""
    return RealStructures(np.zeros((count, state.vertices.shape[2])))


def wider(state: Reals, slots: int) -> Reals:
    """The same with room for `slots` atoms."""
    before = state.gains.shape[1]

    def moved(old: Array) -> Array:
        new = borrow((len(old), slots, old.shape[2]), np.float64)
        new[:, :before] = old
        return new

    atoms, vertices = moved(state.atoms), moved(state.vertices)
    release(state)
    return state._replace(atoms=atoms, vertices=vertices, gains=np.pad(state.gains, ((0, 0), (0, slots - before))))


def atoms(row: int, slots: Array, state: Reals) -> Array:
    """Those of a row in some slots, [n, R] float64."""
    return state.atoms[row, slots]


def release(state: Reals) -> None:
    """Gives the memory back."""
    give_back(state.atoms)
    give_back(state.vertices)


def few_change(state: Reals) -> bool:
    """All may change."""
    return False


def places(row: int, state: Reals) -> int:
    """Not asked for."""
    return 0


def coordinate(row: int, place: int, state: Reals) -> int:
    """Likewise."""
    return place


def gradient(row: int, anew: bool, origin: Array, state: Reals, out: Array) -> None:
    """No longer in units."""
    unit = state.unit[row]
    for r in range(state.regularized.shape[0]):
        out[state.regularized[r]] = (state.target[row, r] - state.mean[row, r]) * unit
    for r in range(state.rest.shape[0]):
        out[state.rest[r]] = state.prices[row, r] * unit


def see_mean(row: int, state: Reals, scratch: RealScratch) -> None:
    """Fills in `residual`."""
    for r in range(scratch.residual.shape[0]):
        scratch.residual[r] = state.target[row, r] - state.mean[row, r]


def take(row: int, vertex: Array, origin: Array, state: Reals, scratch: RealScratch) -> None:
    """As it comes."""
    for d in range(vertex.shape[0]):
        scratch.answer[d] = vertex[d]


def relate(row: int, origin: Array, state: Reals, scratch: RealScratch) -> tuple[float, float, float]:
    """Fills in `residual` and `found`."""
    vertex = scratch.answer
    if state.rest.shape[0] == 0:
        one = 1.0 / state.unit[row]  # exact, as units are powers of two
        reach, residual, found = state.reach[row], scratch.residual, scratch.found
        _relate_all(vertex, origin[row], one, state.target[row], state.mean[row], reach, residual, found, scratch.rest)
        terms = add_up(scratch.rest)
        return dot(residual, found, found.shape[0]), 0.0, terms
    unit = state.unit[row]
    gain, terms = 0.0, 0.0
    for r in range(state.regularized.shape[0]):
        target, d = state.target[row, r], state.regularized[r]
        value = (vertex[d] - origin[row, d]) / unit
        scratch.found[r], scratch.residual[r] = value, target - state.mean[row, r]
        state.reach[row, r] = max(state.reach[row, r], abs(value))
        terms += (abs(target) + state.reach[row, r]) * state.reach[row, r]
    for r in range(state.rest.shape[0]):
        price, d = state.prices[row, r], state.rest[r]
        value = (vertex[d] - origin[row, d]) / unit
        gain += value * price
        state.reach_of_rest[row, r] = max(state.reach_of_rest[row, r], abs(value))
        terms += abs(price) * state.reach_of_rest[row, r]
    return dot(scratch.residual, scratch.found, scratch.found.shape[0]) + gain, gain, terms


@numba.njit(error_model="numpy", cache=True, **UNCOUNTED)
def _relate_all(
    vertex: Array,
    origin: Array,
    per_unit: float,
    target: Array,
    mean: Array,
    reach: Array,
    residual: Array,
    found: Array,
    terms: Array,
) -> None:
    """`relate` where all coordinates are regularised, with the size of each term."""
    for r in range(vertex.shape[0]):
        value = (vertex[r] - origin[r]) * per_unit
        found[r] = value
        residual[r] = target[r] - mean[r]
        reach[r] = maximum(reach[r], abs(value))  # pyright: ignore[reportCallIssue]
        terms[r] = (abs(target[r]) + reach[r]) * reach[r]


def slopes(row: int, on: Array, state: Reals, scratch: RealScratch, out: Array) -> None:
    """Of the residual in `scratch`."""
    gains, residual = state.gains[row], scratch.residual
    products(state.atoms[row], on, residual, residual.shape[0], out)
    for s in range(on.shape[0]):
        out[s] += gains[s] if on[s] else 0.0


def compare(row: int, on: Array, state: Reals, scratch: RealScratch, out: Array) -> float:
    """Inner products of vectors."""
    found = scratch.found
    products(state.atoms[row], on, found, found.shape[0], out)
    return dot(found, found, found.shape[0])


def distance(row: int, weights: Array, state: Reals, scratch: RealScratch) -> float:
    """In units."""
    rest = scratch.rest
    for r in range(rest.shape[0]):
        rest[r] = scratch.found[r]
    for s in range(weights.shape[0]):
        if weights[s] != 0.0:
            for r in range(rest.shape[0]):
                rest[r] -= weights[s] * state.atoms[row, s, r]
    return dot(rest, rest, rest.shape[0])


def put(row: int, slot: int, gain: float, state: Reals, scratch: RealScratch) -> None:
    """What was found, and the answer as it came."""
    for r in range(scratch.found.shape[0]):
        state.atoms[row, slot, r] = scratch.found[r]
    for d in range(scratch.answer.shape[0]):
        state.vertices[row, slot, d] = scratch.answer[d]
    state.gains[row, slot] = gain


def move(row: int, weights: Array, state: Reals, scratch: RealScratch) -> None:
    """Keeps the mean."""
    mean = state.mean[row]
    mean[:] = 0.0
    add_combination(mean, 1.0, weights, state.atoms[row])


def square_unit(row: int, state: Reals) -> float:
    """Of this row."""
    return state.unit[row] * state.unit[row]


def write(
    row: int,
    on: Array,
    weights: Array,
    place: int,
    origin: Array,
    state: Reals,
    scratch: RealScratch,
    mean: Array,
    into: RealStructures,
) -> None:
    """As the oracle gave them."""
    mean[:] = 0.0
    add_combination(mean, 1.0, weights, state.vertices[row])
    for s in range(on.shape[0]):
        if on[s]:
            for d in range(mean.shape[0]):
                into.atoms[place, d] = state.vertices[row, s, d]
            place += 1
