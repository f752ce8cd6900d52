"""Iterations that are recorded and replayed, on the CPU: a list of the tensor operations stands in for a CUDA graph.

Like a graph it repeats the operations of one call on the same memory, without a line of the Python that asked for them, and
refuses to read values.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from cases import scores_for
from devices import WAIT_FREE
from sparsemarg.layers.solvers import ActiveSet, recorded
from sparsemarg.layers.solvers.active_set import active_set
from sparsemarg.layers.solvers.oracle import Oracle
from sparsemarg.oracles import BernoulliCube, LinearChain, Polytope, Simplex
from sparsemarg.verification.pretended_device import THERE, PretendedDevice
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

LIMIT, TOL = 1000, 1e-9

# What cannot be recorded runs one by one, with the same results: no test may pass for that reason.
pytestmark = pytest.mark.filterwarnings("error:ActiveSet")


def reads(operation: Any, given: tuple[Any, ...]) -> bool:
    """Whether what comes out, or its shape, depends on values, for which the host would have to wait."""
    if operation is torch.ops.aten.index.Tensor:
        return any(place is not None and place.dtype == torch.bool for place in given[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags))


class Tape(TorchDispatchMode):
    """Notes every operation on tensors, and plays them again."""

    def __init__(self) -> None:
        super().__init__()
        # What was called, with what, and what came out. All of it is kept: while a tensor lives no other has its id.
        self.operations: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        if reads(operation, given):
            raise RuntimeError(f"{operation} reads values")
        found = operation(*given, **(options or {}))
        self.operations.append((partial(operation, **(options or {})), given, found))
        return found

    def play(self) -> None:
        """What an operation left in memory of its own lies elsewhere the second time: `later` says where."""
        later: dict[int, Tensor] = {}
        for operation, given, before in self.operations:
            leaves, structure = tree_flatten(given)
            found = operation(*tree_unflatten([later.get(id(leaf), leaf) for leaf in leaves], structure))
            pairs = zip(tree_leaves(before), tree_leaves(found), strict=True)
            later |= {id(one): other for one, other in pairs if isinstance(one, Tensor)}


def on_tape(window: recorded.Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
    with Tape() as tape:
        window(*tensors)
    return tape.play


replayed = partial(recorded.advance, record=on_tape)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    yield
    recorded._kept.clear()


class Reads(BernoulliCube):
    """The cube, with an oracle that looks at its scores."""

    def maximize(self, scores: Tensor) -> Tensor:
        return super().maximize(scores) if scores.amax() > -1e9 else scores


class Counts(BernoulliCube):
    """The cube, with an oracle that counts its calls."""

    calls = 0

    def maximize(self, scores: Tensor) -> Tensor:
        Counts.calls += 1
        return super().maximize(scores)


class Table(Polytope):
    """The rows of a table; `Explicit` looks for `-inf` on a CPU."""

    def __init__(self, seed: int) -> None:
        self.rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.dim = 5

    def __repr__(self) -> str:
        return "Table"

    def maximize(self, scores: Tensor) -> Tensor:
        return self.rows[(scores @ self.rows.T).argmax(-1)]


POLYTOPES: list[Polytope] = [
    BernoulliCube(20),
    Simplex(12),
    LinearChain(3, 2),
    LinearChain(3, 2, regularize_transitions=False),
    Table(0),
]


@pytest.mark.parametrize("kind", ["normal", "small"])
@pytest.mark.parametrize("polytope", POLYTOPES, ids=repr)
def test_replayed_iterations_are_those_one_by_one(polytope: Polytope, kind: str) -> None:
    """On batches of which one is recorded, others replay it, and one has another size; rows converge at different times."""
    for batch, seed in ((12, 0), (12, 1), (5, 2)):
        scores = scores_for(polytope, kind, batch=batch, seed=seed)
        oracle = Oracle.of(polytope, scores)
        found, wanted = active_set(oracle, LIMIT, TOL, replayed), active_set(oracle, LIMIT, TOL)
        assert torch.equal(found.atoms, wanted.atoms)
        torch.testing.assert_close(found.probs, wanted.probs, rtol=0, atol=1e-12)
        assert torch.equal(found.stats.iterations, wanted.stats.iterations)
        assert found.stats.converged.all()
    assert all(isinstance(kept, recorded.Recording) for kept in recorded._kept.values())


@pytest.mark.parametrize("polytope", WAIT_FREE, ids=repr)
def test_every_oracle_that_does_not_wait_can_be_recorded(polytope: Polytope) -> None:
    """On a device that is pretended, where oracles take the way that they take on a GPU."""
    with PretendedDevice() as pretended:

        def on_tape_there(window: recorded.Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
            before = pretended.waits.total()
            again = on_tape(window, tensors)
            assert pretended.waits.total() == before
            return again

        for seed in (0, 1):
            oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=6, seed=seed).to(THERE))
            advance = partial(recorded.advance, record=on_tape_there)
            found, wanted = active_set(oracle, LIMIT, TOL, advance), active_set(oracle, LIMIT, TOL)
            assert torch.equal(found.atoms.cpu(), wanted.atoms.cpu())
            torch.testing.assert_close(found.probs.cpu(), wanted.probs.cpu(), rtol=0, atol=1e-12)
            assert torch.equal(found.stats.iterations.cpu(), wanted.stats.iterations.cpu())
    assert recorded._kept
    assert all(isinstance(kept, recorded.Recording) for kept in recorded._kept.values())


def test_a_replay_asks_no_python() -> None:
    polytope = Counts(12)
    scores = [scores_for(polytope, "normal", batch=16, seed=seed) for seed in (0, 0)]
    for given, calls in zip(scores, (True, False), strict=True):
        oracle = Oracle.of(polytope, given)
        Counts.calls = 0
        active_set(oracle, LIMIT, TOL, replayed)
        # To start, and in windows that are recorded.
        assert (Counts.calls > 1) == calls
    assert Counts.calls == 1


def test_forbidden_bits_are_part_of_the_state() -> None:
    polytope = BernoulliCube(10)
    for seed in (0, 1):
        scores = scores_for(polytope, "normal", batch=8, seed=seed)
        scores[seed, 3:7] = -torch.inf
        oracle = Oracle.of(polytope, scores)
        found, wanted = active_set(oracle, LIMIT, TOL, replayed), active_set(oracle, LIMIT, TOL)
        assert torch.equal(found.atoms, wanted.atoms)
        assert not found.atoms[seed, :, 3:7].any()


def test_an_oracle_that_reads_values_runs_one_by_one() -> None:
    polytope = Reads(12)
    oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=16))
    with pytest.warns(UserWarning, match=r"Reads\(dim=12\) cannot be recorded .* may not read values"):
        found = active_set(oracle, LIMIT, TOL, replayed)
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        active_set(oracle, LIMIT, TOL, replayed)
    same_shapes = active_set(oracle, LIMIT, TOL, recorded._iterated)
    assert torch.equal(found.atoms, same_shapes.atoms)
    assert torch.equal(found.probs, same_shapes.probs)
    # Without a recorder rows and slots come in other numbers, on which the last bits of a product depend on some processors.
    wanted = active_set(oracle, LIMIT, TOL)
    assert torch.equal(found.atoms, wanted.atoms)
    torch.testing.assert_close(found.probs, wanted.probs, rtol=0, atol=1e-15)


def test_recordings_are_of_one_polytope() -> None:
    """Two polytopes of one shape, not told apart by anything but themselves."""
    for polytope in (Table(0), Table(1)):
        oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=6))
        assert torch.equal(active_set(oracle, LIMIT, TOL, replayed).atoms, active_set(oracle, LIMIT, TOL).atoms)


def test_few_shapes_are_recorded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    polytope = BernoulliCube(20)
    for seed in range(3):
        active_set(Oracle.of(polytope, scores_for(polytope, "normal", batch=32, seed=seed)), LIMIT, TOL, replayed)
    shapes = {(key[5][0][0], key[5]) for key in recorded._kept}  # pyright: ignore
    assert {rows for rows, _ in shapes} <= {32, 16, 8, 4, 2, 1}
    assert len(recorded._kept) <= 12  # six sizes, with 16 slots or 32
    monkeypatch.setattr(recorded, "MOST", 3)
    active_set(Oracle.of(polytope, scores_for(polytope, "normal", batch=48)), LIMIT, TOL, replayed)
    assert len(recorded._kept) <= 3


def test_a_window_beyond_the_limit_ends_there() -> None:
    polytope = BernoulliCube(20)
    oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=8))
    found, wanted = active_set(oracle, 11, TOL, replayed), active_set(oracle, 11, TOL)
    assert torch.equal(found.stats.iterations, wanted.stats.iterations)
    assert not found.stats.converged.all()
    assert torch.equal(found.atoms, wanted.atoms)


def test_on_a_cpu_there_is_nothing_to_record() -> None:
    polytope = Counts(12)
    scores = scores_for(polytope, "normal", batch=16)
    assert torch.equal(ActiveSet(record=True).solve(scores, polytope).probs, ActiveSet().solve(scores, polytope).probs)
    assert not recorded._kept


def by_running(window: recorded.Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Python again, for what does not depend on how it is recorded."""
    window(*tensors)
    return lambda: window(*tensors)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_recordings_serve_in_inference_mode_and_out_of_it(order: tuple[bool, bool]) -> None:
    """A validation before training must not leave memory that training cannot write to."""
    polytope = BernoulliCube(12)
    for inference in order:
        with torch.inference_mode(inference):
            oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=8))
            found = active_set(oracle, LIMIT, TOL, partial(recorded.advance, record=by_running))
            assert torch.equal(found.atoms, active_set(oracle, LIMIT, TOL).atoms)
    assert recorded._kept
    recorded.forget()
    assert not recorded._kept


def test_without_memory_for_a_recording_iterations_run_one_by_one() -> None:
    def full(window: recorded.Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("full")

    polytope = BernoulliCube(12)
    oracle = Oracle.of(polytope, scores_for(polytope, "normal", batch=8))
    with pytest.warns(UserWarning, match=r"run one by one \(full\)\. .* smaller batches"):
        found = active_set(oracle, LIMIT, TOL, partial(recorded.advance, record=full))
    assert torch.equal(found.atoms, active_set(oracle, LIMIT, TOL).atoms)
    with warnings.catch_warnings():  # said once, and not tried in each window
        warnings.simplefilter("error")
        active_set(oracle, LIMIT, TOL, partial(recorded.advance, record=full))


def test_recordings_make_way_for_a_new_one() -> None:
    """Memory for one recording: it is that of the last polytope."""
    made: list[Polytope] = []

    def narrow(window: recorded.Window, tensors: Sequence[Tensor]) -> Callable[[], None]:
        if recorded._kept:
            raise torch.OutOfMemoryError("full")
        return by_running(window, tensors)

    for polytope in (BernoulliCube(12), BernoulliCube(9)):
        scores = scores_for(polytope, "normal", batch=8)
        oracle = Oracle.of(polytope, scores)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = active_set(oracle, LIMIT, TOL, partial(recorded.advance, record=narrow))
        assert torch.equal(found.atoms, active_set(oracle, LIMIT, TOL).atoms)
        (kept,) = recorded._kept.values()
        assert isinstance(kept, recorded.Recording)
        made.append(kept.state.polytope)
    assert made == [BernoulliCube(12), BernoulliCube(9)]
