"""Gibbs distributions in higher derivatives, in few digits, and of large scores. Truth is the same in float64, or a list."""

import itertools
import math
from typing import Any

import pytest
import torch
from sparsemarg.layers.functional import sparsemap
from sparsemarg.oracles import (
    Arborescence,
    BernoulliCube,
    Budget,
    Explicit,
    Knapsack,
    LinearChain,
    Product,
    ProjectiveTree,
    Segmentation,
    Simplex,
    SpanningTree,
    SupportsGibbs,
)
from sparsemarg.verification import verify
from torch import Tensor
from torch.autograd.functional import hessian

COMPLETE = [*itertools.combinations(range(6), 2), (0, 1), (3, 2)]
TRIANGLE = SpanningTree([(0, 1), (1, 2), (0, 2)])

EVERY = [
    Budget(5, 2),
    Budget(5, 3, exactly=True),
    Budget(4, 0),
    Budget(4, 4),
    Product(Budget(3, 1), Budget(3, 1)),
    LinearChain(3, 2),
    Segmentation(3, 2, 2),
    Knapsack([1, 2, 3, 2], 5),
    ProjectiveTree(3),
    Arborescence(3),
    Arborescence(3, single_root=True),
    SpanningTree([(0, 1), (1, 2), (0, 2), (1, 0), (2, 3)]),
]


@pytest.mark.parametrize("polytope", EVERY, ids=str)
def test_second_derivatives_are_those_of_the_listed_structures(polytope: Any) -> None:
    vertices = polytope.vertices()
    listed = Explicit(vertices)
    scores = torch.randn(polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def entropy(which: SupportsGibbs, scores: Tensor) -> Tensor:
        return which.gibbs(scores).entropy().sum()

    def log_prob(which: SupportsGibbs, scores: Tensor) -> Tensor:
        return which.gibbs(scores).log_prob(vertices[-1]).sum()

    for scale in (1, 10):
        for function in (entropy, log_prob):
            found, expected = (hessian(lambda t, f=function, p=p: f(p, t), scale * scores) for p in (polytope, listed))
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "polytope", [LinearChain(3, 3), ProjectiveTree(3), TRIANGLE, Knapsack([1, 2, 3, 2], 5), Budget(5, 2)], ids=str
)
def test_second_derivatives_are_finite_where_structures_are_all_but_impossible(
    polytope: SupportsGibbs, dtype: torch.dtype, scale: float
) -> None:
    scores = scale * torch.randn(200, polytope.dim, dtype=dtype, generator=torch.Generator().manual_seed(1))
    scores.requires_grad_()
    (first,) = torch.autograd.grad(polytope.gibbs(scores).entropy().sum(), scores, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), scores)
    assert first.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize(
    "polytope",
    [LinearChain(4, 3), ProjectiveTree(4), Arborescence(4), Arborescence(4, single_root=True), SpanningTree(COMPLETE)],
    ids=str,
)
def test_entropies_lose_no_more_digits_than_scores_have(polytope: Any, scale: float) -> None:
    """Also their gradients, for scores of any size: the entropy is no difference of large numbers."""
    scores = scale * torch.randn(50, polytope.dim, generator=torch.Generator().manual_seed(0))
    vertices = polytope.vertices()

    def listed(given: Tensor) -> Tensor:
        logs = (given @ vertices.T).log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)

    found, expected = (
        (function(leaf), torch.autograd.grad(function(leaf).sum(), leaf)[0])
        for function, leaf in (
            (lambda t: polytope.gibbs(t).entropy(), scores.clone().requires_grad_()),
            (listed, scores.double().requires_grad_()),
        )
    )
    digits = 20 * torch.finfo(torch.float32).eps * max(scale, 1)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=digits, rtol=0)


@pytest.mark.parametrize("bridge", [1e2, 1e4, 1e6])
def test_the_entropy_of_a_graph_does_not_depend_on_its_bridges(bridge: float) -> None:
    """In float32 to what such a score leaves of the digits of the others."""
    polytope = SpanningTree([(0, 1), (1, 2), (0, 2), (2, 3)])
    triangle = torch.tensor([0.3, -0.2, 0.5, 0.0], requires_grad=True)
    entropy = polytope.gibbs(triangle + torch.tensor([0.0, 0, 0, bridge])).entropy()
    wanted = TRIANGLE.gibbs(triangle[:3].double()).entropy()
    digits = 4 * torch.finfo(torch.float32).eps * bridge
    torch.testing.assert_close(entropy.double(), wanted, atol=digits, rtol=0)
    found, expected = (torch.autograd.grad(each, triangle)[0] for each in (entropy, wanted))
    torch.testing.assert_close(found, expected, atol=digits, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_finite_scores_forbid_nothing(dtype: torch.dtype) -> None:
    """Where there is no tree without them, that is."""
    least = torch.finfo(dtype).min
    star, path = SpanningTree([(0, node) for node in range(1, 40)]), SpanningTree([(0, 1), (1, 2)])
    for polytope, scores in (
        (path, [0.0, least]),
        (path, [-least, least]),
        (star, [0.0] + [least / 20] * 38),
        (Arborescence(1), [least]),
    ):
        gibbs = polytope.gibbs(torch.tensor(scores, dtype=dtype))
        only = torch.ones(polytope.dim, dtype=dtype)
        assert torch.equal(gibbs.sample(), only)
        assert torch.equal(gibbs.marginals(), only)
        assert float(gibbs.entropy()) == 0
        assert abs(float(gibbs.log_prob(only))) < torch.finfo(dtype).eps * -least
    gibbs = Arborescence(2).gibbs(torch.tensor([least, 0.0, least, 0.0], dtype=dtype))  # none of the arcs from the root
    torch.testing.assert_close(float(gibbs.entropy()), math.log(2))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("polytope", [Arborescence(6), Arborescence(6, single_root=True), ProjectiveTree(6)], ids=str)
def test_an_offset_of_all_scores_costs_trees_no_more_digits_than_it_takes_from_the_scores(
    polytope: Arborescence | ProjectiveTree, offset: float
) -> None:
    scores = torch.randn(50, 36, generator=torch.Generator().manual_seed(2)) + offset
    tree = polytope.maximize(scores)

    def numbers(given: Tensor) -> list[Tensor]:
        given = given.clone().requires_grad_()
        gibbs = polytope.gibbs(given)
        entropy, log_prob = gibbs.entropy(), gibbs.log_prob(tree)
        (gradient,) = torch.autograd.grad(entropy.sum(), given)
        return [entropy.detach().double(), log_prob.detach().double(), gradient.double()]

    digits = torch.finfo(torch.float32).eps * (100 + (10 * offset if isinstance(polytope, ProjectiveTree) else 0))
    for found, expected in zip(numbers(scores), numbers(scores.double()), strict=True):
        torch.testing.assert_close(found, expected, atol=digits, rtol=0)


@pytest.mark.parametrize("single_root", [False, True])
def test_words_whose_scores_are_masked_by_huge_numbers(single_root: bool) -> None:
    """The same as forbidden ones, where some tree goes without."""
    polytope = Arborescence(4, single_root=single_root)
    scores = torch.randn(20, 16, generator=torch.Generator().manual_seed(3))
    masked = torch.rand(20, 16, generator=torch.Generator().manual_seed(4)) < 0.3
    forbidden = torch.where(masked, -torch.inf, scores)
    ways = polytope.vertices()
    kept = ((forbidden.isneginf().double() @ ways.T) == 0).any(-1)
    low = torch.where(masked, torch.finfo(torch.float32).min, scores)[kept]
    torch.testing.assert_close(polytope.gibbs(low).entropy(), polytope.gibbs(forbidden[kept]).entropy())


def test_bits_are_counted_in_more_than_half_precision() -> None:
    structure = torch.zeros(400, dtype=torch.bfloat16)
    structure[:257] = 1  # in bfloat16 the sum is 256
    assert Budget(400, 256).gibbs(torch.zeros(400, dtype=torch.bfloat16)).log_prob(structure) == -torch.inf


@pytest.mark.parametrize("polytope", [*EVERY, Simplex(3), BernoulliCube(3), Explicit([[0.0, 1], [1, 1]])], ids=str)
def test_marginals_are_means_of_the_listed_structures(polytope: Any) -> None:
    """In any batch shape, with derivatives, of scores that forbid, and in few digits."""
    vertices = polytope.vertices()
    listed = Explicit(vertices)
    scores = 2 * torch.randn(2, 3, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(scores.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    some = (vertices[-1] == 0) & (torch.arange(polytope.dim) % 2 == 0)
    scores[0, 0, some] = -torch.inf

    def slope(which: SupportsGibbs) -> tuple[Tensor, Tensor]:
        leaf = scores.clone().requires_grad_()
        means = which.gibbs(leaf).marginals()
        return means, torch.autograd.grad((means * weights).sum(), leaf)[0]

    for found, expected in zip(slope(polytope), slope(listed), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    few = polytope.gibbs(scores.bfloat16()).marginals()
    assert few.dtype == torch.bfloat16
    torch.testing.assert_close(few.double(), listed.gibbs(scores.bfloat16().double()).marginals(), atol=1e-2, rtol=0)


def test_marginals_of_a_product_are_those_of_its_parts() -> None:
    """Also that there are none."""

    class Own:
        def __init__(self, right: Any) -> None:
            self.sample, self.log_prob, self.entropy = right.sample, right.log_prob, right.entropy

    class Bits(BernoulliCube):
        def gibbs(self, scores: Tensor) -> Any:
            return Own(super().gibbs(scores))

    assert not hasattr(Product(Bits(2), Simplex(2)).gibbs(torch.zeros(3, 4)), "marginals")
    assert verify(Product(Bits(2), Simplex(2)), only=["gibbs"]).ok
    found = Product(BernoulliCube(2), Simplex(2)).gibbs(torch.zeros(3, 4)).marginals()
    assert torch.equal(found, torch.full((3, 4), 0.5))


@pytest.mark.parametrize("polytope", EVERY, ids=str)
def test_marginals_without_gradient(polytope: Any) -> None:
    """Of a distribution that is made without one, and asked for without one."""
    scores = torch.randn(2, polytope.dim, requires_grad=True)
    wanted = polytope.gibbs(scores).marginals()
    assert wanted.requires_grad
    with torch.no_grad():
        gibbs = polytope.gibbs(scores)
        found = [gibbs.marginals(), polytope.gibbs(scores[0]).marginals()]
    for mean in (*found, gibbs.marginals()):
        assert not mean.requires_grad
        torch.testing.assert_close(mean, wanted if mean.dim() == 2 else wanted[0])
    assert not gibbs.entropy().requires_grad


@pytest.mark.parametrize("polytope", [*EVERY, Simplex(3), BernoulliCube(3), Explicit([[0.0, 1], [1, 1]])], ids=str)
def test_gradients_of_each_example_under_vmap_are_those_of_one_by_one(polytope: Any) -> None:
    scores = torch.randn(4, polytope.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    structures = polytope.gibbs(scores).sample((), torch.Generator().manual_seed(3))

    def total(scores: Tensor, structure: Tensor) -> Tensor:
        gibbs = polytope.gibbs(scores[None])
        return (gibbs.log_prob(structure[None]) + gibbs.entropy()).sum()

    found = torch.func.vmap(torch.func.grad(total))(scores, structures)
    for row, gradient in enumerate(found):
        (expected,) = torch.autograd.grad(total(leaf := scores[row].clone().requires_grad_(), structures[row]), leaf)
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
    drawn = torch.func.vmap(lambda one: polytope.gibbs(one).sample((5,)), randomness="different")(scores)  # [4, 5, D]
    assert bool((polytope.gibbs(scores).log_prob(drawn.transpose(0, 1)) > -torch.inf).all())
    gibbs = polytope.gibbs(scores)
    drawn = torch.func.vmap(lambda _: gibbs.sample(), randomness="different")(torch.zeros(5))  # [5, 4, D]
    assert bool((gibbs.log_prob(drawn) > -torch.inf).all())


@pytest.mark.parametrize("polytope", [*EVERY, Simplex(3), BernoulliCube(3), Explicit([[0.0, 1], [1, 1]])], ids=str)
def test_structures_of_another_width_are_refused(polytope: Any) -> None:
    dim = polytope.dim
    gibbs = polytope.gibbs(torch.zeros(2, dim))
    for structures in (torch.zeros(2, dim + 1), torch.zeros(dim - 1) if dim > 2 else torch.zeros(1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match=rf"log_prob needs structures \[\.\.\., {dim}\], not \["):
            gibbs.log_prob(structures)


def test_scores_of_one_problem_are_refused_without_a_row() -> None:
    with pytest.raises(ValueError, match="gibbs: scores allow no structure"):
        TRIANGLE.gibbs(torch.full((3,), -torch.inf))


@pytest.mark.parametrize("polytope", [*EVERY, Simplex(3), BernoulliCube(3), Explicit([[0.0, 1], [1, 1]])], ids=str)
def test_a_number_is_no_shape_of_samples(polytope: Any) -> None:
    gibbs = polytope.gibbs(torch.zeros(2, polytope.dim))
    assert gibbs.sample((3,)).shape == (3, 2, polytope.dim)
    with pytest.raises(ValueError, match=r"sample needs a shape, e.g. \(3,\), not the number 3"):
        gibbs.sample(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_listed_structures_are_known_in_the_dtype_of_the_scores(dtype: torch.dtype) -> None:
    polytope = Explicit([[0.3, 0.7], [0.1, 0.9], [1.0, 0.0]])
    scores = torch.zeros(3, 2, dtype=dtype)
    expected = torch.tensor(1 / 3).log().expand(3)
    for given in (polytope.vertices(), polytope.vertices().to(dtype)):
        torch.testing.assert_close(polytope.gibbs(scores).log_prob(given).float(), expected, atol=1e-2, rtol=0)
    sparse = sparsemap(scores[:1], polytope)
    some = polytope.vertices()[(sparse.atoms[0].double() - polytope.vertices()).abs().sum(-1).argmin()]
    torch.testing.assert_close(sparse.log_prob(some[None]), sparse.probs[:1].log())
