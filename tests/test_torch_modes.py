"""Inside what torch changes for all of a program: default devices and dtypes, tracing, forward mode, forks, compilation."""

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from cases import Ring
from made_polytopes import MAKERS
from sparsemarg.kernels import workspace
from sparsemarg.layers.functional import lp_sparsemap, sparsemap, sparsemax
from sparsemarg.layers.solvers import PairwiseFrankWolfe, Solver, SortedDecomposition
from sparsemarg.models.estimators import DenseMarginalize, SumAndSample
from sparsemarg.models.objective import pixel_cross_entropy, plain
from sparsemarg.models.scalar_filter import filtered
from sparsemarg.oracles import (
    BernoulliCube,
    Explicit,
    Factor,
    FactorGraph,
    LinearChain,
    Polytope,
    Simplex,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


def squares() -> FactorGraph:
    """2 x 2 matchings."""
    return FactorGraph(4, [Factor(Simplex(2), pair) for pair in ([0, 1], [2, 3], [0, 2], [1, 3])])


@pytest.mark.parametrize("name", MAKERS)
def test_polytopes_made_while_another_device_is_the_default(name: str) -> None:
    """As models are that are to be filled from a checkpoint: what a polytope consists of is not in it."""
    with torch.device("meta"):
        made = MAKERS[name]()
    usual = MAKERS[name]()
    scores = torch.randn(3, usual.dim, generator=torch.Generator().manual_seed(0))
    found, wanted = sparsemap(scores, made), sparsemap(scores, usual)
    assert torch.equal(found.atoms, wanted.atoms)
    assert torch.equal(found.probs, wanted.probs)


def test_graphs_and_estimators_made_while_another_device_is_the_default() -> None:
    with torch.device("meta"):
        graph, dense, both = squares(), DenseMarginalize(BernoulliCube(3)), SumAndSample(Simplex(3), k=2)
    scores = torch.tensor([[0.5, 0.0, 0.0, 0.5]])
    torch.testing.assert_close(lp_sparsemap(scores, graph).mean, torch.tensor([[0.75, 0.25, 0.25, 0.75]]))
    both.to_empty(device="cpu")
    both.load_state_dict(SumAndSample(Simplex(3), k=2).state_dict())
    scores = torch.tensor([[0.1, 0.2, 0.3]])
    torch.testing.assert_close(dense(scores, lambda atoms, row: atoms.sum(-1)).value, scores.sigmoid().sum(-1))
    torch.testing.assert_close(both(scores, lambda atoms, row: atoms @ scores[0]).value, (scores.softmax(-1) * scores).sum(-1))


@pytest.mark.parametrize("solver", [None, SortedDecomposition(), PairwiseFrankWolfe()])
def test_scores_on_another_device_than_the_default(solver: Solver | None) -> None:
    """Of a dimension that no other test has: what is kept for it must not be of the default device either."""
    given = {} if solver is None else {"solver": solver}
    scores = torch.randn(2, 23, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        found = sparsemap(scores, BernoulliCube(23), **given).mean()
    torch.testing.assert_close(found, scores.clamp(0, 1))
    torch.testing.assert_close(sparsemap(scores, BernoulliCube(23), **given).mean(), scores.clamp(0, 1))


def test_structures_of_estimators_are_not_rounded_with_their_module() -> None:
    polytope = Explicit([[1 / 3, 0.1], [0.7, 513.0]])
    for estimator in (DenseMarginalize(polytope), SumAndSample(polytope)):
        seen: list[Tensor] = []

        def cost(atoms: Tensor, row: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(atoms.clone())
            return atoms.sum(-1)

        torch.manual_seed(0)
        estimator.bfloat16().double()(torch.zeros(1, 2, dtype=torch.float64), cost)
        assert torch.equal(seen[0].sort(0).values, polytope.vertices().sort(0).values)


def test_kernels_do_not_hide_from_tracing() -> None:
    scores = torch.tensor([[0.0, 0.3, -0.2, 1.0]])
    traced = make_fx(lambda given: sparsemax(given, check=False))(scores)
    other = torch.tensor([[0.1, 0.3, 0.2, 0.0]])
    torch.testing.assert_close(traced(other), sparsemax(other), atol=1e-7, rtol=0)
    distribution = sparsemap(scores, BernoulliCube(4))
    assert torch.equal(make_fx(lambda weights: weights * distribution.mean())(scores)(scores), scores * distribution.mean())


class Wrapped(Tensor):
    """A tensor whose class sees every operation, and holds the numbers somewhere else."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapped":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # pyright: ignore[reportReturnType]

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapped, lambda each: each.held, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapped, func(*args, **kwargs))


def test_kernels_leave_tensors_alone_whose_class_replaces_operations() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = sparsemax(Wrapped(scores), check=False)
    assert isinstance(found, Wrapped)
    torch.testing.assert_close(found.held, sparsemax(scores), atol=1e-7, rtol=0)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_filter_keeps_its_dtype_whatever_the_default(default: torch.dtype) -> None:
    entries, weights = torch.randn(4, 3), torch.randn(2, 5)
    inputs = [entries.requires_grad_(), *weights.requires_grad_()]
    wanted = filtered(*inputs)
    slopes = torch.autograd.grad(wanted.sum(), entries)
    torch.set_default_dtype(default)
    try:
        found = filtered(*inputs)
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
        assert torch.equal(torch.autograd.grad(found.sum(), entries)[0], slopes[0])
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_filter_under_transforms() -> None:
    torch.manual_seed(0)
    entries, inner, outer = torch.randn(4), torch.randn(5), torch.randn(5)
    for place, given in enumerate((entries, inner, outer)):
        variable = given.clone().requires_grad_()
        inputs = [entries, inner, outer]
        inputs[place] = variable
        wanted = torch.autograd.functional.jacobian(lambda x, p=place, i=inputs: filtered(*i[:p], x, *i[p + 1 :]), variable)
        for derivative in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(derivative(filtered, place)(entries, inner, outer), wanted)
        values = filtered(*inputs)
        (rows,) = torch.autograd.grad(values, variable, torch.eye(4), is_grads_batched=True)
        torch.testing.assert_close(rows, wanted)


def test_pixels_without_bias_and_under_transforms() -> None:
    torch.manual_seed(0)
    features, images = torch.randn(2, 4, 3), torch.randint(5, (2, 4))
    head = nn.Linear(3, 5, bias=False)
    wanted = plain(features, head.weight, torch.zeros(5), images)
    torch.testing.assert_close(pixel_cross_entropy(features, head, images), wanted)
    slopes = torch.func.grad(lambda given: pixel_cross_entropy(given, head, images).sum())(features)
    (expected,) = torch.autograd.grad(plain(features.requires_grad_(), head.weight, torch.zeros(5), images).sum(), features)
    torch.testing.assert_close(slopes, expected)
    with FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(pixel_cross_entropy(features, head, images), wanted)
    assert counter.get_total_flops() > 0


def test_lp_sparsemap_says_which_derivatives_it_has() -> None:
    scores, graph = torch.tensor([[0.5, 0.0, 0.0, 0.5]], dtype=torch.float64), squares()

    def mean(given: Tensor) -> Tensor:
        return lp_sparsemap(given, graph).mean

    message = r"lp_sparsemap has no derivatives under torch\.func\.grad, jvp and their like, nor in forward mode; take them by"
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        with pytest.raises(ValueError, match=message):
            transform(mean)(scores)
    with forward_ad.dual_level(), pytest.raises(ValueError, match=message):
        mean(forward_ad.make_dual(scores, torch.ones_like(scores)))
    with pytest.raises(ValueError, match=r"lp_sparsemap cannot run under torch\.func\.vmap"):
        torch.func.vmap(lambda row: mean(row[None]))(scores)


@pytest.mark.parametrize("solver", [SortedDecomposition(), PairwiseFrankWolfe()])
def test_sparsemap_says_that_it_takes_batches(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"sparsemap cannot run under torch\.func\.vmap: pass the whole batch"):
        torch.func.vmap(lambda row: sparsemap(row, BernoulliCube(3), solver=solver).mean())(torch.zeros(2, 3))


@pytest.mark.parametrize("solver", [None, PairwiseFrankWolfe()])
@pytest.mark.parametrize("polytope", [LinearChain(3, 2, regularize_transitions=False), BernoulliCube(4), Ring()])
def test_loops_of_solvers_run_as_they_are_in_compiled_code(polytope: Polytope, solver: Solver | None) -> None:
    given = {} if solver is None else {"solver": solver}
    scores = torch.randn(2, polytope.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def mean(given_scores: Tensor) -> Tensor:
        return sparsemap(given_scores, polytope, **given).mean()

    torch._dynamo.reset()
    found, wanted = torch.compile(mean, backend="eager")(scores), mean(scores)
    torch.testing.assert_close(found, wanted)
    weights = torch.arange(polytope.dim) + 1.0
    (slopes,), (expected,) = (torch.autograd.grad((each * weights).sum(), scores) for each in (found, wanted))
    torch.testing.assert_close(slopes, expected)


def test_the_child_of_a_fork_can_borrow_memory() -> None:
    """Though another thread was about to at that moment: it is not in the child, to let go of the lock."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with workspace._lock:
                stop.wait(1e-3)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                free = workspace._lock.acquire(timeout=5)
                os._exit(0 if free else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


class Overwriting(Ring):
    """Works in the memory that it is given."""

    def maximize(self, scores: Tensor) -> Tensor:
        found = super().maximize(scores)
        return scores.copy_(found)


def test_an_oracle_may_work_in_the_memory_that_it_is_given() -> None:
    scores = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = sparsemap(scores, Ring()).mean()
    for given in ({}, {"solver": PairwiseFrankWolfe()}):
        torch.testing.assert_close(sparsemap(scores, Overwriting(), **given).mean(), wanted, atol=1e-8, rtol=0)


def test_a_polytope_keeps_its_own_table() -> None:
    for table in (np.eye(3), torch.eye(3, dtype=torch.float64)):
        polytope = Explicit(table)
        table *= 5
        assert torch.equal(polytope.vertices(), torch.eye(3, dtype=torch.float64))


def test_a_mean_can_be_changed_in_place() -> None:
    result = lp_sparsemap(torch.tensor([[0.5, 0.0, 0.0, 0.5]], dtype=torch.float64), squares())
    result.mean.mul_(0.5)
    torch.testing.assert_close(result.factor(0).mean(), torch.tensor([[0.75, 0.25]], dtype=torch.float64))
