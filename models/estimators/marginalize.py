"""The exact expected cost under a sparse distribution."""

from torch import Tensor, nn

from ...layers import LPSparseMAP, SparseDistribution
from ...oracles.checks import check_count
from .base import Cost, Estimate, Estimator, checked_cost


class Marginalize(Estimator):
    """Sums the cost over every structure that a sparse layer gives mass: E_q[cost] = sum_z q(z) cost(z).

    No sampling and no relaxation: value and gradient are exact, and the cost is evaluated only where q(z) > 0
    (Correia et al. 2020, eq. 1, with a sparse q).

    Args:
        layer: maps scores [B, D] to a SparseDistribution, such as `sparsemarg.layers.SparseMAP`, or scores [B, K] of
            categories to their probabilities, such as `sparsemarg.layers.Sparsemax`.
        max_atoms: bound on the number of pairs in one call of the cost; None evaluates all in one call.
    """

    def __init__(self, layer: nn.Module, max_atoms: int | None = None) -> None:
        super().__init__()
        if isinstance(layer, type) or not callable(layer):
            raise ValueError(f"Marginalize needs a layer, e.g. SparseMAP(polytope) or Sparsemax(), not {layer!r}")
        if isinstance(layer, LPSparseMAP):
            raise ValueError(
                "Marginalize needs a distribution over structures, and LPSparseMAP, a relaxation, has a mean only: give the "
                "mean to the model itself, or marginalize over the polytope of one factor"
            )
        self.layer = layer
        self.max_atoms = None if max_atoms is None else check_count("Marginalize: max_atoms", max_atoms, 1)
        self.dim = getattr(getattr(layer, "polytope", None), "dim", None)

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        distribution = self.distribution(scores)
        expected = distribution.expectation(checked_cost(cost), max_atoms=self.max_atoms)
        return Estimate(
            value=expected.detach(),
            surrogate=expected,
            entropy=distribution.entropy(),
            evaluations=distribution.atoms.shape[0],
            support=distribution.support_size(),
            mode=distribution.mode(),
        )

    def distribution(self, scores: Tensor) -> SparseDistribution:
        distribution = self.layer(scores)
        return SparseDistribution.from_simplex(distribution) if isinstance(distribution, Tensor) else distribution
