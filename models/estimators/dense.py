"""The exact expected cost under a softmax over all structures."""

from torch import Tensor

from ...layers import SparseDistribution
from ...oracles import Polytope, SupportsVertices, placed, supports
from ...oracles.base import missing
from ...oracles.checks import check_count, check_polytope
from ...oracles.gibbs import EnumeratedGibbs
from ...oracles.placement import lasting
from .base import Cost, Estimate, Estimator, checked_cost
from .checks import check_batch


class DenseMarginalize(Estimator):
    """Sums the cost over every structure: E_q[cost] = sum_z q(z) cost(z), q(z) proportional to exp <a_z, t>.

    Exact, so unbiased and without variance; the dense baseline ("marginalisation with softmax") of Correia et al. 2020,
    section 5. One cost evaluation per example and structure: V per example. A structure whose probability is exactly
    0 (forbidden by a score of `-inf`, or underflow) is not evaluated: it has no part in the value or the gradient.

    Args:
        polytope: must list its structures (`vertices`).
        max_atoms: bound on the number of pairs in one call of the cost; None evaluates all in one call.

    Raises:
        ValueError: the polytope has no `vertices`, or too many to list.
    """

    def __init__(self, polytope: Polytope, max_atoms: int | None = None) -> None:
        super().__init__()
        check_polytope(polytope)
        if not supports(polytope, SupportsVertices):
            raise missing(polytope, SupportsVertices, "DenseMarginalize")
        self.polytope = polytope
        self.max_atoms = None if max_atoms is None else check_count("DenseMarginalize: max_atoms", max_atoms, 1)
        self.dim = polytope.dim
        self._vertices = lasting(polytope.vertices)()  # no buffer: `module.half()` would round them

    def forward(self, scores: Tensor, cost: Cost, *, context: Tensor | None = None) -> Estimate:
        check_batch(scores, self.polytope)
        gibbs = self.distribution(scores)
        probs = gibbs.log_probs.exp().to(scores.dtype)  # [B, V]
        atoms = gibbs.vertices.to(scores.dtype).expand(len(scores), -1, -1)
        distribution = SparseDistribution.from_padded(atoms, probs)
        expected = distribution.expectation(checked_cost(cost), max_atoms=self.max_atoms)
        return Estimate(
            value=expected.detach(),
            surrogate=expected,
            entropy=gibbs.entropy(),
            evaluations=distribution.atoms.shape[0],
            support=distribution.support_size(),
            mode=distribution.mode(),
        )

    def distribution(self, scores: Tensor) -> EnumeratedGibbs:
        return EnumeratedGibbs(scores, placed(self._vertices, scores.device))
