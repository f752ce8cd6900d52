"""What the pixel likelihood does to the logits of four pixels, in vectors of 16 levels; levels are padded to whole vectors.

Four pixels, because what they share, the head and its derivatives, is then read and written once for all of them. Logits are in
bits, log2 e times those in nats: a power of two is cheaper than one of e.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial

from ...kernels.lanes import SHORT, SINGLE, Lanes

PIXELS = 4
LEVELS = 16
# Sums of products that are kept in registers: those of as many ranks, for each pixel.
RANKS = 5

# 2^y on -1 <= y <= 0: within 8e-8, relative, of the polynomial that interpolates it at Chebyshev's points.
TERMS = Chebyshev.interpolate(lambda y: 2.0**y, 5, domain=[-1, 0]).convert(kind=Polynomial).coef.tolist()
# Masses are at least 2^-100: nothing beside the largest, 1, and their products with weights are normal numbers still. From
# 2^-126 they are not, and arithmetic takes a hundred times as long.
LEAST = -100.0
MANTISSA_BITS = 23


@intrinsic
def find_logits(
    context: Any, ranks: Any, features: Any, weight: Any, bias: Any, logits: Any, peaks: Any
) -> tuple[Any, Callable[..., Any]]:
    """logits[p] = features[p] weight + bias, [4, L], and the largest of each pixel, [4], for features [4, rank]."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, SINGLE)
        given, slopes, start, result, largest = _arrays(lanes, signature, arguments)
        pixels, weights = lanes.rows(result, PIXELS), lanes.rows(slopes, len(ranks))
        shares = [[lanes.load_repeated(row, r) for row in lanes.rows(given, PIXELS)] for r in range(len(ranks))]
        found = lanes.variables(PIXELS, lanes.constant(float("-inf")))
        with cgutils.for_range(builder, lanes.blocks(start, 0)) as levels:
            place = lanes.place(levels.index)
            here = [lanes.load(start.data, place)] * PIXELS
            for row, share in zip(weights, shares, strict=True):
                slope = lanes.load(row, place)
                here = [lanes.add_product(slope, factor, logit) for factor, logit in zip(share, here, strict=True)]
            for pixel, logit, peak in zip(pixels, here, found, strict=True):
                lanes.store(logit, pixel, place)
                builder.store(lanes.maximum(builder.load(peak), logit), peak)
        for p, peak in enumerate(found):
            lanes.store_entry(lanes.largest(builder.load(peak)), largest.data, p)
        return c.get_dummy_value()

    return types.void(ranks, features, weight, bias, logits, peaks), generate


@intrinsic
def exponentiate(context: Any, logits: Any, peaks: Any, totals: Any) -> tuple[Any, Callable[..., Any]]:
    """logits[p] = 2^(logits[p] - peaks[p]) in place, [4, L], and their sums, [4]."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, SINGLE)
        masses, largest, result = _arrays(lanes, signature, arguments)
        pixels, shifts = lanes.rows(masses, PIXELS), [lanes.load_repeated(largest.data, p) for p in range(PIXELS)]
        sums = lanes.variables(PIXELS)
        with cgutils.for_range(builder, lanes.blocks(masses, 1)) as levels:
            place = lanes.place(levels.index)
            for pixel, shift, sum_ in zip(pixels, shifts, sums, strict=True):
                mass = _power_of_two(lanes, builder.fsub(lanes.load(pixel, place), shift))
                lanes.store(mass, pixel, place)
                lanes.update(sum_, mass)
        for p, sum_ in enumerate(sums):
            lanes.store_entry(lanes.total(builder.load(sum_)), result.data, p)
        return c.get_dummy_value()

    return types.void(logits, peaks, totals), generate


@intrinsic
def find_products(context: Any, ranks: Any, masses: Any, weight: Any, products: Any) -> tuple[Any, Callable[..., Any]]:
    """products[p] = weight masses[p], [4, rank], for masses [4, L]."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, SINGLE)
        given, slopes, result = _arrays(lanes, signature, arguments)
        pixels, weights, into = lanes.rows(given, PIXELS), lanes.rows(slopes, len(ranks)), lanes.rows(result, PIXELS)
        for first in range(0, len(ranks), RANKS):
            some = weights[first : first + RANKS]
            sums = [lanes.variables(PIXELS) for _ in some]
            with cgutils.for_range(builder, lanes.blocks(given, 1)) as levels:
                place = lanes.place(levels.index)
                here = [lanes.load(pixel, place) for pixel in pixels]
                for row, totals in zip(some, sums, strict=True):
                    slope = lanes.load(row, place)
                    for mass, sum_ in zip(here, totals, strict=True):
                        builder.store(lanes.add_product(slope, mass, builder.load(sum_)), sum_)
            for r, totals in enumerate(sums, first):
                for row, sum_ in zip(into, totals, strict=True):
                    lanes.store_entry(lanes.total(builder.load(sum_)), row, r)
        return c.get_dummy_value()

    return types.void(ranks, masses, weight, products), generate


@intrinsic
def add_outer(context: Any, ranks: Any, shares: Any, masses: Any, into: Any) -> tuple[Any, Callable[..., Any]]:
    """into += sum_p shares[p] masses[p]', [rank + 1, L], for shares [4, rank + 1] and masses [4, L]."""

    def generate(c: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Lanes(c, builder, SINGLE)
        given, levels_of, result = _arrays(lanes, signature, arguments)
        pixels, rows = lanes.rows(levels_of, PIXELS), lanes.rows(result, len(ranks) + 1)
        factors = [[lanes.load_repeated(share, r) for share in lanes.rows(given, PIXELS)] for r in range(len(rows))]
        with cgutils.for_range(builder, lanes.blocks(levels_of, 1)) as levels:
            place = lanes.place(levels.index)
            here = [lanes.load(pixel, place) for pixel in pixels]
            for row, share in zip(rows, factors, strict=True):
                sum_ = lanes.load(row, place)
                for factor, mass in zip(share, here, strict=True):
                    sum_ = lanes.add_product(factor, mass, sum_)
                lanes.store(sum_, row, place)
        return c.get_dummy_value()

    return types.void(ranks, shares, masses, into), generate


def _arrays(lanes: Lanes, signature: Any, arguments: Any) -> list[Any]:
    """The arguments that are arrays; ranks are a tuple, of which the length is known when this is compiled."""
    given = zip(signature.args, arguments, strict=True)
    return [lanes.array(kind, value) for kind, value in given if isinstance(kind, types.Array)]


def _power_of_two(lanes: Lanes, x: Any) -> Any:
    """2^x for x <= 0, no less than 2^LEAST: 2^k 2^y with k = x cut off, -1 < y <= 0, and k added to the exponent's bits."""
    builder = lanes.builder
    x = lanes.maximum(x, lanes.constant(LEAST))
    k = builder.fptosi(x, lanes.integers)
    y = builder.fsub(x, builder.sitofp(k, lanes.vector))
    power = lanes.constant(TERMS[-1])
    for term in TERMS[-2::-1]:
        power = lanes.add_product(power, y, lanes.constant(term))
    shift = ir.Constant(lanes.integers, [SHORT(MANTISSA_BITS)] * lanes.count)
    return builder.bitcast(builder.add(builder.bitcast(power, lanes.integers), builder.shl(k, shift)), lanes.vector)
