"""Sums over packed atoms compiled for the CPU: each atom is read once, and nothing of the size of the atoms is written."""

import math

import numba
import numpy as np

from ...kernels.vectors import Array


@numba.njit(nogil=True, error_model="numpy", cache=True)
def combine(probs: Array, atoms: Array, first: Array, means: Array) -> None:
    """means_b = sum_n probs[n] atoms[n] over first[b] <= n < first[b + 1], added up in this order: [N], [N, D] -> [B, D]."""
    for row in range(means.shape[0]):
        means[row] = 0
        for n in range(first[row], first[row + 1]):
            for place in range(means.shape[1]):
                means[row, place] += probs[n] * atoms[n, place]


@numba.njit(fastmath={"reassoc", "contract"}, nogil=True, error_model="numpy", cache=True)
def compare(values: Array, atoms: Array, first: Array, products: Array) -> None:
    """products[n] = <atoms[n], values_b> for first[b] <= n < first[b + 1]: [B, D], [N, D] -> [N]."""
    for row in range(values.shape[0]):
        for n in range(first[row], first[row + 1]):
            total = atoms.dtype.type(0)
            for place in range(values.shape[1]):
                total += values[row, place] * atoms[n, place]
            products[n] = total


@numba.njit(nogil=True, error_model="numpy", cache=True)
def entropies(probs: Array, first: Array, found: Array, slopes: Array) -> None:
    """found_b = -sum_n p log p over first[b] <= n < first[b + 1] and its derivatives -(log p + 1): [N] -> [B], [N]."""
    least, one = np.finfo(probs.dtype).tiny, probs.dtype.type(1)
    for row in range(found.shape[0]):
        found[row] = 0
        for n in range(first[row], first[row + 1]):
            value = math.log(least if probs[n] < least else probs[n])
            found[row] -= probs[n] * value
            slopes[n] = -(value + one)
