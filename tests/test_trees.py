"""Non-projective dependency trees. Truth: every choice of heads without a cycle, softmax over those, integer programmes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sparsemarg.kernels import compiled
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import Arborescence, ProjectiveTree, topk
from sparsemarg.verification import parametrize_with_checks
from structures import as_set, assert_k_best, assert_random_problems, assert_same_bits, scores_of
from torch import Tensor
from tree_cases import SIZES, case, is_tree


@pytest.mark.parametrize(("words", "single_root"), SIZES)
def test_vertices_and_maximize(words: int, single_root: bool) -> None:
    polytope, structures = case(words, single_root)
    listed = polytope.vertices()
    assert len(listed) == len(structures) == (words ** (words - 1) if single_root else (words + 1) ** (words - 1))
    assert as_set(listed) == as_set(structures)
    for dtype in (torch.float32, torch.float64):
        scores = scores_of(polytope, 300).to(dtype)
        found = polytope.maximize(scores)
        assert found.dtype == dtype
        assert torch.equal(found.double(), structures[(scores.double() @ structures.T).argmax(-1)])
    for scores in (scores_of(polytope, 100).round(), torch.zeros(3, polytope.dim), 1e8 * scores_of(polytope, 100)):
        found = polytope.maximize(scores.double())
        assert as_set(found) <= as_set(structures)
        best = (scores.double() @ structures.T).amax(-1)
        torch.testing.assert_close((found * scores).sum(-1), best, rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("single_root", [False, True])
def test_maximize_of_long_sentences(single_root: bool) -> None:
    """25 words, by scores that make long chains of nested cycles, too: no tree weighs more, by an integer programme."""
    words = 25
    polytope = Arborescence(words, single_root=single_root)
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(2, words + 1, words + 1, dtype=torch.float64, generator=generator)
    step = torch.arange(words + 1)
    nested = -(step[:, None] - step).abs().double() - 20.0 * (step == 0)[:, None] + 0.01 * random[:1]
    scores = polytope.scores(torch.cat([random, nested, (2 * random[:1]).round()]))
    found = polytope.maximize(scores)
    for row in range(len(scores)):
        assert is_tree(polytope, found[row])
        assert abs(float(found[row] @ scores[row]) - heaviest_by_flow(polytope, scores[row])) < 1e-6


def heaviest_by_flow(polytope: Arborescence, scores: Tensor) -> float:
    """Max <x, scores>, one arc into each word, over arcs on which a flow from the root to all words fits (Gavish 1982)."""
    words, arcs = polytope.words, polytope.arcs
    ends = list(zip(arcs.heads.tolist(), arcs.modifiers.tolist(), strict=True))
    count = len(ends)
    conserve = np.zeros((words, 2 * count))
    into = np.zeros((words, 2 * count))
    for place, (head, word) in enumerate(ends):
        conserve[word - 1, count + place] += 1
        if head:
            conserve[head - 1, count + place] -= 1
        into[word - 1, place] = 1
    equal = [conserve, into]
    if polytope.single_root:
        equal.append(np.array([[float(head == 0) for head, _ in ends] + [0.0] * count]))
    a_eq = np.concatenate(equal)
    capacity = np.concatenate([-words * np.eye(count), np.eye(count)], 1)
    found = linprog(
        np.concatenate([-scores.numpy(), np.zeros(count)]),
        A_ub=capacity,
        b_ub=np.zeros(count),
        A_eq=a_eq,
        b_eq=np.ones(len(a_eq)),
        bounds=[(0, 1)] * count + [(0, words)] * count,
        integrality=np.concatenate([np.ones(count), np.zeros(count)]),
        options={"mip_rel_gap": 0.0},
    )
    return -float(found.fun)


@pytest.mark.parametrize(("words", "single_root"), SIZES)
@pytest.mark.parametrize("k", [1, 6, 130])
def test_k_best(words: int, single_root: bool, k: int) -> None:
    assert_k_best(*case(words, single_root), k)


@pytest.mark.parametrize("single_root", [False, True])
def test_forbidden_arcs(single_root: bool) -> None:
    """Rows of random `-inf` give what the allowed trees alone give; rows that allow none are refused by number."""
    polytope, structures = case(4, single_root)
    blocked = torch.rand(120, 16, generator=torch.Generator().manual_seed(2)) < 0.4
    blocked &= ~blocked.unflatten(-1, (4, 4)).all(-1).any(-1)[:, None]  # those end the sentence: see below
    scores = scores_of(polytope, 120).masked_fill(blocked, -torch.inf)
    allowed = ~((structures[None] != 0) & blocked[:, None]).any(-1)
    some = allowed.any(-1)
    assert 30 < int(some.sum()) < 120
    finite = torch.where(blocked, 0, scores)[some]
    logits = (finite @ structures.T).masked_fill(~allowed[some], -torch.inf)
    assert torch.equal(polytope.maximize(scores[some]), structures[logits.argmax(-1)])
    found, valid = topk(polytope, scores[some], 8)
    assert torch.equal(valid.sum(-1), allowed[some].sum(-1).clamp(max=8))
    totals = (found * finite[:, None]).sum(-1).masked_fill(~valid, -torch.inf)
    torch.testing.assert_close(totals, logits.sort(-1, descending=True).values[:, :8], rtol=0, atol=1e-12)
    gibbs, probs = polytope.gibbs(scores[some]), logits.softmax(-1)
    torch.testing.assert_close(gibbs.entropy(), torch.special.entr(probs).sum(-1), rtol=0, atol=1e-10)
    log_prob = gibbs.log_prob(structures[:, None].expand(-1, int(some.sum()), -1)).T
    torch.testing.assert_close(log_prob, logits.log_softmax(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(gibbs.marginals(), probs @ structures, rtol=0, atol=1e-10)
    drawn = gibbs.sample((20,), torch.Generator().manual_seed(1))
    assert bool((gibbs.log_prob(drawn) > -torch.inf).all())
    for row in (~some).nonzero()[:5, 0].tolist():
        for ask in (polytope.gibbs, lambda s: sparsemap(s, polytope)):
            with pytest.raises(ValueError, match="row 0 allows no structure"):
                ask(scores[row : row + 1])


def test_nothing_at_all_is_refused() -> None:
    polytope = Arborescence(3)
    scores = torch.zeros(2, 9)
    scores[1] = -torch.inf
    for ask in (polytope.gibbs, lambda s: sparsemap(s, polytope)):
        with pytest.raises(ValueError, match="row 1 allows no structure"):
            ask(scores)
    assert not topk(polytope, scores, 2)[1][1].any()


@pytest.mark.parametrize("single_root", [False, True])
def test_mixed_sizes_give_what_each_gives_alone(single_root: bool) -> None:
    """One by one the same trees, probabilities to the last bits; as sentences of their own length the same, too."""
    large = Arborescence(5, single_root=single_root)
    lengths = torch.tensor([5, 1, 3, 2, 4, 5, 1, 3])
    scores = large.mask(scores_of(large, 8), lengths)
    together = sparsemap(scores, large)
    best, (kbest, valid), gibbs = large.maximize(scores), large.topk(scores, 6), large.gibbs(scores)
    entropy, mean, drawn = gibbs.entropy(), gibbs.marginals(), gibbs.sample((50,), torch.Generator().manual_seed(0))
    assert torch.equal((large.heads(drawn) >= 0).sum(-1), lengths.expand(50, -1))
    for row, length in enumerate(lengths.tolist()):
        alone, mine = sparsemap(scores[row : row + 1], large), together.row == row
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        one = scores[row : row + 1]
        assert torch.equal(large.maximize(one)[0], best[row])
        assert torch.equal(large.topk(one, 6)[0][0], kbest[row])
        assert torch.equal(large.gibbs(one).entropy()[0], entropy[row])
        assert torch.equal(large.gibbs(one).marginals()[0], mean[row])

        small = Arborescence(length, single_root=single_root)

        def embedded(structures: Tensor, small: Arborescence = small) -> Tensor:
            pad = large.words - small.words
            return large.scores(torch.nn.functional.pad(small.arcs.matrix(structures), (0, pad, 0, pad)))

        own = small.scores(large.arcs.matrix(one)[:, : length + 1, : length + 1])
        assert torch.equal(embedded(small.maximize(own))[0], best[row])
        listed, exists = small.topk(own, 6)
        assert torch.equal(exists[0], valid[row])
        assert torch.equal(embedded(listed[0]), kbest[row])
        torch.testing.assert_close(small.gibbs(own).entropy()[0], entropy[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(embedded(small.gibbs(own).marginals())[0], mean[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(embedded(sparsemap(own, small).mean())[0], together.mean()[row], rtol=0, atol=1e-8)


def test_takes_the_coordinates_of_projective_trees() -> None:
    """One mask, one layout; and of all trees the best is no worse than the best projective one."""
    crossing, nested = Arborescence(5), ProjectiveTree(5)
    scores, lengths = scores_of(crossing, 40), torch.arange(40) % 5 + 1
    masked = crossing.mask(scores, lengths)
    assert torch.equal(masked, nested.mask(scores, lengths))
    finite = torch.where(masked.isneginf(), 0, masked)
    all_trees, projective = crossing.maximize(masked), nested.maximize(masked)
    assert torch.equal((crossing.heads(all_trees) >= 0).sum(-1), lengths)
    assert bool(((all_trees * finite).sum(-1) >= (projective * finite).sum(-1) - 1e-12).all())
    assert bool((crossing.gibbs(masked).log_prob(projective) > -torch.inf).all())


@pytest.mark.parametrize("shape", [(0, 9), (9,), (2, 3, 9)])
def test_any_batch(shape: tuple[int, ...]) -> None:
    polytope = Arborescence(3)
    assert sparsemap(torch.randn(shape), polytope).mean().shape == shape
    vertices, valid = topk(polytope, torch.randn(shape), 2)
    assert vertices.shape == (*shape[:-1], 2, 9)
    assert valid.shape == (*shape[:-1], 2)
    gibbs = polytope.gibbs(torch.randn(shape))
    assert gibbs.marginals().shape == shape
    assert gibbs.sample((4,)).shape == (4, *shape)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Arborescence(0), "Arborescence: words must be at least 1, not 0"),
        (lambda: Arborescence(3).mask(torch.zeros(2, 9), torch.tensor([3, 4])), "but that of problem 1 is 4"),
        (lambda: Arborescence(3).mask(torch.zeros(2, 9), torch.tensor([0, 3])), "but that of problem 0 is 0"),
        (lambda: Arborescence(3).mask(torch.zeros(2, 9), torch.tensor([[3], [2]])), r"must be \[2\], a number for each"),
        (lambda: Arborescence(3).scores(torch.zeros(2, 6, 6)), r"are \[\*B, 4, 4\] by \(head, word\).*, not \[2, 6, 6\]"),
        (lambda: Arborescence(3).mask(torch.zeros(2, 4, 4), torch.tensor([3, 2])), "scores has 4 columns but .* needs 9"),
        (lambda: ProjectiveTree(3).mask([[0.0] * 9], torch.tensor([3])), "a float tensor, not list"),  # pyright: ignore
        (lambda: Arborescence(9).vertices(), "has up to 1000000000 structures, too many to enumerate"),
        (lambda: Arborescence(11).halfspaces(), r"has 2\^11 halfspaces, too many to list"),
        (lambda: Arborescence(2).gibbs(torch.zeros(3, 5)), "scores has 5 columns"),
    ],
)
def test_bad_input_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.slow
@pytest.mark.parametrize("polytope", [Arborescence(5), Arborescence(5, single_root=True)], ids=repr)
def test_sparsemap_on_random_problems(polytope: Arborescence) -> None:
    assert_random_problems(polytope)


VERIFIED = [Arborescence(3), Arborescence(3, single_root=True), Arborescence(1)]


@parametrize_with_checks(VERIFIED, batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(VERIFIED[:2], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()


def test_arcs_that_there_are_none_of() -> None:
    """Heads that no word has are left out: of nothing, a word of itself, a word beyond."""
    arcs = Arborescence(3).arcs
    structures = arcs.structures(torch.tensor([[0, 1, 2], [1, 4, -1], [-1, 2, 9]]))
    assert arcs.heads_of(structures).tolist() == [[0, 1, 2], [-1, -1, -1], [-1, -1, -1]]


@pytest.mark.parametrize("single_root", [False, True])
@pytest.mark.parametrize("words", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_contractions_are_the_plain_ones(
    words: int, single_root: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two threads: ties, missing arcs, shorter sentences, graphs without a tree, NaN."""
    polytope, generator = Arborescence(words, single_root=single_root), torch.Generator().manual_seed(words)
    normal = torch.randn(words**2, 60, generator=generator, dtype=dtype).T  # not contiguous
    sparse = torch.where(torch.rand(normal.shape, generator=generator) < 0.5, -torch.inf, normal)
    short = polytope.mask(normal, torch.randint(1, words + 1, (60,), generator=generator))
    tied = (2 * normal).round()
    broken = torch.where(torch.rand(normal.shape, generator=generator) < 0.1, torch.nan, normal)
    scores = torch.cat([normal, tied, sparse, short, torch.zeros_like(normal), torch.full_like(normal[:1], -torch.inf), broken])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    assert compiled(".kernels.edmonds_rows", "sparsemarg.oracles", "best", scores.device) is not None
    found = polytope.maximize(scores)
    monkeypatch.setenv("SPARSEMARG_KERNELS", "off")
    assert found.dtype == dtype
    assert torch.equal(found, polytope.maximize(scores))
    assert (polytope.heads(found[:60]) >= 0).all()
