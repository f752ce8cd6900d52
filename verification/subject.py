"""The polytope under test behind a guard: every method's contract is enforced before anything is compared with it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layers import ConvergenceWarning, SparseDistribution
from ..layers.functional import sparsemap
from ..layers.solvers import Solver
from ..oracles import Halfspaces, Parts, Polytope, SupportsHalfspaces, SupportsVertices, supports
from . import enumeration
from .broken import CONTRACTS, Broken, broken, first_line
from .cvxpy_references import DifferentiableProgram, QuadraticProgram, SupportProgram

Array = npt.NDArray[np.float64]
Made = TypeVar("Made")

# More structures than this are not enumerated here: every reference is linear in their number or worse.
MOST_STRUCTURES = 4096
# Bit vectors of this many coordinates are all tried where a polytope does not list its structures.
MOST_BITS = 12


@dataclass(frozen=True)
class Structures:
    """The list of all structures, or why there is none.

    Attributes:
        table: [V, D] float64, or None.
        source: how they were found, or what to write so that they can be.
    """

    table: Array | None
    source: str


class Subject:
    """A polytope, and what checks want to know of it, computed once.

    Args:
        polytope: under test; anything.
        device, dtype: of the scores that it is given.
    """

    def __init__(self, polytope: Polytope, device: torch.device, dtype: torch.dtype) -> None:
        self.polytope, self.device, self.dtype = polytope, device, dtype
        self.name = type(polytope).__name__
        self._memory: dict[object, Any] = {}

    @property
    def dim(self) -> int:
        """D, checked."""
        try:
            dim = getattr(self.polytope, "dim", None)
        except Exception as error:
            raise Broken("dim", f"{self.name}.dim raised {first_line(error)}; it should be {CONTRACTS['dim']}") from error
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise Broken("dim", f"{self.name}.dim is {dim!r}; it should be an int, at least 1: the coordinates of a structure")
        return dim

    def has(self, capability: type) -> bool:
        """Whether the polytope has the methods of a capability protocol; Broken if looking raises, as a property may."""
        try:
            return supports(self.polytope, capability)
        except Exception as error:
            name = capability.__name__.removeprefix("Supports").lower()
            what = f"{self.name} raised {first_line(error)} when it was asked whether it has the methods of"
            raise Broken(name, f"{what} {capability.__name__}; a method that is not there is an AttributeError") from error

    def remember(self, key: object, make: Callable[[], Made]) -> Made:
        """What `make` returned, or the exception that it raised, the first time."""
        if key not in self._memory:
            try:
                self._memory[key] = (make(), None)
            except Exception as error:
                self._memory[key] = (None, error)
        value, error = self._memory[key]
        if error is not None:
            raise error
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's result; Broken if it raised, or changed what it was given."""
        before = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
        try:
            result = getattr(self.polytope, method)(*arguments)
        except Exception as error:
            given = ", ".join(
                f"{str(a.dtype).removeprefix('torch.')} {list(a.shape)}" if isinstance(a, Tensor) else repr(a)
                for a in arguments
            )
            raise broken(self.name, method, f"raised {first_line(error)} when called with ({given})") from error
        if any(isinstance(a, Tensor) and not torch.equal(a, was) for a, was in zip(arguments, before, strict=True)):
            raise broken(self.name, method, "changed the scores that it was given")
        return result

    def tensor(self, method: str, value: Any, shape: tuple[int, ...] | None, like: Tensor | None) -> Tensor:
        """The value if it is a tensor of this shape (None: any), in the dtype and on the device of `like`; else Broken."""
        if not isinstance(value, Tensor):
            raise broken(self.name, method, f"returned {type(value).__name__}")
        if shape is not None and tuple(value.shape) != shape:
            raise broken(self.name, method, f"returned shape {list(value.shape)} where {list(shape)} is due")
        if like is not None and (value.dtype != like.dtype or value.device != like.device):
            what = f"returned {value.dtype} on {value.device} where {like.dtype} on {like.device} is due"
            raise broken(self.name, method, what)
        if value.is_floating_point() and not value.isfinite().all():
            raise broken(self.name, method, "returned a value that is not finite")
        return value.detach()

    def maximize(self, scores: Tensor) -> Tensor:
        """The oracle's structures, [B, D], in the dtype and on the device of the scores."""
        return self.tensor("maximize", self.call("maximize", scores), tuple(scores.shape), scores)

    def best(self, scores: Array) -> Array:
        """The oracle's structures for float64 scores [B, D]."""
        return self.maximize(self.to_tensor(scores)).cpu().numpy()

    def pair(self, method: str, value: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """A tuple (vertices [B, S, D], second [B, S]), checked."""
        if not isinstance(value, tuple) or len(value) != 2:
            raise broken(self.name, method, f"returned {type(value).__name__}, not a pair")
        vertices = self.tensor(method, value[0], None, like)
        if vertices.dim() != 3 or vertices.shape[0] != len(like) or vertices.shape[2] != self.dim:
            raise broken(self.name, method, f"returned vertices of shape {list(vertices.shape)} for scores {list(like.shape)}")
        return vertices, self.tensor(method, value[1], tuple(vertices.shape[:2]), None)

    def to_tensor(self, scores: Array | Tensor) -> Tensor:
        """Scores as float64 on the device."""
        values = torch.from_numpy(scores.copy()) if isinstance(scores, np.ndarray) else scores
        return values.to(self.device, torch.float64)

    def structures(self) -> Structures:
        """All structures: by the polytope's `vertices`, else the bit vectors that the oracle finds for themselves."""
        return self.remember("structures", self._structures)

    def _structures(self) -> Structures:
        if self.has(SupportsVertices):
            try:
                listed = self.listed()
            except Broken as error:
                if "too many" not in error.message:
                    return Structures(None, error.message)
                return Structures(None, "there are too many structures to enumerate; verify a smaller polytope of this class")
            if len(listed) <= MOST_STRUCTURES:
                return Structures(listed, "vertices()")
            return Structures(
                None, f"there are more than {MOST_STRUCTURES} structures; verify a smaller polytope of this class"
            )
        return self.found_by_oracle()

    def listed(self) -> Array:
        """What `vertices` returns, [V, D]."""
        table = self.tensor("vertices", self.call("vertices"), None, None)
        if table.dim() != 2 or table.shape[1] != self.dim or len(table) == 0:
            raise broken(self.name, "vertices", f"returned shape {list(table.shape)}")
        if table.dtype != torch.float64:
            raise broken(self.name, "vertices", f"returned {table.dtype}")
        return table.cpu().numpy()

    def found_by_oracle(self) -> Structures:
        """The bit vectors w with maximize(2w - 1) = w. For 0/1 structures that is all of them: w wins exactly if it is one."""
        return self.remember("found by oracle", self._found_by_oracle)

    def _found_by_oracle(self) -> Structures:
        write = f"write {self.name}.vertices (sparsemarg.oracles.SupportsVertices)"
        dim = self.dim
        probes = np.random.default_rng(0).standard_normal((64, dim))
        try:
            answers = self.best(probes)
            if not np.isin(answers, (0, 1)).all():
                return Structures(None, f"the structures are not 0/1 vectors, so they cannot be found by trying; {write}")
            if dim > MOST_BITS:
                return Structures(
                    None, f"{dim} coordinates are too many to try all bit vectors; {write}, or verify a smaller one"
                )
            bits = ((np.arange(2**dim)[:, None] >> np.arange(dim)) & 1).astype(float)
            table = bits[(self.best(2 * bits - 1) == bits).all(-1)]
        except Broken as error:
            return Structures(None, error.message)
        if len(table) == 0 or (enumeration.index_of(answers, table) < 0).any():
            return Structures(None, f"maximize returns structures that it does not find for scores 2z - 1; {write}")
        return Structures(table, "bit vectors that maximize finds for themselves")

    def halfspaces(self) -> Halfspaces:
        """The polytope's halfspaces, shapes and dtypes checked."""
        return self.remember("halfspaces", self._halfspaces)

    def _halfspaces(self) -> Halfspaces:
        half = self.call("halfspaces")
        if not isinstance(half, Halfspaces):
            raise broken(self.name, "halfspaces", f"returned {type(half).__name__}")
        for matrix, bound in (("a_ub", "b_ub"), ("a_eq", "b_eq")):
            rows = self.tensor("halfspaces", getattr(half, matrix), None, None)
            limits = self.tensor("halfspaces", getattr(half, bound), None, None)
            shapes = f"{matrix} {list(rows.shape)} and {bound} {list(limits.shape)}"
            if rows.dim() != 2 or rows.shape[1] != self.dim or limits.shape != rows.shape[:1]:
                raise broken(self.name, "halfspaces", f"returned {shapes} with dim {self.dim}")
            if {rows.dtype, limits.dtype} != {torch.float64} or {rows.device.type, limits.device.type} != {"cpu"}:
                raise broken(self.name, "halfspaces", f"returned {matrix}, {bound} that are not float64 on the CPU")
        return half

    @property
    def size(self) -> float:
        """The largest entry of a structure, at least 1."""
        table = self.structures().table
        return 1.0 if table is None else max(1.0, float(np.abs(table).max()))

    def tolerance(self, promised: dict[torch.dtype, float], dtype: torch.dtype | None = None) -> float:
        """What is promised of means in a dtype, by default the scores'; in float32, whose digits means have, times `size`."""
        dtype = self.dtype if dtype is None else dtype
        return promised[dtype] * (self.size if dtype == torch.float32 else 1.0)

    @property
    def regularized(self) -> enumeration.Mask | None:
        """Which coordinates the l2 term applies to, [D] bool; None for all."""
        try:
            parts = Parts.of(self.polytope)
        except ValueError as error:
            raise Broken("regularized", str(error)) from error
        if parts is None:
            return None
        mask = np.zeros(self.dim, dtype=bool)
        mask[parts.regularized.numpy()] = True
        return mask

    def determined(self, values: Array) -> Array:
        """The coordinates of means [..., D] that the problem determines: those that are regularised."""
        mask = self.regularized
        return values if mask is None else values[..., mask]

    def projection(self, scores: Array) -> tuple[Array, enumeration.Mask]:
        """The projection by enumeration and where it is known; nowhere without a list of structures."""
        table = self.structures().table
        if table is None:
            return np.zeros_like(scores), np.zeros(len(scores), dtype=bool)
        return self.remember(("projection", scores.tobytes()), lambda: enumeration.projection(table, scores))

    def truth(self, scores: Array) -> tuple[Array, enumeration.Mask]:
        """The mean of SparseMAP by enumeration and where it is known; nowhere without a list of structures."""
        table, mask = self.structures().table, self.regularized
        if table is None or mask is None:
            return self.projection(scores)
        return self.remember(("truth", scores.tobytes()), lambda: enumeration.partial_mean(table, scores, mask))

    def sparsemap(self, scores: Tensor, solver: Solver) -> SparseDistribution:
        """SparseMAP of scores [B, D]; Broken if it raised. Non-convergence is left in the stats."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                return sparsemap(scores, self.polytope, solver=solver)
        except Exception as error:
            raise Broken("sparsemap", f"sparsemap with {solver} raised {first_line(error)}") from error

    def solved(self, scores: Array, solver: Solver) -> SparseDistribution:
        """The same for float64 scores, without gradient, remembered."""
        return self.remember(
            ("solved", id(solver), scores.shape, scores.tobytes()),
            lambda: self.sparsemap(self.to_tensor(scores).to(self.dtype), solver),
        )

    def quadratic_program(self, over: str) -> QuadraticProgram:
        """cvxpy's QP over "vertices" or "halfspaces"."""
        return self.remember(("cvxpy", over), lambda: QuadraticProgram(self._described(over), self.regularized))

    def differentiable_program(self, over: str) -> DifferentiableProgram:
        """cvxpylayers' QP over "vertices" or "halfspaces"."""
        return self.remember(("cvxpylayers", over), lambda: DifferentiableProgram(self._described(over), self.regularized))

    def support_program(self, size: int) -> SupportProgram:
        """cvxpylayers' QP over a support of this size."""
        return self.remember(("support", size), lambda: SupportProgram(size, self.dim, self.regularized))

    def representations(self) -> list[str]:
        """Which descriptions of the polytope there are: "vertices", "halfspaces"."""
        found = ["vertices"] if self.structures().table is not None else []
        return [*found, "halfspaces"] if self.has(SupportsHalfspaces) else found

    def _described(self, over: str) -> Array | Halfspaces:
        if over == "halfspaces":
            return self.halfspaces()
        table = self.structures().table
        assert table is not None
        return table
