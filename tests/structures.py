"""What the tests of structured polytopes share. Truth is a list of all structures, made without the polytope's algorithms."""

from typing import Protocol

import torch
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers.active_set import compiled_method
from sparsemarg.oracles import Polytope, topk
from torch import Tensor


def scores_of(polytope: Polytope, rows: int, seed: int = 0) -> Tensor:
    """N(0, 1) scores [rows, D] float64."""
    return torch.randn(rows, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(one: Tensor, other: Tensor, in_tensors: float = 1e-14) -> None:
    """Equal to the bit where rows are solved one by one; in tensor operations, whose sums depend on the batch, to so much."""
    if compiled_method(one.device) is None:
        torch.testing.assert_close(one, other, atol=in_tensors, rtol=0)
    else:
        assert torch.equal(one, other)


def as_set(rows: Tensor) -> set[tuple[float, ...]]:
    """The different rows."""
    return {tuple(row) for row in rows.tolist()}


def assert_k_best(polytope: Polytope, structures: Tensor, k: int, rows: int = 10) -> None:
    """Totals against a sort of all; distinct; nothing beyond their number. Rounded scores make most of them tie."""
    count = min(k, len(structures))
    for scores in (scores_of(polytope, rows), scores_of(polytope, rows).round()):
        found, valid = topk(polytope, scores, k)
        assert torch.equal(valid, (torch.arange(k) < count).expand(rows, -1))
        totals = (found[:, :count] * scores[:, None]).sum(-1)
        wanted = (scores @ structures.T).sort(-1, descending=True).values[:, :count]
        torch.testing.assert_close(totals, wanted, rtol=0, atol=1e-12)
        assert all(len(as_set(row[:count])) == count and as_set(row[:count]) <= as_set(structures) for row in found)
        assert not found[:, count:].any()


class _Gibbs(Protocol):
    def log_prob(self, structures: Tensor) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def marginals(self) -> Tensor: ...


class _WithGibbs(Protocol):
    dim: int

    def gibbs(self, scores: Tensor) -> _Gibbs: ...


def assert_gibbs(polytope: _WithGibbs, structures: Tensor) -> None:
    """log p, entropy, marginals and their gradients against a softmax over all structures."""
    generator = torch.Generator().manual_seed(0)
    drawn, weights = torch.randn(2, 7, polytope.dim, dtype=torch.float64, generator=generator)
    scores = drawn.mul(2).requires_grad_()
    logs = (scores @ structures.T).log_softmax(-1)
    probs = logs.exp()
    gibbs = polytope.gibbs(scores)
    torch.testing.assert_close(gibbs.log_prob(structures[:, None].expand(-1, 7, -1)).T, logs, rtol=0, atol=1e-10)
    entropy, mean = -(probs * logs).sum(-1), probs @ structures
    torch.testing.assert_close(gibbs.entropy(), entropy, rtol=0, atol=1e-10)
    torch.testing.assert_close(gibbs.marginals(), mean, rtol=0, atol=1e-10)
    if len(structures) > 1:
        pairs = [(gibbs.entropy(), entropy), (gibbs.marginals() * weights, mean * weights)]
        for ours, theirs in pairs:
            found, expected = (torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (ours, theirs))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    slope = torch.autograd.grad(gibbs.log_prob(structures[:1].expand(7, -1)).sum(), scores)[0]
    torch.testing.assert_close(slope, structures[:1] - mean, rtol=0, atol=1e-10)
    assert (gibbs.log_prob(torch.full((7, polytope.dim), 0.5, dtype=torch.float64)) == -torch.inf).all()


def assert_random_problems(polytope: Polytope) -> None:
    """500 SparseMAP problems: at most D + 1 atoms, certified, and the gradient of an expectation by central differences."""
    scores = scores_of(polytope, 500)
    found = sparsemap(scores, polytope)
    assert bool(found.stats.converged.all())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    assert int(found.support_size().max()) <= polytope.dim + 1
    residual = scores - found.mean()
    gap = ((polytope.maximize(residual) - found.mean()) * residual).sum(-1)
    assert float(gap.max()) < 5e-9
    theta = torch.randn(polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def expectation(scores: Tensor) -> Tensor:
        return sparsemap(scores, polytope).expectation(lambda atoms, row: (atoms @ theta).sin())

    assert torch.autograd.gradcheck(expectation, scores_of(polytope, 3, seed=4).requires_grad_(), eps=1e-6, atol=1e-5)
