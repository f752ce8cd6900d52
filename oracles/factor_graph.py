"""Variables that several polytopes share: the local polytope of a factor graph."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Polytope
from .checks import check_count
from .parts import Parts
from .placement import lasting

# So many variables are listed one by one.
LISTED = 8


class Factor:
    """A polytope over some variables of a graph.

    Args:
        polytope: its regularised coordinates (`Polytope.regularized`; all by default), in increasing order, are variables of
            the graph; the others are additional parts of the factor's own, which take scores and are not penalised.
        variables: which variable each of them is: distinct numbers.

    Raises:
        ValueError: not a polytope, or not one distinct variable for each regularised coordinate.

    >>> from sparsemarg.oracles import Simplex
    >>> Factor(Simplex(3), variables=[0, 3, 6])
    Factor(Simplex(dim=3), variables=[0, 3, 6])
    """

    @lasting
    def __init__(self, polytope: Polytope, variables: Sequence[int]) -> None:
        if isinstance(polytope, type) or not hasattr(polytope, "dim") or not hasattr(polytope, "maximize"):
            raise ValueError(f"Factor needs a polytope, an object with `dim` and `maximize`, not {polytope!r}")
        try:
            numbers = tuple(operator.index(variable) for variable in variables)
        except TypeError:
            raise ValueError(f"Factor needs variables as a sequence of ints, not {variables!r}") from None
        parts = Parts.of(polytope)
        size = polytope.dim if parts is None else len(parts.regularized)
        if len(numbers) != size:
            raise ValueError(
                f"Factor({polytope!r}) needs {size} variables, one for each "
                f"{'coordinate' if parts is None else 'regularised coordinate'}, not {len(numbers)}"
            )
        if len(set(numbers)) != size:
            raise ValueError(f"Factor({polytope!r}) needs distinct variables, not {list(numbers)}")
        self.polytope, self.variables, self.additional = polytope, numbers, polytope.dim - size

    def __repr__(self) -> str:
        return f"Factor({self.polytope!r}, variables={_written(self.variables)})"


def _written(numbers: tuple[int, ...]) -> str:
    """As code: many at equal distances as a range, which leaves an error readable that names its factor."""
    if len(numbers) > LISTED:
        step = numbers[1] - numbers[0]
        spread = range(numbers[0], numbers[-1] + step, step)
        if numbers == tuple(spread):
            return repr(spread)
    return repr(list(numbers))


@dataclass(frozen=True)
class Group:
    """Factors with equal polytopes, which are solved as one batch.

    Attributes:
        polytope: that of all.
        factors: [F] their places in the graph.
        index: [F, n] int64, on the CPU: the variables of each.
    """

    polytope: Polytope
    factors: tuple[int, ...]
    index: Tensor

    def scores(self, variables: Tensor, additional: Tensor, parts: Parts | None) -> Tensor:
        """[..., n] scores of variables and [..., A] of additional parts in the polytope's own order: [..., D]."""
        return variables if parts is None else parts.join(variables, additional)


class FactorGraph:
    """{mu in R^V : for every factor f there are u_f with (mu_f, u_f) in conv(polytope f)}, the local polytope.

    It contains the hull of the structures that all factors allow, and may be larger (where the graph has cycles): a point of it
    is a vector of means that every factor by itself finds consistent, not the mean of a distribution over global structures.

    Args:
        variables: V, how many; they are numbered from 0.
        factors: each variable must be in one or more, which bound it.

    Raises:
        ValueError: no factor, a variable beyond V, or one in no factor.

    Factors that share a polytope object, or whose polytopes are of one class with equal numbers and tensors, are solved as one.

    >>> from sparsemarg.oracles import Simplex
    >>> one = Simplex(2)  # a matching of 2 x 2: exactly one in each row and column
    >>> FactorGraph(4, [Factor(one, [0, 1]), Factor(one, [2, 3]), Factor(one, [0, 2]), Factor(one, [1, 3])])
    FactorGraph(variables=4, factors=4 in 1 groups)
    """

    @lasting
    def __init__(self, variables: int, factors: Sequence[Factor]) -> None:
        self.variables = check_count("FactorGraph: variables", variables, 1)
        self.factors = tuple(factors)
        if not self.factors or not all(isinstance(factor, Factor) for factor in self.factors):
            raise ValueError(f"FactorGraph needs one or more factors, e.g. Factor(Simplex(2), [0, 1]), not {factors!r}")
        for place, factor in enumerate(self.factors):
            beyond = [variable for variable in factor.variables if not 0 <= variable < self.variables]
            if beyond:
                raise ValueError(
                    f"FactorGraph: factor {place} has variable {beyond[0]}, but variables are 0 to {self.variables - 1}"
                )
        self.degree = torch.zeros(self.variables, dtype=torch.float64)  # [V] in how many factors each is
        for factor in self.factors:
            self.degree[list(factor.variables)] += 1
        alone = (self.degree == 0).nonzero()[:, 0].tolist()
        if alone:
            raise ValueError(
                f"FactorGraph: variables {alone} are in no factor, so that nothing bounds them; add one, e.g. "
                f"Factor(BernoulliCube({len(alone)}), variables={alone}) for values between 0 and 1"
            )
        self.groups = self._grouped()

    def __repr__(self) -> str:
        return f"FactorGraph(variables={self.variables}, factors={len(self.factors)} in {len(self.groups)} groups)"

    def _grouped(self) -> tuple[Group, ...]:
        found: list[tuple[Polytope, list[int]]] = []
        for place, factor in enumerate(self.factors):
            same = next((members for polytope, members in found if _equal(polytope, factor.polytope)), None)
            if same is None:
                found.append((factor.polytope, [place]))
            else:
                same.append(place)
        return tuple(
            Group(polytope, tuple(members), torch.tensor([self.factors[place].variables for place in members]))
            for polytope, members in found
        )


def _equal(one: Polytope, other: Polytope) -> bool:
    """Whether two polytopes are surely the same: one object, or one class with equal plain values and tensors."""
    if one is other:
        return True
    # What lies in slots is not among the values that can be compared.
    if type(one) is not type(other) or any(vars(kind).get("__slots__") for kind in type(one).__mro__):
        return False
    if vars(one).keys() != vars(other).keys():
        return False
    return all(_same_value(value, vars(other)[name]) for name, value in vars(one).items())


def _same_value(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return alike and torch.equal(one, other)
    plain = (int, float, str, slice, type(None))
    return isinstance(one, plain) and isinstance(other, plain) and type(one) is type(other) and one == other
