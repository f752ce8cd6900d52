"""A polytope is a set of structures that one can maximise over; everything else it can do is optional.

`Polytope` asks for one method, `maximize`. The `Supports...` protocols name the optional capabilities: a polytope has a
capability by having the method, and `supports(polytope, SupportsTopk)` asks whether it does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import TypeIs


class Polytope(ABC):
    """The convex hull conv{a_z : z in Z} of finitely many structures a_z in R^D.

    A subclass sets `dim` and writes `maximize`; instances are immutable. Nothing else is needed for SparseMAP, top-k
    sparsemax (0/1 structures), their gradients and verification:

    >>> class Pairs(Polytope):  # exactly two of four items, neighbours on a ring
    ...     dim = 4
    ...     def maximize(self, scores):
    ...         totals = scores + scores.roll(-1, dims=-1)
    ...         first = torch.nn.functional.one_hot(totals.argmax(-1), 4)
    ...         return (first + first.roll(1, dims=-1)).to(scores)
    >>> Pairs().maximize(torch.tensor([[0.1, 0.9, 0.8, -0.5]]))
    tensor([[0., 1., 1., 0.]])
    """

    dim: int
    # Whether `maximize` itself takes scores of -inf, to forbid structures with a_i != 0. To others solvers pass a large
    # negative number, which does so if no nonzero coordinate is below 2^-10 of the largest; those of 0/1 structures are 1.
    takes_forbidden: bool = False
    # The coordinates that SparseMAP's l2 term applies to: a slice, a mask [D] or indices [R]; None for all. The others, such as
    # transitions, only take scores. See `parts.Parts`.
    regularized: slice | Tensor | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={getattr(self, 'dim', '?')})"

    @abstractmethod
    def maximize(self, scores: Tensor) -> Tensor:
        """A structure of maximal score: v in argmax_{z in Z} <a_z, scores>, row by row.

        Solvers call it in float64 whatever the dtype of the layer's input, so constants must follow `scores` (write
        `self.weights.to(scores)`, or `placed(self.weights, scores.device, scores.dtype)`, which keeps the copy on a GPU). It
        must be deterministic: of tied structures always the same one.

        Args:
            scores: [B, D] float, finite (unless `takes_forbidden`).

        Returns:
            [B, D] structures, in the dtype and on the device of `scores`.
        """


class SupportsTopk(Protocol):
    """The k best structures by an algorithm of the polytope's own."""

    def topk(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k distinct structures of highest score, best first.

        Args:
            scores: [B, D] float; `-inf` forbids the structures with a_i != 0.
            k: how many, at least 1.

        Returns:
            vertices [B, k, D] and valid [B, k] bool, false (and the vertex zero) beyond the number of structures.
        """
        ...


@dataclass(frozen=True)
class Flips:
    """The k best of structures of bits, each told by how it differs from the best one.

    Attributes:
        best: [*B, D] a structure of maximal score.
        order: [*B, m] int64, m <= D different bits: the only ones on which the structures differ.
        flips: [*B, n, m] 0 or 1, n <= k: structure j is `best` with the bits order[flips_j = 1] flipped; best first.
        valid: [*B, n] bool, false beyond the number of structures.
    """

    best: Tensor
    order: Tensor
    flips: Tensor
    valid: Tensor


class SupportsFlips(Protocol):
    """The k best structures, which need not be written down to be compared."""

    def flips(self, scores: Tensor, k: int) -> Flips:
        """`SupportsTopk.topk` in brief, for scores [*B, D]."""
        ...


class SupportsProjection(Protocol):
    """The Euclidean projection in closed form."""

    def project(self, scores: Tensor) -> Tensor:
        """mu = argmin_{mu in conv} ||mu - scores||^2 in all coordinates, differentiable: [B, D] -> [B, D].

        `-inf` forbids the structures with a_i != 0: mu is then the projection on the hull of the others, in the other
        coordinates, and 0 there.
        """
        ...


class SupportsDecomposition(Protocol):
    """A convex combination for any point of the polytope (a constructive Carathéodory theorem)."""

    def decompose(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Affinely independent structures v_s with sum_s p_s v_s = mean: [B, D] -> [B, S, D], [B, S], S <= D + 1."""
        ...


class SupportsNested(Protocol):
    """A convex combination of nested sets for any point of the polytope, which need not be written down to be used."""

    def nested(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """`decompose` in brief: structure s, for s = 0 ... D, has the s coordinates order[..., :s] on.

        [*B, D] -> order [*B, D] int64 and the weights of the D + 1 structures, [*B, D + 1], 0 where they are not used.
        """
        ...


class SupportsChained(Protocol):
    """A convex combination by systematic sampling, whose structures need not be written down to be used.

    The coordinates lie end to end on a line as intervals of length mean_i; for u in [0, 1) the points u, u + 1, u + 2, ... hit
    some of them, which are a structure. It changes only where u passes the fractional part of an end. A class that overrides an
    inherited `decompose` has to override this too.
    """

    def chained(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """`decompose` in brief: the coordinates along the line, and where each ends, [*B, D] -> both [*B, D] int64.

        Ends are in fixed point, see `systematic`, so that equal fractional parts are equal.
        """
        ...


class GibbsDistribution(Protocol):
    """p(z) proportional to exp <a_z, t>: what `SupportsGibbs.gibbs` returns."""

    def sample(self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Independent exact samples, [*sample_shape, *B, D], without gradient."""
        ...

    def log_prob(self, structures: Tensor) -> Tensor:
        """log p(z) in nats, [..., D] -> [...], `-inf` off the set; differentiable in the scores."""
        ...

    def entropy(self) -> Tensor:
        """Shannon entropy in nats, [*B]; differentiable in the scores."""
        ...

    def marginals(self) -> Tensor:
        """The mean structure E[a_z], the gradient of the log-normaliser, [*B, D]; differentiable in the scores.

        No operator or estimator needs it, so that a class of your own may go without.
        """
        ...


class SupportsGibbs(Protocol):
    """The exponential family over the structures."""

    def gibbs(self, scores: Tensor) -> GibbsDistribution:
        """The distribution p(z) proportional to exp <a_z, scores>, for scores [*B, D]."""
        ...


class SupportsHalfspaces(Protocol):
    """An outer description of the polytope."""

    def halfspaces(self) -> "Halfspaces":
        """The constraints whose solutions are exactly the polytope."""
        ...


class SupportsVertices(Protocol):
    """Enumeration, for sets small enough to list."""

    def vertices(self) -> Tensor:
        """All structures, each once: [V, D] float64."""
        ...


@dataclass(frozen=True)
class Halfspaces:
    """{x : a_ub x <= b_ub, a_eq x = b_eq}; all float64, on the CPU.

    Attributes:
        a_ub, b_ub: [M, D], [M] inequalities.
        a_eq, b_eq: [E, D], [E] equalities; E may be 0.
    """

    a_ub: Tensor
    b_ub: Tensor
    a_eq: Tensor
    b_eq: Tensor


# More structures than this are not enumerated: 2^20 structures of 20 coordinates are 160 MiB in float64.
MAX_ENUMERATED = 1 << 20

Capability = TypeVar("Capability")


def supports(polytope: object, capability: type[Capability]) -> TypeIs[Capability]:
    """Whether the polytope has every method that a capability protocol names.

    Unlike `isinstance` on a runtime protocol it asks the instance, so that a composed polytope (`Product`) has what
    its parts have.
    """
    return all(callable(getattr(polytope, name, None)) for name in _methods(capability))


@torch.compiler.assume_constant_result  # torch.compile of torch 2.11 cannot look into a class
def _methods(capability: type) -> list[str]:
    """The methods that a capability protocol names."""
    return [name for name in vars(capability) if not name.startswith("_")]


def missing(polytope: object, capability: type, purpose: str) -> ValueError:
    """The error for a capability that is needed and absent: it names the methods to write."""
    absent = [name for name in _methods(capability) if not callable(getattr(polytope, name, None))]
    return ValueError(
        f"{purpose} needs {type(polytope).__name__}.{' and '.join(absent)}, which it does not have; "
        f"write the method as sparsemarg.oracles.{capability.__name__} describes, or use an operation that needs "
        f"only `maximize` (sparsemap with ActiveSet)"
    )
