"""The compiled recursions of dynamic programs, against the same in tensor operations."""

import math

import pytest
import torch
from sparsemarg.kernels import compiled
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import (
    Arborescence,
    Budget,
    Knapsack,
    LinearChain,
    ProjectiveTree,
    Segmentation,
    ShortestPath,
    SpanningTree,
)
from sparsemarg.oracles.programs.derivations import Derivations
from sparsemarg.oracles.programs.hyperedges import Edge
from sparsemarg.oracles.programs.hypergraph import Hypergraph
from structures import scores_of

LARGER = [
    LinearChain(9, 4),
    LinearChain(4, 19),
    LinearChain(1, 5),
    LinearChain(7, 3, regularize_transitions=False),
    ProjectiveTree(8),
    ProjectiveTree(8, single_root=True),
    ProjectiveTree(19),
    Segmentation(12, 3, 4),
    Knapsack([1, 2, 3, 4, 5, 6, 7] * 3, 20),
    Knapsack([0, 3, 90, 0, 5, 41, 40, 1], 40),  # two that weigh nothing, two that never fit
    Knapsack([0, 2], 0),
    Knapsack([17, 31, 5] * 5, 200),
    ShortestPath.grid(6, 7),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("polytope", LARGER, ids=repr)
def test_the_compiled_recursion_is_the_plain_one(
    polytope: Derivations, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structures and totals to the bit, in two threads: ties, forbidden coordinates, rows that allow nothing."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(polytope.dim, 40, generator=generator, dtype=dtype).T  # not contiguous
    masked = torch.where(torch.rand(normal.shape, generator=generator) < 0.1, -torch.inf, normal)
    scores = torch.cat(
        [normal, (2 * normal).round(), masked, torch.zeros_like(normal[:1]), torch.full_like(normal[:1], -torch.inf)]
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    for given in (scores, normal):
        assert compiled(".kernels.derivation_rows", "sparsemarg.oracles", "best", given.device) is not None
        fast, total = polytope.graph.best(given, polytope.gates(given))
        answer = polytope.maximize(given)
        with monkeypatch.context() as patch:
            patch.setenv("SPARSEMARG_KERNELS", "off")
            plain, wanted = polytope.graph.best(given, polytope.gates(given))
            assert torch.equal(answer, polytope.maximize(given))
        assert fast.dtype == total.dtype == dtype
        assert torch.equal(total, wanted)
        assert torch.equal(fast, plain)
    assert not wanted.isneginf().any()


def test_a_large_knapsack_is_solved_without_its_graph() -> None:
    """Of ten million nodes, against items that are all alike: as many of the best as fit."""
    polytope = Knapsack([10**3] * 100, 10**5 - 1)
    scores = torch.rand(3, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(polytope.maximize(scores), Budget(100, 99).maximize(scores))
    assert "graph" not in vars(polytope)
    with pytest.raises(RuntimeError, match=r"write `polytope.graph` once before"):
        torch.func.vmap(lambda one: polytope.maximize(one[None])[0])(scores)


def test_a_weight_beyond_all_integers_never_fits() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0]])
    assert Knapsack([10**20, 1, 2], 2).maximize(scores).tolist() == [[0, 0, 1]]
    assert sparsemap(scores, Knapsack([10**20, 1, 2], 2)).mode().tolist() == [[0, 0, 1]]


OF_THEIR_OWN = {
    "chain_rows": [LinearChain(7, 9)],
    "projective_rows": [ProjectiveTree(7), ProjectiveTree(7, single_root=True)],
}


@pytest.mark.parametrize(("module", "polytope"), [(name, one) for name, some in OF_THEIR_OWN.items() for one in some], ids=repr)
def test_kernels_of_their_own_for_any_length(
    module: str, polytope: LinearChain | ProjectiveTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that are forbidden at the end, in between, or from the first on."""
    assert compiled(f".kernels.{module}", "sparsemarg.oracles", "best", torch.device("cpu")) is not None
    normal = torch.randn(21, polytope.dim, generator=torch.Generator().manual_seed(0))
    ended = polytope.mask(normal, torch.arange(21) % 7 + 1)
    zero = polytope.mask(torch.zeros_like(normal), torch.arange(21) % 7 + 1)
    blocked = normal.clone()
    width = polytope.states if isinstance(polytope, LinearChain) else polytope.words  # of a position, or all arcs to a word
    for row in range(21):
        blocked[row, row % 7 * width : (row % 7 + 1) * width] = -torch.inf
    scores = torch.cat([ended, zero, blocked])
    fast = polytope.maximize(scores)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert torch.equal(fast, polytope.maximize(scores))
    assert torch.equal(fast[42], scores[42].isneginf().float())


SMALL = [LinearChain(3, 2), ProjectiveTree(3), Arborescence(3), SpanningTree([(0, 1), (1, 2), (0, 2)])]


@pytest.mark.parametrize("kernels", ["on", "off"])
@pytest.mark.parametrize("polytope", [*SMALL, Knapsack([1, 2], 2), ShortestPath.grid(3, 3)], ids=repr)
def test_other_shapes_are_refused(polytope: Derivations, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    for shape in ((2, polytope.dim - 1), (2, polytope.dim + 1), (polytope.dim,), (1, 2, polytope.dim)):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            polytope.maximize(torch.zeros(shape))
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            polytope.topk(torch.zeros(shape, dtype=torch.float64), 2)


@pytest.mark.parametrize("polytope", SMALL, ids=repr)
def test_kernels_answer_where_the_scores_are(polytope: Derivations) -> None:
    """Whatever the default device is; also scores that stand for their negatives, as parts of conjugates do."""
    scores = torch.randn(5, polytope.dim, generator=torch.Generator().manual_seed(0))
    wanted = polytope.maximize(scores)
    with torch.device("meta"):
        assert torch.equal(polytope.maximize(scores), wanted)
    assert torch.equal(polytope.maximize(torch.complex(scores, -scores).conj().imag), wanted)


NARROW = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("k", [1, 2, 7, 60])
@pytest.mark.parametrize("polytope", LARGER, ids=repr)
def test_the_compiled_k_best_are_the_plain_ones(polytope: Derivations, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, ties and all, in two threads; with forbidden coordinates there are fewer than k."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6, polytope.dim, generator=generator, dtype=torch.float64)
    few = torch.where(torch.rand(normal.shape, generator=generator) < 0.3, -torch.inf, normal)
    scores = torch.cat([normal, (2 * normal).round(), few, torch.zeros_like(normal[:1])])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    assert compiled(".kernels.kbest_rows", "sparsemarg.oracles", "kbest", scores.device) is not None
    fast, totals = polytope.graph.kbest(scores, k, polytope.gates(scores))
    narrow = {dtype: polytope.graph.kbest(scores, k, polytope.gates(scores), dtype)[0] for dtype in NARROW}
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    plain, wanted = polytope.graph.kbest(scores, k, polytope.gates(scores))
    assert torch.equal(totals, wanted)
    assert torch.equal(fast, plain)
    for dtype, structures in narrow.items():
        assert torch.equal(structures, plain.to(dtype))


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_k_is_at_least_one(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"topk: k must be at least 1, not {k}"):
            LinearChain(3, 2).topk(torch.zeros(2, 14), k)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_gates_are_open_where_none_are_given(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    graph = Hypergraph(2, [Edge(0, (), (0,), gate=4000), Edge(0, (), (1,))], 0)
    scores = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    assert graph.kbest(scores, 2)[1].tolist() == [[1.0, 0.5]]
    assert graph.best(scores)[1].tolist() == [1.0]
    shut = torch.full((1, 4001), -math.inf, dtype=torch.float64, requires_grad=True)
    assert graph.kbest(scores, 2, shut)[1].tolist() == [[0.5, -math.inf]]
    assert graph.best(scores, shut)[0].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_nan_is_passed_on(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", kernels)
    chain = LinearChain(3, 2)
    scores = scores_of(chain, 4)
    scores[1, 0] = math.nan
    assert chain.graph.best(scores, chain.gates(scores))[1].isnan().tolist() == [False, True, False, False]
    assert chain.topk(scores, 3)[1].all(-1).tolist() == [True, False, True, True]
    assert not chain.topk(scores, 3)[1][1].any()
