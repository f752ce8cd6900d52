"""The projection QP in cvxpy and in cvxpylayers: solvers and derivatives by other people.

Nothing is imported until a reference is made. Each is canonicalised once and then solved for many scores.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..oracles import Halfspaces

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# At their defaults both are less accurate than what they are to check. Clarabel cannot always reach the first of its tolerances
# where t is at a kink, and says so; at 1e-12 a mean is good to 6e-7.
_CLARABEL = (1e-13, 1e-12)
# diffcp's default, LSQR, is inaccurate where xi is not unique: off by 8e-4 at 500 vertices in 12 dimensions. A dense solve is
# good to 1e-8 there; its cost is cubic. Beyond this many variables there is no reference: LSMR is off by 2e-4 at 4096 vertices.
_DENSE = 600
_OPTIONS = {"eps": 1e-9, "max_iters": 20000, "mode": "dense"}


class Unavailable(Exception):
    """A reference cannot be used; the text says what to install or write."""


class QuadraticProgram:
    """min ||mu - t||^2 over a polytope in cvxpy, solved by Clarabel's interior point method.

    Args:
        description: [V, D] float64 vertices, for mu = A xi with xi in the simplex; or `Halfspaces`.
        regularized: [D] bool, R in min ||(mu - t)_R||^2 - 2 <mu, t>_rest; None for all coordinates.
    """

    def __init__(self, description: Array | Halfspaces, regularized: Mask | None = None) -> None:
        self._cvxpy = _module("cvxpy")
        self._target, self._mean, self._problem, _ = _program(self._cvxpy, description, regularized)

    def solve(self, scores: Array) -> tuple[Array, list[str]]:
        """mu [B, D] and the solver's status of each row, for scores [B, D]; NaN unless the status is "optimal"."""
        means, statuses = np.full_like(scores, np.nan), []
        for row, target in enumerate(scores):
            self._target.value = target
            status = ""
            for tolerance in _CLARABEL:
                status = self._attempt(tolerance)
                if status != "optimal_inaccurate":
                    break
            statuses.append(status)
            if status == "optimal":
                means[row] = self._mean.value
        return means, statuses

    def _attempt(self, tolerance: float) -> str:
        accuracy = {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
        try:
            self._problem.solve(solver="CLARABEL", **accuracy)
        except self._cvxpy.error.SolverError as error:
            return f"solver error ({str(error).splitlines()[0]})"
        return str(self._problem.status)


class DifferentiableProgram:
    """The same QP as a cvxpylayer (Agrawal et al. 2019): the mean, and its Jacobian by diffcp.

    Args:
        description, regularized: as in `QuadraticProgram`.
    """

    def __init__(self, description: Array | Halfspaces, regularized: Mask | None = None) -> None:
        target, _, problem, variable = _program(_module("cvxpy"), description, regularized)
        if variable.size > _DENSE:
            raise Unavailable(
                f"cvxpylayers is not accurate enough on a programme of {variable.size} variables (limit {_DENSE})"
            )
        self._layer = _layer(problem, [target], [variable])
        self._vertices = None if isinstance(description, Halfspaces) else torch.from_numpy(description)

    def mean(self, scores: Tensor) -> Tensor:
        """mu, [B, D] float64 -> [B, D], differentiable in reverse mode."""
        (found,) = _quietly(lambda: self._layer(scores, solver_args=_OPTIONS))
        return found if self._vertices is None else found @ self._vertices

    def mean_and_vjps(self, scores: Array, cotangents: Array) -> tuple[Array, Array]:
        """mu [B, D] and W (d mu / d t) for the rows of W [K, D], [B, K, D]. One forward pass, K backward."""
        leaf = torch.from_numpy(scores).requires_grad_()
        found = self.mean(leaf)
        products = found @ torch.from_numpy(cotangents).T
        rows = [torch.autograd.grad(products[:, i].sum(), leaf, retain_graph=True)[0] for i in range(len(cotangents))]
        return found.detach().numpy(), torch.stack(rows, 1).numpy()

    def mean_and_jacobian(self, scores: Array) -> tuple[Array, Array]:
        """mu [B, D] and d mu / d t [B, D, D]."""
        return self.mean_and_vjps(scores, np.eye(scores.shape[1]))

    def jvp(self, scores: Array, tangents: Array) -> Array:
        """(d mu / d t) v for v [B, D], [B, D]. cvxpylayers has reverse mode only, so it costs D backward passes."""
        return np.einsum("bij,bj->bi", self.mean_and_jacobian(scores)[1], tangents)


class SupportProgram:
    """min ||A xi - t||^2 over the simplex of the S atoms of a support, as a cvxpylayer: weights and their Jacobian.

    On a support that is affinely independent the weights are unique, which they are not over all structures. One layer serves
    every support of a size.
    """

    def __init__(self, size: int, dim: int, regularized: Mask | None = None) -> None:
        cvxpy = _module("cvxpy")
        target, atoms = cvxpy.Parameter(dim), cvxpy.Parameter((dim, size))
        weights = cvxpy.Variable(size)
        objective, parameters = cvxpy.sum_squares(atoms @ weights - target), [target, atoms]
        if regularized is not None:
            # Gains <a_s, t> of the rest are a parameter of their own: a product of two would not be one that cvxpy allows.
            gains = cvxpy.Parameter(size)
            on = np.flatnonzero(regularized)
            objective = cvxpy.sum_squares(atoms[on] @ weights - target[on]) - 2 * gains @ weights
            parameters.append(gains)
        problem = cvxpy.Problem(cvxpy.Minimize(objective), [weights >= 0, cvxpy.sum(weights) == 1])
        self._rest = None if regularized is None else torch.from_numpy(~regularized)
        self._layer = _layer(problem, parameters, [weights])

    def gradient(self, atoms: Array, scores: Array, values: Array) -> Array:
        """d/dt sum_s xi_s(t) values_s for one row: [S, D], [D], [S] -> [D]."""
        leaf = torch.from_numpy(scores).requires_grad_()
        matrix = torch.from_numpy(np.ascontiguousarray(atoms.T))
        given = (leaf, matrix)
        if self._rest is not None:
            given = (leaf, matrix, leaf[self._rest] @ matrix[self._rest])
        (found,) = _quietly(lambda: self._layer(*given, solver_args=_OPTIONS))
        (gradient,) = torch.autograd.grad(found @ torch.from_numpy(values), leaf)
        return gradient.numpy()


def _program(cvxpy: Any, description: Array | Halfspaces, regularized: Mask | None) -> tuple[Any, Any, Any, Any]:
    """The parameter t, the expression mu, the problem, and its variable."""
    if isinstance(description, Halfspaces):
        target = cvxpy.Parameter(description.a_ub.shape[1])
        variable = mean = cvxpy.Variable(target.size)
        constraints = []
        if len(description.a_ub):
            constraints.append(description.a_ub.numpy() @ variable <= description.b_ub.numpy())
        if len(description.a_eq):
            constraints.append(description.a_eq.numpy() @ variable == description.b_eq.numpy())
    else:
        target = cvxpy.Parameter(description.shape[1])
        variable = cvxpy.Variable(len(description))
        mean = description.T @ variable
        constraints = [variable >= 0, cvxpy.sum(variable) == 1]
    objective = cvxpy.sum_squares(mean - target)
    if regularized is not None:
        on, off = np.flatnonzero(regularized), np.flatnonzero(~regularized)
        objective = cvxpy.sum_squares(mean[on] - target[on]) - 2 * target[off] @ mean[off]
    return target, mean, cvxpy.Problem(cvxpy.Minimize(objective), constraints), variable


def _layer(problem: Any, parameters: list[Any], variables: list[Any]) -> Any:
    return _module("cvxpylayers.torch").CvxpyLayer(problem, parameters=parameters, variables=variables)


def _quietly(call: Callable[[], Any]) -> Any:
    """The call's result; what goes wrong inside cvxpylayers is said in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # cvxpylayers 1.2 with NumPy 2.4
            return call()
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise Unavailable(f"cvxpylayers could not solve the problem ({type(error).__name__}: {line})") from error


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed; run pip install 'sparsemarg[verification]'") from error
