"""Products with repeated parts, which are solved together. Truth is the list of all combinations of the parts' structures."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import KINDS, Ring, enumerated, projection, scores_for
from sparsemarg.layers.functional import sparsemap
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.oracles import Blocks, Budget, LinearChain, Polytope, Product, Simplex, topk
from sparsemarg.oracles.product import best_sums
from sparsemarg.verification import parametrize_with_checks
from structures import assert_same_bits
from torch import Tensor

MIXED = Product(Simplex(2), Budget(3, 1), Simplex(2), Budget(3, 2), Budget(3, 1))
# Putting equal parts together is its own inverse here, and yet not the identity.
SWAPPED = Product(Simplex(2), Budget(2, 1), Simplex(2))


def combinations(polytope: Product) -> Tensor:
    listed = [enumerated(part) for part in polytope.parts]
    return torch.stack([torch.cat(rows) for rows in itertools.product(*listed)])


class Counting(Polytope):
    """Two bits of which the better is on; counts how often it is asked."""

    dim = 2

    def __init__(self) -> None:
        self.calls: list[int] = []

    def maximize(self, scores: Tensor) -> Tensor:
        self.calls.append(len(scores))
        return torch.nn.functional.one_hot(scores.argmax(-1), 2).to(scores)


def test_equal_parts_are_asked_together() -> None:
    part, other = Counting(), Counting()
    polytope = Blocks(part, other, *[part] * 30)
    scores = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    found = polytope.maximize(scores)
    assert part.calls == [5 * 31]
    assert other.calls == [5]
    assert torch.equal(found.unflatten(-1, (32, 2)).argmax(-1), scores.unflatten(-1, (32, 2)).argmax(-1))
    assert [block.shape for block in polytope.blocks(found)] == [(5, 2)] * 32


@pytest.mark.parametrize("polytope", [MIXED, SWAPPED], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_against_all_combinations(polytope: Product, kind: str) -> None:
    structures = combinations(polytope)
    rows = {tuple(row) for row in structures.tolist()}
    assert sorted(polytope.vertices().tolist()) == sorted(structures.tolist())
    scores = scores_for(polytope, kind, batch=10)
    wanted = (scores @ structures.T).sort(-1, descending=True).values
    found = polytope.maximize(scores)
    assert {tuple(row) for row in found.tolist()} <= rows
    torch.testing.assert_close((found * scores).sum(-1), wanted[:, 0], rtol=0, atol=1e-12)
    for k in (1, 7, 40, 500):
        kbest, valid = topk(polytope, scores, k)
        count = min(k, len(structures))
        assert torch.equal(valid, (torch.arange(k) < count).expand(10, -1))
        totals = (kbest[:, :count] * scores[:, None]).sum(-1)
        torch.testing.assert_close(totals, wanted[:, :count], rtol=0, atol=1e-12)
        for row in kbest[:, :count].tolist():
            assert len({tuple(atom) for atom in row}) == count
            assert {tuple(atom) for atom in row} <= rows
    mean = polytope.project(scores)
    torch.testing.assert_close(mean, projection(structures, scores), rtol=0, atol=1e-8)
    atoms, probs = polytope.decompose(mean)
    torch.testing.assert_close((probs[..., None] * atoms).sum(-2), mean, rtol=0, atol=1e-10)
    assert {tuple(atom) for atom in atoms[probs > 1e-12].tolist()} <= rows
    torch.testing.assert_close(sparsemap(scores, polytope, solver=SortedDecomposition()).mean(), mean, rtol=0, atol=1e-8)


def test_gibbs() -> None:
    structures = combinations(MIXED)
    scores = scores_for(MIXED, "normal").requires_grad_()
    logs = (scores @ structures.T).log_softmax(-1)
    gibbs = MIXED.gibbs(scores)
    torch.testing.assert_close(gibbs.log_prob(structures[:, None].expand(-1, 8, -1)).T, logs, rtol=0, atol=1e-10)
    entropy = torch.special.entr(logs.exp()).sum(-1)
    torch.testing.assert_close(gibbs.entropy(), entropy, rtol=0, atol=1e-10)
    found, wanted = (torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (gibbs.entropy(), entropy))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    drawn = gibbs.sample((4000,), torch.Generator().manual_seed(0))
    mean = logs.detach().exp() @ structures
    error = (drawn.mean(0) - mean).abs() / (mean * (1 - mean) / 4000 + 1e-12).sqrt()
    assert float(error.max()) < 5


def test_many_chains_of_unequal_length() -> None:
    """Fifty masked chains as one product: each is what it is alone."""
    chain = LinearChain(4, 2)
    polytope = Product(*[chain] * 50)
    scores = torch.randn(3, 50, chain.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(150).reshape(3, 50) % 4 + 1
    masked = chain.mask(scores, lengths)
    flat = masked.flatten(-2)
    assert torch.equal(polytope.maximize(flat), chain.maximize(masked.flatten(0, 1)).reshape(flat.shape))
    entropy = chain.gibbs(masked).entropy().sum(-1)
    torch.testing.assert_close(polytope.gibbs(flat).entropy(), entropy)
    best, valid = topk(polytope, flat, 5)
    assert bool(valid.all())
    singles, _ = topk(chain, masked, 2)
    finite = torch.where(masked.isneginf(), 0, masked)
    loss = (singles * finite[..., None, :]).sum(-1).diff(dim=-1)[..., 0].abs()
    totals = (best * finite.flatten(-2)[:, None]).sum(-1)
    # The second best takes the second best of the chain that loses least by it.
    torch.testing.assert_close(totals[:, 0] - totals[:, 1], loss.amin(-1), rtol=0, atol=1e-10)


def test_mixed_sizes_give_what_each_gives_alone() -> None:
    chain = LinearChain(3, 2)
    polytope = Product(chain, Simplex(3), chain)
    scores = torch.randn(6, 2, chain.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    masked = chain.mask(scores, torch.arange(12).reshape(6, 2) % 3 + 1)
    flat = torch.cat([masked[:, 0], scores[:, 0, :3], masked[:, 1]], -1)
    together, (kbest, valid) = sparsemap(flat, polytope), polytope.topk(flat, 5)
    for row in range(6):
        alone, mine = sparsemap(flat[row : row + 1], polytope), together.row == row
        assert torch.equal(alone.atoms, together.atoms[mine])
        assert_same_bits(alone.probs, together.probs[mine])
        one_best, one_valid = polytope.topk(flat[row : row + 1], 5)
        assert torch.equal(one_best[0], kbest[row])
        assert torch.equal(one_valid[0], valid[row])


@pytest.mark.parametrize(("lists", "k"), [(1, 3), (2, 1), (3, 5), (5, 4), (8, 6)])
def test_best_sums(lists: int, k: int) -> None:
    totals = torch.randn(4, lists, k, dtype=torch.float64, generator=torch.Generator().manual_seed(lists)).round(decimals=1)
    totals = totals.sort(-1, descending=True).values
    totals[0, 0, 1:] = -torch.inf
    found, ranks = best_sums(totals)
    for row in range(4):
        every = sorted((sum(choice) for choice in itertools.product(*totals[row].tolist())), reverse=True)[:k]
        wanted = torch.tensor([*every, *[-torch.inf] * (k - len(every))], dtype=torch.float64)
        torch.testing.assert_close(found[row], wanted)
        sums = totals[row].gather(-1, ranks[row]).sum(0)
        torch.testing.assert_close(sums[found[row] > -torch.inf], found[row][found[row] > -torch.inf])
        assert len({tuple(rank) for rank in ranks[row].T[found[row] > -torch.inf].tolist()}) == int(
            (found[row].isfinite()).sum()
        )


@dataclass
class Unhashable(Polytope):
    """A mutable dataclass compares by value and cannot be hashed."""

    dim: int = 2

    def maximize(self, scores: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(scores.argmax(-1), self.dim).to(scores)


def test_parts_that_cannot_be_hashed() -> None:
    part = Unhashable()
    polytope = Product(part, Simplex(3), part, Unhashable())
    scores = torch.tensor([[1.0, 0, 0, 1, 0, 0, 1, 1, 0]])
    assert polytope.maximize(scores).tolist() == [[1, 0, 0, 1, 0, 0, 1, 1, 0]]


def test_repr_counts_repeated_parts() -> None:
    assert (
        repr(Product(*[Simplex(3)] * 3, Budget(4, 2)))
        == "Product(*[Simplex(dim=3)] * 3, Budget(dim=4, budget=2, exactly=False))"
    )


def test_a_part_that_breaks_the_contract_is_named() -> None:
    class Broken(Polytope):
        dim = 2

        def maximize(self, scores: Tensor) -> Tensor:
            return scores[..., :1]

    with pytest.raises(ValueError, match=r"Broken.maximize must return one structure a row"):
        Product(Broken(), Simplex(2)).maximize(torch.zeros(3, 4))


REPEATED = Product(Simplex(2), Budget(3, 1), Simplex(2))


@parametrize_with_checks([REPEATED, SWAPPED, Product(*[Ring()] * 2)], batch=2)
def test_verification(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([REPEATED], batch=2, skip=["by cvxpy"], dtype=torch.float32)
def test_verification_float32(check: Callable[[], None]) -> None:
    check()


@dataclass(frozen=True)
class Listed(Polytope):
    """A dataclass that cannot be hashed for what it holds."""

    on: list[int]
    dim: int = 3

    def maximize(self, scores: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(scores[:, self.on].argmax(-1), self.dim).to(scores)


def test_parts_that_cannot_be_hashed_stand_for_themselves() -> None:
    product = Product(Listed([0, 1, 2]), Listed([0, 1, 2]), Simplex(2))
    scores = scores_for(product, "normal")
    wanted = torch.cat(
        [projection(torch.eye(d).double(), block) for d, block in zip((3, 3, 2), scores.split([3, 3, 2], -1), strict=True)], -1
    )
    torch.testing.assert_close(sparsemap(scores, product).mean(), wanted, rtol=0, atol=1e-8)


def test_an_empty_batch_has_an_empty_decomposition() -> None:
    found = sparsemap(torch.zeros(0, 7), Product(Simplex(3), Budget(4, 2)), solver=SortedDecomposition())
    assert found.mean().shape == (0, 7)
