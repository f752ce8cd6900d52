"""Gibbs distributions over dependency trees. Truth: softmax over every choice of heads without a cycle."""

import pytest
import torch
from sparsemarg.oracles import Arborescence, ProjectiveTree
from structures import assert_gibbs, scores_of
from tree_cases import SIZES, case, is_tree


@pytest.mark.parametrize(("words", "single_root"), SIZES)
def test_gibbs(words: int, single_root: bool) -> None:
    assert_gibbs(*case(words, single_root))


@pytest.mark.parametrize("single_root", [False, True])
def test_gibbs_of_very_unequal_scores(single_root: bool) -> None:
    """Scores of size 100: determinants of the Laplacian have no correct digit there."""
    polytope, structures = case(4, single_root)
    scores = 100 * scores_of(polytope, 20)
    matrix = polytope.arcs.matrix(scores)
    matrix[:10, 0] -= 300  # hardly an arc from the root
    scores = polytope.scores(matrix)
    logs = (scores @ structures.T).log_softmax(-1)
    gibbs = polytope.gibbs(scores)
    torch.testing.assert_close(gibbs.log_prob(structures[:, None].expand(-1, 20, -1)).T, logs, rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(gibbs.marginals(), logs.exp() @ structures, rtol=0, atol=1e-10)
    torch.testing.assert_close(gibbs.entropy(), torch.special.entr(logs.exp()).sum(-1), rtol=0, atol=1e-10)
    drawn = gibbs.sample((5,), torch.Generator().manual_seed(0))
    assert bool((gibbs.log_prob(drawn) > -60).all())


@pytest.mark.parametrize("single_root", [False, True])
def test_gibbs_of_long_sentences(single_root: bool) -> None:
    """20 words: the normaliser is the determinant of the Laplacian (for a single root, that of Koo et al. 2007)."""
    polytope = Arborescence(20, single_root=single_root)
    scores = scores_of(polytope, 4)
    weights = polytope.arcs.matrix(scores).exp()
    weights.diagonal(dim1=-2, dim2=-1)[:] = 0
    inner, root = weights[:, 1:, 1:], weights[:, 0, 1:]
    laplacian = torch.diag_embed(inner.sum(-2) + (0 if single_root else root)) - inner
    if single_root:
        laplacian[:, 0] = root
    gibbs = polytope.gibbs(scores)
    best = polytope.maximize(scores)
    total = (best * scores).sum(-1) - gibbs.log_prob(best)
    torch.testing.assert_close(total, torch.linalg.slogdet(laplacian).logabsdet, rtol=0, atol=1e-10)
    drawn = gibbs.sample((5,), torch.Generator().manual_seed(0))
    assert all(is_tree(polytope, tree) for tree in drawn.flatten(0, 1))


def test_gibbs_is_minus_infinity_off_the_set() -> None:
    gibbs = Arborescence(3, single_root=True).gibbs(torch.zeros(9))
    arcs = Arborescence(3).arcs
    cycle, two_roots = arcs.structures(torch.tensor([2, 1, 0])), arcs.structures(torch.tensor([0, 0, 1]))
    tree = arcs.structures(torch.tensor([0, 1, 1]))
    for structure in (cycle, two_roots, torch.zeros(9), torch.ones(9), torch.full((9,), 0.5), 2 * tree):
        assert float(gibbs.log_prob(structure)) == -torch.inf
    shorter = arcs.structures(torch.tensor([0, 1, -1]))
    for structure in (cycle, shorter, torch.zeros(9)):
        assert float(Arborescence(3).gibbs(torch.zeros(9)).log_prob(structure)) == -torch.inf
    assert float(gibbs.log_prob(tree)) > -torch.inf


@pytest.mark.parametrize(("words", "single_root"), [(3, False), (4, True), (4, False)])
def test_samples_follow_the_distribution(words: int, single_root: bool) -> None:
    """Each tree's frequency within 5 standard errors."""
    polytope, structures = case(words, single_root)
    scores = scores_of(polytope, 2, seed=3)
    probs = (scores @ structures.T).softmax(-1)
    count = 20_000
    drawn = polytope.gibbs(scores).sample((count,), torch.Generator().manual_seed(0))
    assert drawn.shape == (count, 2, polytope.dim)
    key = scores_of(polytope, 1, seed=1)[0]
    for row in range(2):
        match = ((drawn[:, row] @ key)[:, None] - structures @ key).abs() < 1e-9
        assert bool((match.sum(1) == 1).all())
        error = (match.double().mean(0) - probs[row]).abs() / (probs[row] * (1 - probs[row]) / count + 1e-9).sqrt()
        assert float(error.max()) < 5


@pytest.mark.parametrize("single_root", [False, True])
def test_samples_of_longer_sentences(single_root: bool) -> None:
    """Each arc's frequency within 5 standard errors, where chains as long as the sentence are common."""
    polytope = Arborescence(9, single_root=single_root)
    after = polytope.arcs.structures(torch.arange(9))  # each word hangs on the one before
    scores = scores_of(polytope, 3, seed=7) + 3 * after
    gibbs, count = polytope.gibbs(scores), 20_000
    mean, wanted = gibbs.sample((count,), torch.Generator().manual_seed(0)).mean(0), gibbs.marginals()
    error = (wanted * (1 - wanted) / count).sqrt()
    assert bool(((mean - wanted).abs() < 5 * error + 4 / count).all())
    assert bool((wanted[:, after > 0].mean(-1) > 0.5).all())


@pytest.mark.parametrize("words", [3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_the_batch(words: int, dtype: torch.dtype) -> None:
    """To the bit: log-probabilities, entropies and marginals."""
    polytope = Arborescence(words)
    for seed in range(20):
        scores = 2 * scores_of(polytope, 3, seed).to(dtype)
        tree = polytope.maximize(scores)
        together = polytope.gibbs(scores)
        for row in range(3):
            alone = polytope.gibbs(scores[row])
            assert torch.equal(alone.log_prob(tree[row]), together.log_prob(tree)[row])
            assert torch.equal(alone.entropy(), together.entropy()[row])
            assert torch.equal(alone.marginals(), together.marginals()[row])


@pytest.mark.parametrize("single_root", [False, True])
def test_samples_of_mixed_sizes_and_forbidden_arcs(single_root: bool) -> None:
    """Each tree's frequency within 5 standard errors of its probability, which is 0 for the others."""
    polytope = Arborescence(4, single_root=single_root)
    scores = polytope.mask(2 * scores_of(polytope, 8, seed=5), torch.arange(8) % 4 + 1)
    blocked = torch.rand(8, 16, generator=torch.Generator().manual_seed(6)) < 0.15
    scores = torch.where(blocked & ~polytope.arcs.structures(torch.tensor([0, 1, 1, 2])).bool(), -torch.inf, scores)
    gibbs, count = polytope.gibbs(scores), 20_000
    drawn = gibbs.sample((count,), torch.Generator().manual_seed(0))
    for row in range(8):
        trees, frequency = drawn[:, row].unique(dim=0, return_counts=True)
        probs = polytope.gibbs(scores[row]).log_prob(trees).exp()
        error = (probs * (1 - probs) / count).sqrt()
        assert bool(((frequency / count - probs).abs() < 5 * error + 4 / count).all())  # rare ones come a few times or not
        assert float(probs.sum()) > 1 - 100 / count


@pytest.mark.parametrize("polytope", [Arborescence(3), Arborescence(3, single_root=True), ProjectiveTree(3)], ids=repr)
def test_gibbs_in_inference_mode(polytope: Arborescence | ProjectiveTree) -> None:
    scores = scores_of(polytope, 4)
    wanted = polytope.gibbs(scores)
    with torch.inference_mode():
        found = polytope.gibbs(scores.clone())
        means, entropy, drawn = found.marginals(), found.entropy(), found.sample((5,))
        assert (found.log_prob(drawn) > -torch.inf).all()
    torch.testing.assert_close(means, wanted.marginals(), rtol=0, atol=0)
    torch.testing.assert_close(entropy, wanted.entropy(), rtol=0, atol=0)


def test_gibbs_of_an_empty_batch() -> None:
    polytope = ProjectiveTree(3)
    assert polytope.gibbs(torch.zeros(0, polytope.dim)).log_prob(torch.zeros(0, polytope.dim)).shape == (0,)
