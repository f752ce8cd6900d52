"""Oracles made from solvers: SciPy's, networkx's, and some that are wrong."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import projection
from scipy.optimize import linear_sum_assignment, milp
from sparsemarg.layers import SparseMAP
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Budget, Explicit, Halfspaces, Knapsack, Matching, OracleFromSolver, SpanningTree, topk
from sparsemarg.oracles.base import SupportsHalfspaces, SupportsVertices, supports
from sparsemarg.verification import parametrize_with_checks
from torch import Tensor
from torch.func import jacrev

WEIGHTS = [3.0, 1.0, 4.0, 2.0]
PACKING = Halfspaces(
    torch.tensor([WEIGHTS], dtype=torch.float64),
    torch.tensor([5.0], dtype=torch.float64),
    torch.zeros(0, 4, dtype=torch.float64),
    torch.zeros(0, dtype=torch.float64),
)


def assign(scores: np.ndarray) -> np.ndarray:
    rows, columns = linear_sum_assignment(scores.reshape(3, 3), maximize=True)
    chosen = np.zeros((3, 3))
    chosen[rows, columns] = 1
    return chosen.flatten()


def pack(scores: np.ndarray) -> Any:
    limits = ([WEIGHTS], -np.inf, [5.0])
    return milp(-scores, integrality=np.ones(4), bounds=(0, 1), constraints=limits).x  # pyright: ignore[reportArgumentType]


def best_of_three(scores: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(scores.argmax(-1), 3)


def scores_of(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_scipy_assignment_is_a_matching() -> None:
    polytope, scores = OracleFromSolver(assign, 9), scores_of(20, 9)
    assert torch.equal(polytope.maximize(scores), Matching(3).maximize(scores))
    found, wanted = sparsemap(scores, polytope), sparsemap(scores, Matching(3))
    assert torch.equal(found.atoms, wanted.atoms)
    assert torch.equal(found.probs, wanted.probs)
    for k in (1, 4, 10):
        vertices, valid = topk(polytope, scores, k)
        expected, exists = topk(Matching(3), scores, k)
        assert torch.equal(valid, exists)
        torch.testing.assert_close((vertices * scores[:, None]).sum(-1), (expected * scores[:, None]).sum(-1))


def test_an_integer_programme_is_a_knapsack() -> None:
    polytope, scores = OracleFromSolver(pack, 4, halfspaces=PACKING), scores_of(15, 4)
    assert torch.equal(polytope.maximize(scores), Knapsack([3, 1, 4, 2], 5).maximize(scores))
    mean = sparsemap(scores, polytope).mean()
    torch.testing.assert_close(mean, projection(Knapsack([3, 1, 4, 2], 5).vertices(), scores), rtol=0, atol=1e-8)
    assert supports(polytope, SupportsHalfspaces)
    assert not supports(polytope, SupportsVertices)


def test_networkx_spanning_trees() -> None:
    networkx = pytest.importorskip("networkx")
    edges = list(itertools.combinations(range(4), 2))

    def heaviest(scores: np.ndarray) -> list[float]:
        graph = networkx.Graph([(*edge, {"weight": score}) for edge, score in zip(edges, scores, strict=True)])
        chosen = {tuple(sorted(edge)) for edge in networkx.maximum_spanning_edges(graph, data=False)}
        return [float(edge in chosen) for edge in edges]

    scores = scores_of(10, 6)
    assert torch.equal(OracleFromSolver(heaviest, 6).maximize(scores), SpanningTree(edges).maximize(scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_at_once_and_tensors(dtype: torch.dtype) -> None:
    shapes = []

    def arrays(scores: np.ndarray) -> np.ndarray:
        assert scores.dtype == np.float64
        shapes.append(scores.shape)
        return np.eye(3)[scores.argmax(-1)]

    scores = scores_of(7, 3).to(dtype)
    wanted = best_of_three(scores).to(dtype)
    assert torch.equal(OracleFromSolver(arrays, 3, batched=True).maximize(scores), wanted)
    assert shapes == [(7, 3)]
    assert torch.equal(OracleFromSolver(arrays, 3).maximize(scores), wanted)
    assert shapes[1:] == [(3,)] * 7
    assert torch.equal(OracleFromSolver(best_of_three, 3, batched=True, numpy=False).maximize(scores), wanted)
    assert torch.equal(OracleFromSolver(best_of_three, 3, numpy=False).maximize(scores), wanted)
    for batched in (False, True):
        assert OracleFromSolver(arrays, 3, batched=batched).maximize(scores[:0]).shape == (0, 3)


def test_structures_that_are_not_bits() -> None:
    table = torch.tensor([[2.0, -1], [0, 0.5], [-1, -1]], dtype=torch.float64)
    noise = 1e-7

    def best(scores: np.ndarray) -> np.ndarray:
        return table.numpy()[(table.numpy() @ scores).argmax()] + noise

    polytope, scores = OracleFromSolver(best, 2, vertices=table), scores_of(10, 2)
    assert torch.equal(polytope.maximize(scores), Explicit(table).maximize(scores))
    assert torch.equal(polytope.vertices(), table)
    torch.testing.assert_close(sparsemap(scores, polytope).mean(), projection(table, scores), rtol=0, atol=1e-8)


def test_integers_up_to_a_solvers_tolerance_are_bits() -> None:
    polytope = OracleFromSolver(lambda scores: np.array([1 - 1e-7, -1e-9, 1e-7]), 3)
    assert polytope.maximize(torch.zeros(1, 3)).tolist() == [[1, 0, 0]]


def test_what_was_seen() -> None:
    polytope = OracleFromSolver(best_of_three, 3, numpy=False)
    assert polytope.seen().shape == (0, 3)
    polytope.maximize(torch.tensor([[0.0, 1, 0], [0, 2, 1], [3, 0, 0]]))
    assert polytope.seen().tolist() == [[0, 1, 0], [1, 0, 0]]
    sparsemap(scores_of(20, 3), polytope)
    assert len(Explicit(polytope.seen()).vertices()) == 3
    few = OracleFromSolver(best_of_three, 3, numpy=False, keep=1)
    few.maximize(torch.eye(3))
    assert few.seen().tolist() == [[1, 0, 0]]


def test_forbidden_coordinates() -> None:
    """The solver sees finite scores; a row that allows nothing is refused."""
    polytope = OracleFromSolver(assign, 9)
    scores = scores_of(4, 9)
    scores[1, :2] = -torch.inf
    found = sparsemap(scores, polytope)
    assert not found.atoms[found.row == 1][:, :2].any()
    scores[2, ::3] = -torch.inf
    with pytest.raises(ValueError, match="scores row 2 allows no structure"):
        sparsemap(scores, polytope)


def test_gradients() -> None:
    scores = scores_of(3, 9, seed=1).requires_grad_()
    SparseMAP(OracleFromSolver(assign, 9))(scores).expectation(lambda z, row: z.cumsum(-1).sin().sum(-1)).sum().backward()
    own = scores.detach().clone().requires_grad_()
    SparseMAP(Matching(3))(own).expectation(lambda z, row: z.cumsum(-1).sin().sum(-1)).sum().backward()
    torch.testing.assert_close(scores.grad, own.grad)


def second(found: list[Any]) -> Callable[[np.ndarray], Any]:
    """A solver whose second answer is wrong."""
    answers = iter([np.array([1.0, 0, 0, 0]), *found])
    return lambda scores: next(answers, np.zeros(4))


def fails(scores: np.ndarray) -> np.ndarray:
    raise ArithmeticError("infeasible model")


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            second([np.array([0.5, 0, 1, 0])]),
            r"for problem 1 the solver returned \[0.5, 0, 1, 0\], which is not a vector of 0s",
        ),
        (second([np.array([2.0, 0, 0, 0])]), r"for problem 1 the solver returned \[2, 0, 0, 0\], which is not a vector of 0s"),
        (
            second([np.array([1.0, 0, 1, 0])]),
            r"for problem 1 the solver returned \[1, 0, 1, 0\], which violates `halfspaces`: a_ub",
        ),
        (second([np.array([1.0, np.nan, 1, 0])]), r"for problem 1 the solver returned .*which is not finite"),
        (second([np.array([1.0, 0])]), r"must return \[4\] numbers for problem 1, but returned \[2\]"),
        (second([[[1, 0, 0, 0]]]), r"must return \[4\] numbers for problem 1, but returned \[1, 4\]"),
        (second([None]), "the solver returned None for problem 1"),
        (second([np.array([1j, 0, 0, 0])]), "the solver returned no numbers for problem 1, but array"),
        (second(["optimal"]), "the solver returned no numbers for problem 1, but 'optimal'"),
        (fails, "the solver failed on problem 0: ArithmeticError: infeasible model"),
    ],
)
def test_a_wrong_answer_names_the_problem(solver: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OracleFromSolver(solver, 4, halfspaces=PACKING).maximize(torch.zeros(3, 4))


def test_other_wrong_answers() -> None:
    equal = Halfspaces(PACKING.a_ub, PACKING.b_ub, torch.ones(1, 4).double(), torch.ones(1).double())
    with pytest.raises(ValueError, match=r"problem 0 .* a_eq x = b_eq does not hold"):
        OracleFromSolver(lambda scores: np.zeros(4), 4, halfspaces=equal).maximize(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"problem 1 .* which is none of the vertices"):
        OracleFromSolver(second([np.zeros(4)]), 4, vertices=torch.eye(4)).maximize(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"must return \[2, 4\] numbers for all problems together, but returned \[4\]"):
        OracleFromSolver(lambda scores: np.zeros(4), 4, batched=True).maximize(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="the solver failed on the batch: ArithmeticError"):
        OracleFromSolver(fails, 4, batched=True).maximize(torch.zeros(2, 4))
    for wrong in (torch.zeros(2, 5), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"take scores \[B, 4\], not \["):
            OracleFromSolver(lambda scores: np.zeros(4), 4).maximize(wrong)
    with pytest.raises(ValueError, match="solver must be a function of scores, not 3"):
        OracleFromSolver(3, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"vertices must be \[n, 4\], not \[3, 3\]"):
        OracleFromSolver(fails, 4, vertices=torch.eye(3))
    with pytest.raises(ValueError, match=r"halfspaces.a_ub must be \[n, 3\], not \[1, 4\]"):
        OracleFromSolver(fails, 3, halfspaces=PACKING)
    with pytest.raises(ValueError, match=r"halfspaces.b_ub must be \[1\], not \[2\]"):
        OracleFromSolver(fails, 4, halfspaces=Halfspaces(PACKING.a_ub, torch.ones(2), PACKING.a_eq, PACKING.b_eq))
    with pytest.raises(ValueError, match=r"halfspaces must be a Halfspaces\(a_ub, b_ub, a_eq, b_eq\), not 3"):
        OracleFromSolver(fails, 4, halfspaces=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="vertices must be numbers, but it has a complex one, NaN or infinity"):
        OracleFromSolver(fails, 4, vertices=torch.full((1, 4), torch.nan))
    with pytest.raises(ValueError, match="vertices must list one or more structures"):
        OracleFromSolver(fails, 4, vertices=torch.zeros(0, 4))


def test_references_in_other_forms() -> None:
    """Arrays, lists, other dtypes."""
    whole = Halfspaces(-torch.eye(3), torch.zeros(3), torch.ones(1, 3, dtype=torch.int64), torch.ones(1))
    for given in ({"vertices": np.eye(3)[::-1]}, {"vertices": np.eye(3).tolist()}, {"halfspaces": whole}):
        oracle = OracleFromSolver(lambda scores: np.eye(3)[scores.argmax()], 3, **given)
        assert oracle.maximize(torch.tensor([[0.1, 0.3, 0.2]])).tolist() == [[0, 1, 0]]


VERIFIED = [OracleFromSolver(assign, 9), OracleFromSolver(best_of_three, 3, batched=True, numpy=False, vertices=torch.eye(3))]


@parametrize_with_checks(VERIFIED, batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VERIFIED[1:], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()


def test_derivatives_by_torch_func() -> None:
    polytope = OracleFromSolver(lambda scores: np.eye(4)[scores.argmax()], 4)
    scores = torch.tensor([[0.3, 0.1, -0.2, -2.0]], dtype=torch.float64)
    found = jacrev(lambda given: sparsemap(given, polytope).mean())(scores)[0, :, 0]
    on = projection(torch.eye(4, dtype=torch.float64), scores)[0] > 0
    wanted = torch.diag(on.double()) - on.double()[:, None] * on.double() / on.sum()  # of sparsemax
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("numpy", [True, False])
def test_a_solver_that_writes_into_one_array(numpy: bool) -> None:
    listed = Budget(3, 2, exactly=True).vertices().double()
    memory: Any = np.zeros(3) if numpy else torch.zeros(3, dtype=torch.float64)

    def solver(scores: Any) -> Any:
        memory[:] = listed.numpy()[(listed.numpy() @ scores).argmax()] if numpy else listed[(listed @ scores).argmax()]
        return memory

    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 1, 3]], dtype=torch.float64)
    found = OracleFromSolver(solver, 3, numpy=numpy).maximize(scores)
    assert torch.equal(found, Budget(3, 2, exactly=True).maximize(scores))
