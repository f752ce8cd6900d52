"""Structured polytopes at typical sizes: one oracle call, the ten best structures, SparseMAP and losses, forward and backward,
and what Monte Carlo takes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ...layers import SparseDistribution
from ...layers.functional import sparsemap, sparsemap_loss, sparsemap_marginals, spo_plus_loss, structured_hinge_loss
from ...oracles import (
    Arborescence,
    Knapsack,
    LinearChain,
    Matching,
    Permutahedron,
    Polytope,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    SpanningTree,
    SupportsGibbs,
    SupportsProjection,
    SupportsTopk,
    supports,
    topk,
)
from .case import Candidates, Case
from .operators import gradient_of, statistics_of
from .peers import cvxpylayers_projection, pyepo_spo_plus

BATCH = 64
# cvxpylayers solves its problems one by one: it is timed on so many, and its time scaled up to the batch.
FEW = 4
MANY = 10  # structures of `topk`


@dataclass(frozen=True)
class Typical:
    """A polytope at a typical size, and at one that takes milliseconds, for `--quick`."""

    make: Callable[[], Polytope]
    small: Callable[[], Polytope]


def _complete(nodes: int) -> list[tuple[int, int]]:
    return list(combinations(range(nodes), 2))


POLYTOPES = (
    Typical(
        lambda: LinearChain(50, 20, regularize_transitions=False),
        lambda: LinearChain(5, 3, regularize_transitions=False),
    ),
    Typical(lambda: ProjectiveTree(30), lambda: ProjectiveTree(5)),
    Typical(lambda: Arborescence(30), lambda: Arborescence(4)),
    Typical(lambda: Matching(20), lambda: Matching(3)),
    Typical(lambda: Permutahedron(range(20)), lambda: Permutahedron(range(4))),
    Typical(lambda: SpanningTree(_complete(12)), lambda: SpanningTree(_complete(4))),
    Typical(lambda: ShortestPath.grid(12, 12, diagonal=True), lambda: ShortestPath.grid(4, 4)),
    Typical(lambda: Segmentation(30, 5, 6), lambda: Segmentation(6, 2, 3)),
    Typical(lambda: Knapsack([1 + i % 7 for i in range(50)], 60), lambda: Knapsack([1, 2, 3, 4], 5)),
)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Cases for each polytope: the oracle, its k best, SparseMAP, its loss and the Gibbs distribution, as far as it has it."""
    for typical in POLYTOPES:
        polytope = (typical.small if quick else typical.make)()
        scores = torch.randn(BATCH, polytope.dim, generator=torch.Generator().manual_seed(0)).to(device)
        sizes = {"B": BATCH, "D": polytope.dim}

        def layer(t: Tensor, polytope: Polytope = polytope) -> SparseDistribution:
            return sparsemap(t, polytope)

        def oracle(polytope: Polytope = polytope, scores: Tensor = scores) -> Candidates:
            return {"ours": lambda: polytope.maximize(scores.double())}

        def listed(polytope: Polytope = polytope, scores: Tensor = scores) -> Candidates:
            return {"ours": lambda: topk(polytope, scores, MANY)}

        def projection(polytope: Polytope = polytope, scores: Tensor = scores, layer=layer) -> Candidates:
            return {"ours": gradient_of(scores, layer)}

        def few(polytope: Polytope = polytope, scores: Tensor = scores, layer=layer) -> Candidates:
            return {"ours": gradient_of(scores[:FEW], layer), **cvxpylayers_projection(polytope, scores[:FEW])}

        yield Case("structured", f"maximize: {_short(polytope)}", sizes, oracle, quick=True)
        if supports(polytope, SupportsTopk):
            yield Case("structured", f"{MANY} best: {_short(polytope)}", sizes, listed, quick=True)
        described = statistics_of(scores, layer)
        yield Case("structured", f"SparseMAP: {_short(polytope)}", sizes, projection, quick=True, describe=described)
        if supports(polytope, SupportsGibbs):
            sampled = _sampled(polytope, scores)
            yield Case("structured", f"sample, score, entropy: {_short(polytope)}", sizes, sampled, quick=True)
        yield Case("structured", f"loss: {_short(polytope)}", sizes, _losses(polytope, scores), quick=True)
        if isinstance(polytope, (ShortestPath, Knapsack)):
            yield Case("structured", f"SPO+ loss: {_short(polytope)}", sizes, _decisions(polytope, scores), quick=True)
        if polytope.dim <= 1000:
            yield Case("structured", f"SparseMAP: {_short(polytope)}", sizes | {"B": FEW}, few)
    yield from _marginals(device, quick)


def _marginals(device: torch.device, quick: bool) -> Iterator[Case]:
    """Means of polytopes without a closed form, for scores of two sizes: the smaller, the more coordinates are fractional."""
    for typical in POLYTOPES:
        polytope = (typical.small if quick else typical.make)()
        if supports(polytope, SupportsProjection) and polytope.regularized is None:
            continue
        scores = torch.randn(BATCH, polytope.dim, generator=torch.Generator().manual_seed(0)).to(device)
        for scale in (1.0, 0.3):
            sizes = {"B": BATCH, "D": polytope.dim, "scale": scale}
            yield Case("structured", f"marginals: {_short(polytope)}", sizes, _mean(polytope, scale * scores), quick=True)


def _mean(polytope: Polytope, scores: Tensor) -> Callable[[], Candidates]:
    """The mean, forward and backward, with its whole derivative and with that of the support."""
    leaf = scores.clone().requires_grad_()
    upstream = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).to(scores)

    def build() -> Candidates:
        return {
            "ours": lambda: torch.autograd.grad(sparsemap_marginals(leaf, polytope), leaf, upstream),
            "ours, derivative of the support": lambda: torch.autograd.grad(sparsemap(leaf, polytope).mean(), leaf, upstream),
        }

    return build


def _losses(polytope: Polytope, scores: Tensor) -> Callable[[], Candidates]:
    """What trains a structured predictor, forward and backward: the SparseMAP loss, that of a CRF and that of an SVM."""
    leaf = scores.clone().requires_grad_()
    gold = polytope.maximize(torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).to(scores))
    found: Candidates = {"ours": lambda: torch.autograd.grad(sparsemap_loss(leaf, gold, polytope).sum(), leaf)}
    if supports(polytope, SupportsGibbs):
        gibbs = polytope.gibbs
        found["ours, a CRF's"] = lambda: torch.autograd.grad(-gibbs(leaf).log_prob(gold).sum(), leaf)
    if isinstance(polytope, LinearChain):
        log_total = _forward_algorithm
        found["a CRF's, in plain torch"] = lambda: torch.autograd.grad(
            (log_total(polytope, leaf) - (leaf * gold).sum(-1)).sum(), leaf
        )
    if ((gold == 0) | (gold == 1)).all():
        found["ours, hinge"] = lambda: torch.autograd.grad(structured_hinge_loss(leaf, gold, polytope).sum(), leaf)
    return lambda: found


def _forward_algorithm(chain: LinearChain, scores: Tensor) -> Tensor:
    """log sum exp over the sequences of each row, as one writes it: scores [B, D] -> [B]."""
    unary, pairs = chain.parts(scores)
    total = unary[:, 0]
    for place in range(1, chain.length):
        total = torch.logsumexp(total[:, :, None] + pairs[:, place - 1], 1) + unary[:, place]
    return total.logsumexp(-1)


def _decisions(polytope: Polytope, values: Tensor) -> Callable[[], Candidates]:
    """What trains predictions by what is decided from them, forward and backward; the best decisions are known."""
    leaf = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(values).requires_grad_()
    best = polytope.maximize(values)

    def build() -> Candidates:
        ours = {"ours": lambda: torch.autograd.grad(spo_plus_loss(leaf, values, polytope, best=best).sum(), leaf)}
        return ours | pyepo_spo_plus(polytope, leaf, values, best)

    return build


def _sampled(polytope: SupportsGibbs, scores: Tensor) -> Callable[[], Candidates]:
    """A sample, its log-probability and the entropy, forward and backward: what score function estimators do for each."""
    leaf = scores.clone().requires_grad_()

    def step() -> Tensor:
        gibbs = polytope.gibbs(leaf)
        return torch.autograd.grad((gibbs.log_prob(gibbs.sample()) + gibbs.entropy()).sum(), leaf)[0]

    return lambda: {"ours": step}


def _short(polytope: Polytope) -> str:
    """Its repr, with what is long in it left out."""
    text = repr(polytope)
    return text if len(text) <= 60 else f"{text[:57]}..."
