"""Sparsemax, top-k sparsemax and SparseMAP on unstructured polytopes, forward and backward."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...layers import SparseDistribution
from ...layers.functional import sparsemap, sparsemax, topk_sparsemax
from ...layers.solvers import ActiveSet, SortedDecomposition
from ...oracles import BernoulliCube, Budget, Polytope
from .case import Candidates, Case
from .peers import entmax_sparsemax, pyepo_projection
from .waits import host_waits

OFFICIAL = "official lp-sparsemap, MAP start"
# Milliseconds of the published code, one thread of a Xeon VM; forward and backward, scores N(0, 1), "pairs" coding.
RECORDED_CUBE = {(32, 64): 12.6, (128, 64): 66.7, (128, 512): 530.0}
RECORDED_BUDGET = {(32, 64): 13.6, (128, 64): 161.0}
RECORDED_TOPK = {(32, 64): 0.43, (128, 64): 0.93, (32, 512): 1.8, (128, 512): 4.6}


class Cube(BernoulliCube):
    """The cube as a user would write it: a class derived from a polytope of ours has no kernels."""


class HalfOn(Budget):
    """The budget polytope, likewise."""


def cases(device: torch.device) -> Iterator[Case]:
    """All cases of these operators on a device, small to large."""
    for count in (10, 256, 10_000) if device.type == "cpu" else (10, 256, 1024, 10_000, 32_768, 100_000):
        yield Case(
            "sparsemax",
            "sparsemax, float32",
            {"B": 512, "K": count},
            lambda count=count: sparsemax_candidates(normal_scores(512, count, device)),
            quick=count == 256,
        )
    for dim, batch in ((32, 64), (128, 64), (128, 512)):
        official = RECORDED_CUBE[dim, batch]
        for name, solver in (("ActiveSet", ActiveSet()), ("sorted", SortedDecomposition())):
            yield _sparsemap(f"SparseMAP, cube, {name}", BernoulliCube(dim), solver, batch, official, device)
    for dim, batch in ((32, 64), (128, 64)):
        official = RECORDED_BUDGET[dim, batch]
        for name, solver in (("ActiveSet", ActiveSet()), ("sorted", SortedDecomposition())):
            yield _sparsemap(f"SparseMAP, budget D/2, {name}", Budget(dim, dim // 2), solver, batch, official, device)
    for batch in (64, 512):
        official = RECORDED_CUBE[128, batch]
        yield _sparsemap("SparseMAP, cube, ActiveSet, oracle in Python", Cube(128), ActiveSet(), batch, official, device)
    official = RECORDED_BUDGET[128, 64]
    yield _sparsemap("SparseMAP, budget D/2, ActiveSet, oracle in Python", HalfOn(128, 64), ActiveSet(), 64, official, device)
    for (dim, batch), official in RECORDED_TOPK.items():
        scores = normal_scores(batch, dim, device)
        yield Case(
            "top-k",
            "top-k sparsemax, cube, k = 10",
            {"B": batch, "D": dim},
            lambda scores=scores, dim=dim: {
                "ours": gradient_of(scores, lambda t: topk_sparsemax(t, BernoulliCube(dim), 10)),
            },
            ("official top-k", official),
            quick=(dim, batch) == (32, 64),
        )


def gradient_of(scores: Tensor, layer: Callable[[Tensor], SparseDistribution]) -> Callable[[], object]:
    """The distribution, its mean and its entropy, forward and backward, from fixed gradients of the mean and the entropy."""
    leaf = scores.clone().requires_grad_()
    upstream = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).to(scores)
    ones = scores.new_ones(scores.shape[:-1])

    def step() -> Tensor:
        distribution = layer(leaf)
        return torch.autograd.grad((distribution.mean(), distribution.entropy()), leaf, (upstream, ones))[0]

    return step


def weights_of(scores: Tensor, layer: Callable[[Tensor], SparseDistribution]) -> Callable[[], object]:
    """The operator alone, forward and backward, from a fixed gradient of the weights."""
    leaf = scores.clone().requires_grad_()
    upstream = torch.randn(len(layer(scores).probs), generator=torch.Generator().manual_seed(1)).to(scores)
    return lambda: torch.autograd.grad(layer(leaf).probs, leaf, upstream)


def statistics_of(scores: Tensor, layer: Callable[[Tensor], SparseDistribution]) -> Callable[[], dict[str, float]]:
    """Support, iterations and converged rows of a batch; on a device also how often the host waits for it, in all."""

    def describe() -> dict[str, float]:
        distribution = layer(scores)
        found = {"support": distribution.support_size().double().mean().item()}
        stats = distribution.stats
        if hasattr(stats, "iterations"):
            found["iterations"] = stats.iterations.double().mean().item()  # pyright: ignore
            found["converged"] = stats.converged.double().mean().item()  # pyright: ignore
        if scores.device.type != "cpu":
            found["host waits"] = host_waits(lambda: layer(scores))
        return found

    return describe


def normal_scores(batch: int, dim: int, device: torch.device) -> Tensor:
    """N(0, 1) [B, D], the same in every run."""
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).to(device)


def _sparsemap(
    operation: str,
    polytope: Polytope,
    solver: ActiveSet | SortedDecomposition,
    batch: int,
    official: float,
    device: torch.device,
) -> Case:
    scores = normal_scores(batch, polytope.dim, device)

    def layer(t: Tensor, solver: ActiveSet | SortedDecomposition = solver) -> SparseDistribution:
        return sparsemap(t, polytope, coding="pairs", solver=solver)

    def candidates() -> Candidates:
        if device.type == "cuda" and isinstance(polytope, (Cube, HalfOn)):
            recorded = gradient_of(scores, lambda t: layer(t, ActiveSet(record=True)))
            return {"ours": gradient_of(scores, layer), "ours, recorded": recorded}
        # PyEPO is timed where it converges in a second: not at D = 128, nor on the budget.
        compared = isinstance(solver, ActiveSet) and polytope == BernoulliCube(32) and device.type == "cpu"
        others = pyepo_projection(polytope, (1 + scores) / 2) if compared else {}
        return {"ours": gradient_of(scores, layer), "ours, weights alone": weights_of(scores, layer), **others}

    return Case(
        "SparseMAP",
        operation,
        {"B": batch, "D": polytope.dim},
        candidates,
        (OFFICIAL, official),
        quick=polytope.dim == 32,
        describe=statistics_of(scores, layer),
    )


def sparsemax_candidates(scores: Tensor) -> Candidates:
    """Ours, torch's softmax and entmax on scores [B, K], forward and backward.

    On a GPU also what the device alone takes: replayed as CUDA graphs, where the host starts nothing and looks at nothing.
    """
    weights = torch.randn_like(scores)
    leaf = scores.clone().requires_grad_()

    def backward_of(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(leaf), leaf, weights)

    functions = {"ours": sparsemax, "torch softmax": lambda t: t.softmax(-1), **entmax_sparsemax()}
    candidates = {name: backward_of(function) for name, function in functions.items()}
    if scores.device.type == "cuda":
        unchecked = {"ours": lambda t: sparsemax(t, check=False), "torch softmax": lambda t: t.softmax(-1)}
        candidates |= {f"{name}, replayed": _replayed(backward_of(function)) for name, function in unchecked.items()}
    # Forward reads scores and writes probabilities; backward reads those and a gradient, and writes one: two and a half copies.
    moved = scores.new_empty(5 * scores.numel() // 2)
    into = torch.empty_like(moved)
    return candidates | {"floor: a copy of as many bytes": lambda: into.copy_(moved)}


def _replayed(step: Callable[[], object]) -> Callable[[], object]:
    """A step as a CUDA graph, captured after it has run three times, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
