"""The projection on a polytope in rational arithmetic: no rounding, whatever the size of the scores. For few structures."""

from fractions import Fraction
from itertools import combinations

import torch
from torch import Tensor

Vector = list[Fraction]


def projection(structures: Tensor, scores: Tensor) -> Tensor:
    """argmin ||mu - t||^2 over conv(structures [V, D]) for one row t [D]: the supports are tried, smallest first."""
    vertices, target = ([[Fraction(float(x)) for x in row] for row in rows] for rows in (structures, scores[None]))
    gram = [[_dot(one, other) for other in vertices] for one in vertices]
    totals = [_dot(vertex, target[0]) for vertex in vertices]
    for count in range(1, len(vertices) + 1):
        for support in combinations(range(len(vertices)), count):
            # G w + tau = totals on the support, and sum w = 1.
            system = [[*(gram[i][j] for j in support), Fraction(1), totals[i]] for i in support]
            found = _solved([*system, [*[Fraction(1)] * count, Fraction(0), Fraction(1)]])
            if found is None or min(found[:-1]) < 0:
                continue
            weights = list(zip(found[:-1], support, strict=True))
            if all(total - sum(w * gram[i][j] for w, j in weights) <= found[-1] for i, total in enumerate(totals)):
                mean = [sum(w * vertices[j][d] for w, j in weights) for d in range(len(scores))]
                return torch.tensor([float(x) for x in mean], dtype=torch.float64)
    raise AssertionError("every row has a projection")


def _dot(one: Vector, other: Vector) -> Fraction:
    return sum((x * y for x, y in zip(one, other, strict=True)), Fraction(0))


def _solved(system: list[Vector]) -> Vector | None:
    """The solution of linear equations [n, n + 1], by elimination; None if there is not just one."""
    for column in range(len(system)):
        pivot = next((row for row in range(column, len(system)) if system[row][column]), None)
        if pivot is None:
            return None
        system[column], system[pivot] = system[pivot], system[column]
        first = [x / system[column][column] for x in system[column]]
        system = [
            first if row == column else [x - equation[column] * y for x, y in zip(equation, first, strict=True)]
            for row, equation in enumerate(system)
        ]
    return [equation[-1] for equation in system]
