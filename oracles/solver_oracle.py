"""A polytope from any solver: OR-Tools, networkx, a mixed-integer programme."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Halfspaces, Polytope
from .checks import as_numbers, check_count, check_rows, outside_transforms

# Solvers of integer programmes return integers up to about 1e-6.
_TOLERANCE = 1e-5


class OracleFromSolver(Polytope):
    """conv of the structures that a solver chooses from: `maximize` calls it, and checks what it returns.

    Structures are bit vectors unless `vertices` lists others. What a solver returns is rounded to them (integer programmes
    are solved up to about 1e-6, and so are the constraints of `halfspaces`); what is further off is an error that names the
    problem of the batch. Structures that were returned are kept: `seen` lists them, e.g. for `Explicit(oracle.seen())`.

    Has `vertices` and `halfspaces` where they are given.

    Ties are the solver's: it must return the same structure for the same scores.

    Args:
        solver: scores -> a structure of largest <scores, structure>: NumPy float64 [D] -> anything that becomes an array [D];
            with `batched`, [B, D] -> [B, D]. With `numpy=False` it is given tensors, on the device of the scores, and returns
            them. Solvers of this library never give it `-inf`, but numbers low enough to forbid a coordinate.
        dim: D.
        batched: whether the solver takes all problems of a batch at once; one call for each otherwise.
        numpy: whether it works on arrays.
        vertices: [V, D] all structures, where they are not bit vectors, or to check against.
        halfspaces: constraints that structures satisfy, to check against.
        keep: how many different structures `seen` keeps, the first ones.

    Raises:
        ValueError: `vertices` or `halfspaces` that are no numbers of that width, or not finite.

    >>> def best_pair(scores):  # two neighbours of four
    ...     first = int(np.argmax(scores[:-1] + scores[1:]))
    ...     return [float(first <= i <= first + 1) for i in range(4)]
    >>> OracleFromSolver(best_pair, 4).maximize(torch.tensor([[0.0, 1, 3, 1]]))
    tensor([[0., 1., 1., 0.]])
    """

    def __init__(
        self,
        solver: Callable[[Any], Any],
        dim: int,
        *,
        batched: bool = False,
        numpy: bool = True,
        vertices: Tensor | None = None,
        halfspaces: Halfspaces | None = None,
        keep: int = 100_000,
    ) -> None:
        self.dim = check_count("OracleFromSolver: dim", dim, 1)
        self._keep = check_count("OracleFromSolver: keep", keep, 0)
        if not callable(solver):
            raise ValueError(f"OracleFromSolver: solver must be a function of scores, not {solver!r}")
        self._solver, self._batched, self._numpy = solver, batched, numpy
        self._vertices = None if vertices is None else _reference("vertices", vertices, (None, self.dim))
        if self._vertices is not None and len(self._vertices) == 0:
            raise ValueError("OracleFromSolver: vertices must list one or more structures; leave it out for bit vectors")
        self._constraints = None if halfspaces is None else _constraints(halfspaces, self.dim)
        self._seen: dict[bytes, Tensor] = {}

    def __repr__(self) -> str:
        return f"OracleFromSolver({getattr(self._solver, '__name__', type(self._solver).__name__)}, dim={self.dim})"

    def maximize(self, scores: Tensor) -> Tensor:
        """What the solver returns for each row, checked.

        Raises:
            ValueError: the solver fails, or returns another shape, NaN, a fractional point, or one that is no structure.
                Whether it is the best is not checked: a solver that minimises goes unnoticed here; `verify` finds it out.
        """
        with outside_transforms(scores, "OracleFromSolver.maximize") as values:
            return self._solved(values)

    def _solved(self, scores: Tensor) -> Tensor:
        check_rows(scores, self.dim)
        if len(scores) == 0:
            return scores.clone()
        given = scores.resolve_neg().double().cpu() if self._numpy else scores  # one copy from a GPU
        if self._batched:
            found = self._tensor(self._call(given, None), tuple(given.shape), "all problems together")
        else:
            rows = [self._tensor(self._call(row, place), (self.dim,), place) for place, row in enumerate(given)]
            found = torch.stack(rows)
        structures = self._structures(found.double().cpu())
        for row in structures:
            if len(self._seen) < self._keep:
                self._seen.setdefault(row.numpy().tobytes(), row)
        return structures.to(scores)

    def seen(self) -> Tensor:
        """The different structures returned so far, in the order of their first time: [V, D] float64."""
        return torch.stack([*self._seen.values()]) if self._seen else torch.zeros(0, self.dim, dtype=torch.float64)

    @property
    def vertices(self) -> Callable[[], Tensor]:
        """The structures as given, [V, D] float64."""
        listed = self._vertices
        if listed is None:
            raise AttributeError(f"{self!r} has no vertices: none were given", name="vertices", obj=self)
        return lambda: listed.clone()

    @property
    def halfspaces(self) -> Callable[[], Halfspaces]:
        """The constraints as given."""
        constraints = self._constraints
        if constraints is None:
            raise AttributeError(f"{self!r} has no halfspaces: none were given", name="halfspaces", obj=self)
        return lambda: constraints

    def _call(self, scores: Tensor, place: int | None) -> Any:
        problem = "the batch" if place is None else f"problem {place}"
        try:
            found = self._solver(scores.numpy().copy() if self._numpy else scores.clone())
        except Exception as error:
            raise ValueError(f"{self!r}: the solver failed on {problem}: {type(error).__name__}: {error}") from error
        if found is None:
            raise ValueError(f"{self!r}: the solver returned None for {problem}; it must return a structure: is there none?")
        return found

    def _tensor(self, found: Any, shape: tuple[int, ...], place: int | str) -> Tensor:
        problem = place if isinstance(place, str) else f"problem {place}"
        try:
            if found.is_complex() if isinstance(found, Tensor) else np.iscomplexobj(found):
                raise TypeError
            values = found if isinstance(found, Tensor) else torch.from_numpy(np.array(found, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self!r}: the solver returned no numbers for {problem}, but {found!r}") from error
        if tuple(values.shape) != shape:
            raise ValueError(
                f"{self!r}: the solver must return {list(shape)} numbers for {problem}, but returned {list(values.shape)}"
            )
        return values.detach().clone()  # a solver may use its output's memory again

    def _structures(self, found: Tensor) -> Tensor:
        """The structures that rows [B, D] are, up to the solver's tolerance."""
        self._refuse(~found.isfinite().all(-1), found, "which is not finite")
        if self._vertices is not None:
            distance, nearest = (found[:, None] - self._vertices).abs().amax(-1).min(-1)
            self._refuse(distance > _TOLERANCE, found, "which is none of the vertices")
            structures = self._vertices[nearest]
        else:
            structures = found.round() + 0.0  # no -0
            bits = ((structures == 0) | (structures == 1)) & ((found - structures).abs() <= _TOLERANCE)
            self._refuse(
                ~bits.all(-1),
                found,
                "which is not a vector of 0s and 1s; give `vertices` if structures are not, or solve it "
                "as an integer programme",
            )
        if self._constraints is not None:
            limits = self._constraints
            over = structures @ limits.a_ub.T - limits.b_ub
            self._refuse((over > _TOLERANCE).any(-1), structures, "which violates `halfspaces`: a_ub x <= b_ub does not hold")
            off = (structures @ limits.a_eq.T - limits.b_eq).abs()
            self._refuse((off > _TOLERANCE).any(-1), structures, "which violates `halfspaces`: a_eq x = b_eq does not hold")
        return structures

    def _refuse(self, wrong: Tensor, found: Tensor, why: str) -> None:
        if wrong.any():
            place = int(wrong.nonzero()[0])
            shown = ", ".join(f"{value:g}" for value in found[place, :10].tolist()) + (", ..." if self.dim > 10 else "")
            raise ValueError(f"{self!r}: for problem {place} the solver returned [{shown}], {why}")


def _reference(name: str, given: Any, shape: tuple[int | None, ...]) -> Tensor:
    """A table to check against, in float64 on the CPU; None in the shape for any number of rows."""
    try:
        table = as_numbers(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"OracleFromSolver: {name} must be a tensor of numbers, not {given!r}") from error
    wanted = "[" + ", ".join("n" if size is None else str(size) for size in shape) + "]"
    if table.dim() != len(shape) or any(size not in (None, own) for size, own in zip(shape, table.shape, strict=True)):
        raise ValueError(f"OracleFromSolver: {name} must be {wanted}, not {list(table.shape)}")
    if table.is_complex() or table.isnan().any() or (name == "vertices" and table.isinf().any()):
        raise ValueError(f"OracleFromSolver: {name} must be numbers, but it has a complex one, NaN or infinity")
    return table.detach().double().cpu()


def _constraints(given: Halfspaces, dim: int) -> Halfspaces:
    if not isinstance(given, Halfspaces):
        raise ValueError(f"OracleFromSolver: halfspaces must be a Halfspaces(a_ub, b_ub, a_eq, b_eq), not {given!r}")
    a_ub, a_eq = (_reference(f"halfspaces.{name}", getattr(given, name), (None, dim)) for name in ("a_ub", "a_eq"))
    b_ub, b_eq = (
        _reference(f"halfspaces.{name}", getattr(given, name), (len(rows),)) for name, rows in (("b_ub", a_ub), ("b_eq", a_eq))
    )
    return Halfspaces(a_ub, b_ub, a_eq, b_eq)
