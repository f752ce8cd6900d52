"""Losses that ask the oracle once, against enumeration of all structures."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import BINARY, POLYTOPES, enumerated, scores_for
from sparsemarg.layers import PerturbedLoss, SPOPlusLoss, StructuredHingeLoss
from sparsemarg.layers.functional import perturbed_loss, regret, sparsemap_loss, spo_plus_loss, structured_hinge_loss
from sparsemarg.oracles import (
    Arborescence,
    BernoulliCube,
    Budget,
    Explicit,
    Knapsack,
    LinearChain,
    Matching,
    Permutahedron,
    ShortestPath,
)
from torch import Tensor

STRUCTURED = {
    "chain": LinearChain(3, 2),
    "paths": ShortestPath.grid(3, 3),
    "trees": Arborescence(3),
    "matchings": Matching(3),
    "knapsacks": Knapsack([1, 2, 3, 2], 4),
}
ALL = POLYTOPES | STRUCTURED | {"rankings": Permutahedron([0, 1, 2.5])}
BITS = BINARY | STRUCTURED


def structures_of(polytope: Any) -> Tensor:
    known = polytope in POLYTOPES.values()
    return enumerated(polytope) if known else polytope.vertices().double()


def highest(vertices: Tensor, scores: Tensor, added: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """max_z <s, z> + added_z of scores [B, D] over vertices [V, D], and the structure: [B], [B, D]."""
    best = (scores @ vertices.T + added).max(-1)
    return best.values, vertices[best.indices]


@pytest.mark.parametrize("margin", [0.0, 1.0, "uneven"])
@pytest.mark.parametrize("name", BITS)
def test_hinge_is_the_worst_of_all_structures(name: str, margin: Any) -> None:
    polytope = BITS[name]
    vertices, leaf = structures_of(polytope), scores_for(polytope, "normal").requires_grad_()
    target = vertices[torch.arange(8) % len(vertices)]
    weights: Any = torch.arange(polytope.dim).double() / 2 if margin == "uneven" else margin
    distance = ((vertices - target[:, None]).abs() * weights).sum(-1)  # [B, V]
    best, structure = highest(vertices, leaf.detach(), distance)
    found = structured_hinge_loss(leaf, target, polytope, margin=weights)
    torch.testing.assert_close(found, best - (leaf.detach() * target).sum(-1))
    assert (found >= 0).all()
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaf)[0], structure - target)
    torch.testing.assert_close(StructuredHingeLoss(polytope, weights)(leaf, target.int()), found.mean())


@pytest.mark.parametrize("name", ALL)
def test_spo_plus_bounds_regret(name: str) -> None:
    polytope = ALL[name]
    vertices, leaf = structures_of(polytope), scores_for(polytope, "normal", 20).requires_grad_()
    values, scores = scores_for(polytope, "normal", 20, seed=1), leaf.detach()
    (most, best), (_, chosen) = highest(vertices, values), highest(vertices, scores)
    lost = regret(leaf, values, polytope)
    torch.testing.assert_close(lost, most - (values * chosen).sum(-1))
    assert not lost.requires_grad
    loss = spo_plus_loss(leaf, values, polytope)
    # As published, of costs: max_z (<c, z> - 2 <c', z>) + 2 <c', z*(c)> - <c, z*(c)>.
    costs, predicted = -values, -scores
    bound, structure = highest(vertices, costs - 2 * predicted)
    torch.testing.assert_close(loss, bound + ((2 * predicted - costs) * best).sum(-1))
    assert (loss >= lost - 1e-12).all()
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), leaf)[0], 2 * (structure - best))
    torch.testing.assert_close(spo_plus_loss(leaf, values, polytope, best=best), loss)
    torch.testing.assert_close(regret(leaf, values, polytope, best=best), lost)
    torch.testing.assert_close(SPOPlusLoss(polytope)(leaf, values), loss.mean())
    torch.testing.assert_close(spo_plus_loss(values, values, polytope), torch.zeros(20, dtype=torch.float64))


@pytest.mark.parametrize("name", ALL)
def test_perturbed_is_the_expectation_over_noise(name: str) -> None:
    """Within five standard errors of an estimate from noise of its own, in value and gradient."""
    polytope, samples, scale = ALL[name], 4000, 0.7
    vertices, leaf = structures_of(polytope), scores_for(polytope, "normal", 2).requires_grad_()
    target = vertices[torch.arange(2) % len(vertices)]
    noise = scale * torch.randn(samples, 2, polytope.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = leaf.detach() + noise
    best, structure = highest(vertices, shifted)
    value, slope = best - (shifted * target).sum(-1), structure - target
    generator = torch.Generator().manual_seed(2)
    found = perturbed_loss(leaf, target, polytope, samples=samples, scale=scale, generator=generator)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    for estimate, wanted in ((found.detach(), value), (gradient, slope)):
        error = wanted.std(0) * (2 / samples) ** 0.5
        assert ((estimate - wanted.mean(0)).abs() <= 5 * error + 1e-12).all()
    torch.manual_seed(2)
    again = PerturbedLoss(polytope, samples, scale)(leaf, target)
    torch.manual_seed(2)
    torch.testing.assert_close(
        again, perturbed_loss(leaf, target, polytope, samples=samples, scale=scale).mean(), rtol=0, atol=0
    )


def test_perturbed_is_least_at_the_mean_of_what_is_observed() -> None:
    """Learned from unlabelled solutions: the maximisers of unknown scores with noise have the target as their mean."""
    polytope, generator = Budget(4, 2, exactly=True), torch.Generator().manual_seed(0)
    true = torch.tensor([0.9, -0.3, 0.2, -0.8])
    target = polytope.maximize(true + torch.randn(20_000, 4, generator=generator)).mean(0)
    scores = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        perturbed_loss(scores, target, polytope, samples=300, generator=generator).backward()
        optimizer.step()
    # All structures have two bits: a number that is added to all scores changes nothing.
    torch.testing.assert_close(scores.detach() - scores.detach().mean(), true - true.mean(), rtol=0, atol=0.1)


@pytest.mark.parametrize("name", [name for name in BITS if structures_of(BITS[name]).amin(0).min() == 0])
def test_forbidden_parts_are_never_chosen(name: str) -> None:
    polytope, vertices = BITS[name], structures_of(BITS[name])
    scores, values = scores_for(polytope, "normal"), scores_for(polytope, "normal", seed=1)
    coordinate = int(vertices.sum(0).argmin())  # one that most structures do without
    left = vertices[vertices[:, coordinate] == 0]
    target = left[torch.arange(8) % len(left)]
    given = scores.clone()
    given[:, coordinate] = -torch.inf
    given.requires_grad_()
    finite = torch.where(given.isneginf(), 0, given).detach()
    best, structure = highest(left, finite, (left - target[:, None]).abs().sum(-1))
    found = structured_hinge_loss(given, target, polytope)
    torch.testing.assert_close(found, best - (finite * target).sum(-1))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), given)[0], structure - target)
    (most, chosen), (bound, _) = highest(left, values), highest(left, 2 * finite - values)
    torch.testing.assert_close(spo_plus_loss(given, values, polytope), bound - ((2 * finite - values) * chosen).sum(-1))
    torch.testing.assert_close(regret(given, values, polytope), most - (values * highest(left, finite)[1]).sum(-1))
    assert perturbed_loss(given, target, polytope, samples=5).isfinite().all()
    if (vertices[:, coordinate] != 0).any():
        impossible = vertices[vertices[:, coordinate] != 0][:1].expand(8, -1)
        assert (structured_hinge_loss(given, impossible, polytope) == torch.inf).all()
        assert (perturbed_loss(given, impossible, polytope, samples=3) == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shapes_and_dtypes(dtype: torch.dtype) -> None:
    """Any batch, none, and an empty one; of one row what it is in a batch; computed from the scores as they were rounded."""
    polytope = LinearChain(4, 3)
    scores = scores_for(polytope, "normal", 6).to(dtype)
    target, values = polytope.maximize(scores_for(polytope, "normal", 6, seed=1)), scores_for(polytope, "normal", 6, seed=2)
    for loss, wanted in ((structured_hinge_loss, target), (spo_plus_loss, values), (regret, values)):
        found = loss(scores, wanted, polytope)
        assert found.dtype == dtype
        torch.testing.assert_close(found, loss(scores.double(), wanted, polytope).to(dtype), rtol=0, atol=0)
        shape = (2, 3, polytope.dim)
        torch.testing.assert_close(loss(scores.reshape(shape), wanted.reshape(shape), polytope), found.reshape(2, 3))
        torch.testing.assert_close(loss(scores[0], wanted[0], polytope), found[0])
        assert loss(scores[:0], wanted[:0], polytope).shape == (0,)
    found = perturbed_loss(scores.reshape(2, 3, -1), target.reshape(2, 3, -1), polytope, samples=2)
    assert found.shape == (2, 3)
    assert found.dtype == dtype
    assert perturbed_loss(scores[0], target[0], polytope).shape == ()
    assert perturbed_loss(scores[:0], target[:0], polytope).shape == (0,)


def test_an_oracle_that_writes_into_one_tensor() -> None:
    """Both structures of a loss are kept, though the second is written where the first was."""

    class Reused(Budget):
        def maximize(self, scores: Tensor) -> Tensor:
            if not hasattr(self, "memory") or self.memory.shape != scores.shape:
                self.memory = torch.empty_like(scores)
            return self.memory.copy_(super().maximize(scores))

    scores, values = (scores_for(Budget(6, 2), "normal", seed=seed) for seed in (0, 1))
    for loss in (spo_plus_loss, regret):
        torch.testing.assert_close(loss(scores, values, Reused(6, 2)), loss(scores, values, Budget(6, 2)))


def test_an_oracle_that_works_in_place() -> None:
    """Neither the loss nor what came in is changed."""

    class InPlace(Budget):
        def maximize(self, scores: Tensor) -> Tensor:
            found = super().maximize(scores.clone())
            scores.zero_()
            return found

    own = Budget(6, 2)
    scores, values = (scores_for(own, "normal", seed=seed) for seed in (0, 1))
    kept, target = (scores.clone(), values.clone()), own.maximize(values)
    for loss, wanted in ((structured_hinge_loss, target), (spo_plus_loss, values), (regret, values)):
        torch.testing.assert_close(loss(scores, wanted, InPlace(6, 2)), loss(scores, wanted, own))
    losses = []
    for polytope in (InPlace(6, 2), own):
        torch.manual_seed(0)
        losses.append(perturbed_loss(scores, target, polytope))
    torch.testing.assert_close(*losses)
    assert torch.equal(scores, kept[0])
    assert torch.equal(values, kept[1])


def test_targets_outside_are_told_of() -> None:
    scores, outside = torch.full((1, 4), 5.0), torch.ones(1, 4)
    for loss in (structured_hinge_loss, perturbed_loss):
        with pytest.warns(UserWarning, match=r"a loss is -.* a target is not in the polytope") as seen:
            loss(scores, outside, Budget(4, 2))
        assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="a target is not in the polytope"):
        spo_plus_loss(scores, scores - 1, Budget(4, 2), best=outside)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for polytope in BITS.values():
            given, target = scores_for(polytope, "integer", 30), polytope.maximize(scores_for(polytope, "integer", 30, seed=1))
            for scale in (0.0, 1.0, 1e8):
                structured_hinge_loss(scale * given, target, polytope)
                perturbed_loss((scale * given).bfloat16(), target, polytope)
                spo_plus_loss((scale * given).float(), target, polytope)


def test_what_is_not_best_is_told_of() -> None:
    polytope, values = Budget(3, 1), torch.tensor([[1.0, 2, 3]])
    with pytest.warns(UserWarning, match="a regret is -3, so that structures given as `best` are not"):
        regret(torch.tensor([[0.0, 0, 1]]), values, polytope, best=torch.zeros(1, 3))
    given = {"scores": torch.tensor([[0, 0, -torch.inf]]), "values": values, "best": torch.tensor([[0, 0, 1.0]])}
    assert regret(polytope=polytope, **given) == spo_plus_loss(polytope=polytope, **given) == torch.inf


def test_a_margin_keeps_its_digits_in_a_module_of_half_precision() -> None:
    scores, target = torch.zeros(1, 3), torch.tensor([[1, 0, 0]])
    for margin in (1e-8, 0.1, 1e5):
        torch.testing.assert_close(StructuredHingeLoss(CUBE, margin).half()(scores, target), torch.tensor(3 * margin))
    for margin in (torch.full((1, 3), 0.1), torch.full((3,), 0.1), np.float32(0.1)):
        assert StructuredHingeLoss(CUBE, margin)(scores, target).item() == pytest.approx(0.3)  # pyright: ignore[reportArgumentType]


def test_under_transforms_and_compiled() -> None:
    polytope = ShortestPath.grid(3, 3)
    scores, values = scores_for(polytope, "normal"), scores_for(polytope, "normal", seed=1)
    target = polytope.maximize(values)
    for loss, wanted in ((structured_hinge_loss, target), (spo_plus_loss, values)):
        leaf = scores.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, wanted, polytope).sum(), leaf)
        # The function is called at once, so the variables of the loop are those of this turn.
        transformed = torch.func.grad(lambda t: loss(t, wanted, polytope).sum())(scores)  # noqa: B023
        torch.testing.assert_close(transformed, gradient)
        moved = torch.func.jvp(lambda t: loss(t, wanted, polytope), (scores,), (values,))[1]  # noqa: B023
        torch.testing.assert_close(moved, (gradient * values).sum(-1))
        with pytest.raises(ValueError, match=r"cannot run under torch\.func\.vmap"):
            torch.func.vmap(lambda t, y: loss(t, y, polytope))(scores, wanted)  # noqa: B023
        compiled = torch.compile(lambda t, y: loss(2 * t, y, polytope), backend="aot_eager")  # noqa: B023
        torch.testing.assert_close(compiled(scores, wanted), loss(2 * scores, wanted, polytope))


def test_against_pyepo() -> None:
    """Value and gradient of SPO+ in another library, which minimises."""
    pytest.importorskip("pyepo")
    from pyepo import EPO
    from pyepo.func import SPOPlus
    from pyepo.model.opt import optModel

    polytope = ShortestPath.grid(4, 4)

    class Shortest(optModel):
        def _getModel(self) -> tuple[None, range]:
            self.modelSense = EPO.MINIMIZE
            return None, range(polytope.dim)

        def setObj(self, c: Any) -> None:
            self.costs = torch.as_tensor(c, dtype=torch.float64)

        def solve(self) -> tuple[Tensor, float]:
            best = polytope.maximize(-self.costs[None])[0]
            return best, float(best @ self.costs)

    costs = scores_for(polytope, "normal", 10).abs().float()
    predicted = scores_for(polytope, "normal", 10, seed=1).abs().float().requires_grad_()
    best = polytope.maximize(-costs)
    theirs = SPOPlus(Shortest(), processes=1, reduction="none")(predicted, costs, best, (best * costs).sum(-1, keepdim=True))
    (wanted,) = torch.autograd.grad(theirs.sum(), predicted)
    ours = spo_plus_loss(-predicted, -costs, polytope, best=best)
    torch.testing.assert_close(ours, theirs.squeeze(-1))
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), predicted)[0], wanted)


CUBE = BernoulliCube(3)
ZEROS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: structured_hinge_loss(ZEROS, torch.zeros(3), CUBE), r"needs target for each row, .* = \[2, 3\], not \[3\]"),
        (lambda: structured_hinge_loss(ZEROS, [0, 1], CUBE), r"\[2, 3\], not list"),  # pyright: ignore
        (lambda: structured_hinge_loss(ZEROS, ZEROS + 0.5, CUBE), "targets must be of zeros and ones"),
        (
            lambda: structured_hinge_loss(torch.zeros(2, 2), torch.zeros(2, 2), Permutahedron([0, 2])),
            "structures of Permutahedron",
        ),
        (
            lambda: structured_hinge_loss(torch.tensor([[0.1]]), torch.ones(1, 1), Explicit(torch.tensor([[0.0], [1], [2]]))),
            "structures of Explicit must be of zeros and ones",
        ),
        (lambda: structured_hinge_loss(ZEROS, ZEROS.to(torch.complex64), CUBE), "real numbers .* not .* torch.complex64"),
        (lambda: regret([[1.0, 2, 3]], ZEROS, CUBE), "a float tensor, not list"),  # pyright: ignore[reportArgumentType]
        (
            lambda: perturbed_loss(
                torch.tensor([[1, -torch.inf, 0.5]]), torch.tensor([[3.0, 0, -1]]), Permutahedron([3.0, 0, -1])
            ),
            "have negative entries, of which a forbidden one is not told from a good one",
        ),
        (lambda: structured_hinge_loss(ZEROS, ZEROS, CUBE, margin=-1), "margin must be at least 0 and finite, not -1"),
        (
            lambda: structured_hinge_loss(ZEROS, ZEROS, CUBE, margin=torch.ones(2)),
            r"expand to \[\*B, D\] = \[2, 3\], not \[2\]",
        ),
        (lambda: structured_hinge_loss(ZEROS, ZEROS, CUBE, margin="1"), "real number, or a tensor of such, not '1'"),  # pyright: ignore
        (lambda: structured_hinge_loss(ZEROS, ZEROS, CUBE, margin=torch.tensor(1j)), "real number, or a tensor of such"),
        (lambda: spo_plus_loss(ZEROS, ZEROS, CUBE, best=ZEROS / 0), "spo_plus_loss: best must be finite"),
        (lambda: perturbed_loss(ZEROS, ZEROS / 0, CUBE), "perturbed_loss: targets must be finite"),
        (lambda: torch.func.vmap(lambda t: perturbed_loss(t, t, CUBE))(ZEROS), r"cannot run under torch\.func\.vmap"),
        (
            lambda: spo_plus_loss(
                torch.tensor([[-torch.inf, 0]]), torch.ones(1, 2), Explicit(torch.tensor([[-1.0, 0], [-2, 1]]))
            ),
            "allows no structure of Explicit",
        ),
        (lambda: structured_hinge_loss(ZEROS / 0, ZEROS, CUBE), "scores row 0 holds NaN"),
        (lambda: spo_plus_loss(ZEROS, ZEROS / 0, CUBE), "values must be finite"),
        (lambda: spo_plus_loss(ZEROS, torch.zeros(3), CUBE), "needs values for each row"),
        (lambda: spo_plus_loss(ZEROS, ZEROS, CUBE, best=torch.zeros(3)), "needs best for each row"),
        (lambda: regret(ZEROS.int(), ZEROS, CUBE), "scores must be a float tensor"),
        (lambda: regret(ZEROS - torch.inf, ZEROS, Budget(3, 1, exactly=True)), "scores row 0 allows no structure of Budget"),
        (lambda: perturbed_loss(ZEROS, ZEROS, CUBE, samples=0), "samples must be at least 1, not 0"),
        (lambda: perturbed_loss(ZEROS, ZEROS, CUBE, scale=0), "scale must be above 0 and finite, not 0"),
        (lambda: perturbed_loss(ZEROS, ZEROS, Budget(4, 1)), "3 columns"),
        (lambda: PerturbedLoss(CUBE, scale=torch.inf), "scale must be above 0"),
        (lambda: StructuredHingeLoss(BernoulliCube), "not the class BernoulliCube"),  # pyright: ignore[reportArgumentType]
        (lambda: StructuredHingeLoss(CUBE, torch.ones(2)), "margin must be a number or expand"),
        (lambda: SPOPlusLoss(3), "polytope must be an object"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_hinge_with_nothing_to_gain_is_where_the_sparsemap_loss_is_small() -> None:
    """Both are 0 where the target wins by far, and both have a gradient of prediction minus target where it loses by far."""
    target = torch.tensor([[1.0, 0.0, 1.0]])
    for scores in (5 * (2 * target - 1), 5 * (1 - 2 * target)):
        leaf = scores.clone().requires_grad_()
        hinge, smooth = structured_hinge_loss(leaf, target, CUBE), sparsemap_loss(leaf, target, CUBE)
        assert (hinge == 0) == (smooth == 0)
        torch.testing.assert_close(torch.autograd.grad(hinge.sum(), leaf), torch.autograd.grad(smooth.sum(), leaf))
