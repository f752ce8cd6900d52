"""Other libraries, where they are installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...oracles import Polytope, SupportsHalfspaces, supports


def entmax_sparsemax() -> dict[str, Callable[[Tensor], Tensor]]:
    """entmax's sparsemax, by a full sort (its default) and by a partial one."""
    if find_spec("entmax") is None:
        return {}
    from entmax import sparsemax  # pyright: ignore[reportMissingImports]

    return {
        "entmax": lambda t: sparsemax(t, dim=-1),
        "entmax, k=100": lambda t: sparsemax(t, dim=-1, k=min(100, t.shape[-1])),
    }


def cvxpylayers_projection(polytope: Polytope, scores: Tensor) -> dict[str, Callable[[], object]]:
    """The projection QP over the polytope's halfspaces in cvxpylayers, forward and backward, at its default tolerances.

    Nothing where the polytope has no halfspaces, or too many to list.
    """
    if find_spec("cvxpylayers") is None or not supports(polytope, SupportsHalfspaces):
        return {}
    import cvxpy
    from cvxpylayers.torch import CvxpyLayer  # pyright: ignore[reportPrivateImportUsage]

    try:
        half = polytope.halfspaces()
    except ValueError:
        return {}
    mean, target = cvxpy.Variable(polytope.dim), cvxpy.Parameter(polytope.dim)
    constraints = [half.a_ub.numpy() @ mean <= half.b_ub.numpy()]
    if len(half.a_eq):
        constraints.append(half.a_eq.numpy() @ mean == half.b_eq.numpy())
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(mean - target)), constraints)
    layer = CvxpyLayer(problem, parameters=[target], variables=[mean])
    leaf = scores.detach().double().cpu().requires_grad_()
    upstream = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=leaf.dtype)
    return {"cvxpylayers": lambda: torch.autograd.grad(layer(leaf)[0], leaf, upstream)}


def pyepo_projection(polytope: Polytope, scores: Tensor) -> dict[str, Callable[[], object]]:
    """PyEPO's away-step Frank-Wolfe layer with our oracle, forward and backward, at its default tolerance."""
    if find_spec("pyepo") is None:
        return {}
    from pyepo.func import regularizedFrankWolfeOpt  # pyright: ignore[reportMissingImports]

    layer = regularizedFrankWolfeOpt(_pyepo_model(polytope))
    leaf = scores.detach().cpu().requires_grad_()
    upstream = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=leaf.dtype)
    return {"PyEPO": lambda: torch.autograd.grad(layer(leaf), leaf, upstream)}


def pyepo_spo_plus(polytope: Polytope, scores: Tensor, values: Tensor, best: Tensor) -> dict[str, Callable[[], object]]:
    """PyEPO's SPO+ loss with our oracle, forward and backward, in one process; all [B, D], `best` by the values."""
    if find_spec("pyepo") is None or scores.device.type != "cpu":
        return {}
    from pyepo.func import SPOPlus  # pyright: ignore[reportMissingImports]

    loss = SPOPlus(_pyepo_model(polytope), processes=1, reduction="sum")
    most = (values * best).sum(-1, keepdim=True)
    return {"PyEPO": lambda: torch.autograd.grad(loss(scores, values, best, most), scores)}


def _pyepo_model(polytope: Polytope) -> Any:
    """Our oracle as PyEPO's models are asked: for one structure at a time."""
    from pyepo import EPO  # pyright: ignore[reportMissingImports]
    from pyepo.model.opt import optModel  # pyright: ignore[reportMissingImports]

    class Asked(optModel):
        def _getModel(self) -> tuple[None, range]:
            self.modelSense = EPO.MAXIMIZE
            return None, range(polytope.dim)

        def setObj(self, c: object) -> None:
            self.scores = torch.as_tensor(c)

        def solve(self) -> tuple[Tensor, float]:
            best = polytope.maximize(self.scores[None])[0]
            return best, float(best @ self.scores)

    return Asked()
