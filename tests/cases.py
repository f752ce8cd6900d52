"""The polytopes and solvers that tests run over, and the truth that they are held against: enumeration and SciPy."""

import itertools

import numpy as np
import torch
from scipy import optimize
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import ActiveSet, PairwiseFrankWolfe, Solver, SortedDecomposition
from sparsemarg.oracles import (
    BernoulliCube,
    Budget,
    Explicit,
    Polytope,
    Product,
    Simplex,
    SupportsDecomposition,
    SupportsProjection,
    supports,
)
from torch import Tensor


class Ring(Polytope):
    """A user's polytope: `dim` and `maximize`, nothing else. One run of two neighbours on a ring of six."""

    dim = 6

    def maximize(self, scores: Tensor) -> Tensor:
        first = torch.nn.functional.one_hot((scores + scores.roll(-1, dims=-1)).argmax(-1), self.dim)
        return (first + first.roll(1, dims=-1)).to(scores)


def ring_vertices() -> Tensor:
    """All structures of `Ring`, [6, 6]."""
    identity = torch.eye(6, dtype=torch.float64)
    return identity + identity.roll(1, dims=-1)


POLYTOPES: dict[str, Polytope] = {
    "simplex": Simplex(5),
    "simplex of one": Simplex(1),
    "cube": BernoulliCube(6),
    "bit": BernoulliCube(1),
    "budget": Budget(6, 3),
    "budget 0": Budget(4, 0),
    "budget slack": Budget(5, 5),
    "exactly 3": Budget(6, 3, exactly=True),
    "exactly all": Budget(4, 4, exactly=True),
    "explicit": Explicit(torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)),
    "product": Product(Simplex(3), Budget(4, 2)),
    "product of an opaque part": Product(Ring(), BernoulliCube(2)),
    "ring": Ring(),
}
BINARY = {name: polytope for name, polytope in POLYTOPES.items() if name != "explicit"}

SOLVERS: dict[str, Solver] = {
    "active set": ActiveSet(),
    "frank-wolfe": PairwiseFrankWolfe(),
    "sorted": SortedDecomposition(),
}


def solvable(polytope: Polytope, solver: Solver) -> bool:
    """Whether the solver can work on the polytope: the sorted solver needs a closed form."""
    closed = supports(polytope, SupportsProjection) and supports(polytope, SupportsDecomposition)
    return closed or not isinstance(solver, SortedDecomposition)


POLYTOPE_SOLVERS = [
    (polytope, solver) for polytope in POLYTOPES for solver in SOLVERS if solvable(POLYTOPES[polytope], SOLVERS[solver])
]


def enumerated(polytope: Polytope) -> Tensor:
    """Every structure, [V, D] float64, by filtering all bit vectors: shares no code with `vertices()` methods."""
    if isinstance(polytope, Explicit):
        return polytope.vertices()
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * polytope.dim).reshape(-1, polytope.dim)
    return bits[torch.tensor([feasible(polytope, row) for row in bits.tolist()])]


def feasible(polytope: Polytope, structure: list[float]) -> bool:
    """Whether a bit vector is one of the polytope's structures, from its definition."""
    match polytope:
        case Simplex():
            return sum(structure) == 1
        case BernoulliCube():
            return True
        case Budget():
            return sum(structure) == polytope.budget if polytope.exactly else sum(structure) <= polytope.budget
        case Product():
            ends = np.cumsum([0, *(part.dim for part in polytope.parts)])
            return all(
                feasible(part, structure[start:end])
                for part, start, end in zip(polytope.parts, ends[:-1], ends[1:], strict=True)
            )
        case Ring():
            return structure in ring_vertices().tolist()
    raise NotImplementedError(polytope)


def dependency_trees(words: int, *, projective: bool, single_root: bool) -> Tensor:
    """Every choice of heads, without cycles; projective: what lies between a head and its word hangs below the head."""
    arcs = [(h, m) for m in range(1, words + 1) for h in range(words + 1) if h != m]
    rows = []
    for heads in itertools.product(range(words + 1), repeat=words):
        above = [[m] for m in range(1, words + 1)]
        for chain in above:
            while chain[-1] != 0 and len(chain) <= words + 1:
                chain.append(heads[chain[-1] - 1])
        if any(chain[-1] != 0 for chain in above) or (single_root and heads.count(0) != 1):
            continue
        if projective and not all(
            h in above[between - 1] for m, h in enumerate(heads, 1) for between in range(min(h, m) + 1, max(h, m))
        ):
            continue
        chosen = {(h, m) for m, h in enumerate(heads, 1)}
        rows.append(torch.tensor([float(arc in chosen) for arc in arcs]))
    return torch.stack(rows).double()


def scores_for(polytope: Polytope, kind: str, batch: int = 8, seed: int = 0) -> Tensor:
    """Scores [batch, D] float64 of one kind."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch, polytope.dim, generator=generator, dtype=torch.float64)
    match kind:
        case "normal":
            return normal
        case "small":
            return 0.3 * normal
        case "large":
            return 3 * normal
        case "integer":
            return (2 * normal).round()
        case "equal":
            return torch.full_like(normal, 0.37)
        case "zero":
            return torch.zeros_like(normal)
    raise NotImplementedError(kind)


KINDS = ["normal", "small", "large", "integer", "equal", "zero"]


def projection(vertices: Tensor, scores: Tensor) -> Tensor:
    """argmin over the hull of vertices [V, D] of ||mu - t||^2 for scores [B, D], by SciPy's bounded least squares.

    The min-norm point of the hull of w_z = a_z - t is x / sum x for the x >= 0 that minimises ||W x||^2 + (sum x - 1)^2: for
    x = s y with sum y = 1 the best s leaves ||W y||^2 / (1 + ||W y||^2), which is increasing in ||W y||^2.
    """
    means = []
    for row in scores.double():
        system = torch.cat([(vertices - row).T, torch.ones(1, len(vertices), dtype=torch.float64)])
        wanted = torch.zeros(len(row) + 1, dtype=torch.float64)
        wanted[-1] = 1
        fit = optimize.lsq_linear(system.numpy(), wanted.numpy(), (0, np.inf), method="bvls", tol=1e-15, max_iter=1000)
        means.append(torch.from_numpy(fit.x / fit.x.sum()) @ vertices)
    return torch.stack(means)


def with_derivatives(scores: Tensor, polytope: Polytope, solver: Solver) -> tuple[SparseDistribution, list[Tensor]]:
    """SparseMAP; its weights, and first and second derivatives of a function of them."""
    leaf, weights = scores.clone().requires_grad_(), scores_for(polytope, "normal", batch=len(scores), seed=1)
    found = sparsemap(leaf, polytope, solver=solver)
    value = (found.mean() * weights).sum() + found.probs[::2].square().sum() + (found.probs.detach() * found.probs).cos().sum()
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * weights).sum(), leaf)
    return found, [found.probs.detach(), first.detach(), second]
