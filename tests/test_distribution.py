"""`SparseDistribution`: packed sums against dense ones, and what it says of itself."""

import itertools
import math
import re

import pytest
import torch
from cases import scores_for
from scipy import stats
from sparsemarg.layers import SparseDistribution
from sparsemarg.layers.functional import sparsemap, sparsemax, topk_sparsemax
from sparsemarg.oracles import BernoulliCube, Simplex
from torch import Tensor, nn


@pytest.fixture
def found() -> SparseDistribution:
    return sparsemap(scores_for(BernoulliCube(6), "small", batch=12).reshape(3, 4, 6).requires_grad_(), BernoulliCube(6))


def dense(found: SparseDistribution, values: Tensor) -> Tensor:
    """The expectation as a plain Python sum: values [N, *E] -> [B, *E]."""
    total = torch.zeros(math.prod(found.batch_shape), *values.shape[1:], dtype=values.dtype)
    for prob, row, value in zip(found.probs, found.row, values, strict=True):
        total[row] = total[row] + prob * value
    return total


def test_fields(found: SparseDistribution) -> None:
    assert found.atoms.shape == (len(found.probs), 6)
    assert found.row.dtype == torch.int64
    assert (found.row.diff() >= 0).all()
    assert found.batch_shape == (3, 4)
    assert not found.atoms.requires_grad
    assert found.probs.requires_grad
    assert repr(found) == f"SparseDistribution(batch_shape=[3, 4], atoms={len(found.probs)}, dim=6)"


@pytest.mark.parametrize("event", [(), (2,), (2, 3)])
def test_expectation_equals_the_dense_sum(found: SparseDistribution, event: tuple[int, ...]) -> None:
    weights = torch.randn(6, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def f(atoms: Tensor, row: Tensor) -> Tensor:
        scale = (1 + row).reshape(-1, *[1] * len(event))
        return torch.tensordot(atoms, weights, dims=1).tanh() * scale

    result = found.expectation(f)
    assert result.shape == (3, 4, *event)
    torch.testing.assert_close(result.reshape(12, *event), dense(found, f(found.atoms, found.row)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_mean_and_its_derivatives(switch: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against padded tensors, in two threads, with the kernel and without; a row of one atom and rows of many."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("sparsemarg.kernels.dispatch.WORTH_A_THREAD", 1)
    scores = scores_for(BernoulliCube(6), "small", batch=12).to(dtype)
    scores[5] = 10
    given = sparsemap(scores, BernoulliCube(6))
    padded, _ = given.padded()
    weights = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).to(dtype)

    def derivatives(mean_of) -> list[Tensor]:
        probs = given.probs.detach().clone().requires_grad_()
        mean = mean_of(SparseDistribution(given.atoms, probs, given.row, (12,)))
        (first,) = torch.autograd.grad((mean.square() * weights).sum(), probs, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), probs)
        return [mean.detach(), first.detach(), second]

    ours = derivatives(SparseDistribution.mean)
    theirs = derivatives(lambda found: (found.padded()[1][..., None] * padded).sum(1))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other)
    probs = given.probs.detach().requires_grad_()
    tangents = torch.func.jvp(lambda p: SparseDistribution(given.atoms, p, given.row, (12,)).mean(), (probs,), (probs,))
    torch.testing.assert_close(tangents[1], ours[0])


def test_f_is_called_once_a_chunk_on_exactly_the_support(found: SparseDistribution) -> None:
    support = int(found.support_size().sum())
    decoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    calls: list[int] = []
    decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))

    def run(max_atoms: int | None) -> tuple[Tensor, list[Tensor]]:
        calls.clear()
        value = found.expectation(lambda atoms, row: decoder(atoms)[:, 0] * (row + 1), max_atoms=max_atoms)
        seen = list(calls)
        gradients = torch.autograd.grad(value.sum(), [found.probs, *decoder.parameters()], retain_graph=True)
        assert sum(seen) == support
        assert max(seen) <= (max_atoms or support)
        assert len(seen) == (1 if max_atoms is None else -(-support // max_atoms))
        return value, list(gradients)

    value, gradients = run(None)
    for max_atoms in (1, 5, support - 1, support, 10 * support):
        other, others = run(max_atoms)
        torch.testing.assert_close(other, value, atol=1e-14, rtol=0)
        for one, two in itertools.zip_longest(gradients, others):
            torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_chunks_hold_one_piece_of_the_graph(found: SparseDistribution) -> None:
    """With `max_atoms`, what autograd keeps of f does not grow with the support."""
    kept: list[int] = []
    weight = torch.ones(6, 1000, dtype=torch.float64, requires_grad=True)

    def saved(max_atoms: int | None) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            found.expectation(lambda atoms, row: (atoms @ weight).tanh().sum(-1), max_atoms=max_atoms)
        return sum(kept)

    assert saved(5) < saved(None) / 5


def test_random_numbers_in_f_are_replayed(found: SparseDistribution) -> None:
    weight = torch.ones(6, dtype=torch.float64, requires_grad=True)

    def value(max_atoms: int | None) -> Tensor:
        torch.manual_seed(0)
        return found.expectation(
            lambda atoms, row: torch.rand(len(row), dtype=torch.float64) * (atoms @ weight), max_atoms=max_atoms
        )

    plain, chunked = value(None), value(7)
    torch.testing.assert_close(plain, chunked)
    one, two = torch.autograd.grad(plain.sum(), weight, retain_graph=True), torch.autograd.grad(chunked.sum(), weight)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_entropy_and_its_derivatives_of_both_orders(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows of one atom and of many, with and without its kernel."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    sizes = torch.tensor([1, 5, 2, 90])
    row = torch.arange(4).repeat_interleave(sizes)
    probs = torch.rand(98, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def entropy(probs: Tensor) -> Tensor:
        return SparseDistribution(torch.zeros(98, 1, dtype=torch.float64), probs, row, (2, 2)).entropy()

    expected = torch.stack([torch.special.entr(part).sum() for part in probs.split(sizes.tolist())])
    torch.testing.assert_close(entropy(probs), expected.view(2, 2))
    assert torch.autograd.gradcheck(entropy, probs)
    assert torch.autograd.gradgradcheck(entropy, probs)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_entropy_at_the_ends(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 log 0 is 0, with a gradient that is finite; NaN is not hidden."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    probs = torch.tensor([0.0, 1.0, torch.nan]).requires_grad_()
    found = SparseDistribution(torch.zeros(3, 1), probs, torch.tensor([0, 0, 1]), (2,)).entropy()
    assert found[0] == 0
    assert found[1].isnan()
    (gradient,) = torch.autograd.grad(found[0], probs)
    assert gradient.isfinite()[:2].all()
    assert gradient[1] == -1


def test_summaries(found: SparseDistribution) -> None:
    torch.testing.assert_close(found.mean().reshape(12, 6), dense(found, found.atoms))
    torch.testing.assert_close(found.entropy().reshape(12), dense(found, -found.probs.log()))
    atoms, probs = found.padded()
    assert atoms.shape[:-1] == probs.shape
    assert probs.shape[:2] == (3, 4)
    assert torch.equal(found.support_size(), (probs > 0).sum(-1))
    best = probs.argmax(-1)[..., None, None].expand(3, 4, 1, 6)
    assert torch.equal(found.mode(), atoms.gather(2, best)[:, :, 0])
    for place in range(probs.shape[-1]):
        expected = torch.where(probs[..., place] > 0, probs[..., place].log(), torch.nan)
        held = probs[..., place] > 0
        torch.testing.assert_close(found.log_prob(atoms[:, :, place])[held], expected[held])
    off = torch.full((3, 4, 6), 0.5, dtype=torch.float64)
    assert (found.log_prob(off) == -torch.inf).all()


def test_samples_pass_chi_square() -> None:
    scores = torch.tensor([0.3, 0.1, 0.05, 0.25], dtype=torch.float64).expand(20_000, 4)
    found = SparseDistribution.from_simplex(sparsemax(scores))
    drawn = found.sample(generator=torch.Generator().manual_seed(0)).sum(0)
    assert stats.chisquare(drawn.numpy(), (20_000 * sparsemax(scores[0])).numpy()).pvalue > 1e-3


def test_padded_and_back(found: SparseDistribution) -> None:
    again = SparseDistribution.from_padded(*found.padded())
    assert torch.equal(again.atoms, found.atoms)
    assert torch.equal(again.row, found.row)
    torch.testing.assert_close(again.probs, found.probs, atol=0, rtol=0)
    (gradient,) = torch.autograd.grad(again.probs.square().sum(), found.probs)
    torch.testing.assert_close(gradient, 2 * found.probs)


def test_pruning_leaves_out_light_atoms(found: SparseDistribution) -> None:
    pruned = SparseDistribution.from_padded(*found.padded(), prune=0.1)
    heavy = found.padded()[1].amax(-1) > 0.1
    assert heavy.all()
    assert (pruned.probs > 0.1).all()
    assert len(pruned.probs) == int((found.probs > 0.1).sum()) < len(found.probs)


def test_pruning_keeps_the_heaviest_of_each_row() -> None:
    atoms = torch.eye(3).expand(3, 3, 3)
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.0, 0.05, 0.95]])
    pruned = SparseDistribution.from_padded(atoms, probs, prune=0.5)
    assert pruned.support_size().tolist() == [1, 1, 1]
    assert pruned.mode().argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("make", [lambda s: sparsemap(s, Simplex(5)), lambda s: topk_sparsemax(s, Simplex(5), 5)])
def test_index_of_categories(make) -> None:
    scores = scores_for(Simplex(5), "small")
    wanted = SparseDistribution.from_simplex(sparsemax(scores))
    found = make(scores)
    assert wanted.index is not None
    assert set(zip(found.row.tolist(), found.index.tolist(), strict=True)) == set(
        zip(wanted.row.tolist(), wanted.index.tolist(), strict=True)
    )
    torch.testing.assert_close(found.mean(), sparsemax(scores))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.expectation(lambda atoms, row: atoms.sum()), "f must return one value a pair"),
        (lambda d: d.expectation(lambda atoms, row: None), "it returned NoneType"),
        (lambda d: d.expectation(lambda atoms, row: row, max_atoms=0), "max_atoms must be at least 1, not 0"),
        (lambda d: d.sample(5), r"needs a shape, e\.g\. \(5,\), not the number 5"),
        (lambda d: d.log_prob(torch.zeros(6)), r"needs one structure a row, \[3, 4, 6\], not \[6\]"),
        (lambda d: SparseDistribution.from_padded(torch.zeros(2, 3, 4), torch.zeros(2, 4)), "atoms .* and probs"),
        (lambda d: SparseDistribution(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2), (1,)), r"probs \[N\] and row"),
        (lambda d: SparseDistribution(torch.eye(3), torch.ones(3), torch.tensor([0, 1, 0]), (2,)), "needs row sorted"),
        (lambda d: SparseDistribution(torch.eye(3), torch.ones(3), torch.tensor([0, 0, 0]), (2,)), "one atom or more of each"),
        (lambda d: SparseDistribution(torch.eye(3), torch.ones(3), torch.tensor([0, 1, 2]), (2,)), "of its 2 rows"),
        (lambda d: SparseDistribution.from_simplex(torch.tensor([[0.5, 0.5], [3.0, 0.0]])), "row 1 has sum 3"),
        (lambda d: SparseDistribution.from_simplex(torch.tensor([[2.0, -1.0]])), "sum 1 and least entry -1"),
        (lambda d: SparseDistribution.from_simplex(torch.full((1, 2), torch.nan)), "row 0 has sum nan"),
        (lambda d: SparseDistribution.from_simplex(torch.zeros(2, 0)), r"K at least 1, not \[2, 0\]"),
        (lambda d: SparseDistribution.from_simplex([0.5, 0.5]), "not list"),
        (lambda d: d.sample((-1, -2)), "sample_shape: a size must be at least 0, not -1"),
    ],
)
def test_bad_input(found: SparseDistribution, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(found)


@pytest.mark.parametrize("max_atoms", [None, 40])
def test_what_f_does_in_place_is_its_own(found: SparseDistribution, max_atoms: int | None) -> None:
    """To the atoms and to the rows, as where the pairs of two latent variables are numbered together."""

    def in_place(atoms: Tensor, row: Tensor) -> Tensor:
        row.mul_(2).add_(1)
        return atoms.mul_(3).sum(-1) + row

    row = found.row.clone()
    wanted = 3 * found.mean().sum(-1) + 2 * torch.arange(12).reshape(3, 4) + 1
    for _ in range(2):
        torch.testing.assert_close(found.expectation(in_place, max_atoms=max_atoms), wanted)
    assert torch.equal(found.row, row)


@pytest.mark.parametrize("max_atoms", [None, 40])
def test_out_of_memory_says_how_many_pairs_fit(found: SparseDistribution, max_atoms: int | None) -> None:
    count = len(found.row)
    assert count > 40

    def hungry(atoms: Tensor, row: Tensor) -> Tensor:
        if len(row) > 13:
            raise torch.OutOfMemoryError("tried to allocate")
        return atoms.sum(-1)

    failed = max_atoms or count
    fits = failed >> next(half for half in range(1, 20) if failed >> half <= 13)
    most, average = int(found.support_size().max()), count / 12
    wanted = (
        f"expectation: out of memory with f on {failed} of {count} pairs at a time (12 rows with up to {most} atoms, "
        f"{average:.3g} on average); max_atoms={fits} went through, forward at least"
    )
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(wanted)):
        found.expectation(hungry, max_atoms=max_atoms)
    expected = found.expectation(lambda atoms, row: atoms.sum(-1))
    torch.testing.assert_close(found.expectation(hungry, max_atoms=fits), expected)

    def starving(atoms: Tensor, row: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(torch.OutOfMemoryError, match="not even one pair fits"):
        found.expectation(starving, max_atoms=max_atoms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_do_not_stop_short(dtype: torch.dtype) -> None:
    found = SparseDistribution.from_simplex(torch.full((1, 1000), 1e-3, dtype=dtype))
    total = found.expectation(lambda atoms, row: torch.ones(len(row), dtype=dtype))
    torch.testing.assert_close(total.float(), torch.ones(1), atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_top(count: int) -> None:
    """Against a list of each row's atoms, sorted; and with the derivative of what was chosen."""
    scores = scores_for(BernoulliCube(6), "normal").requires_grad_()
    q = sparsemap(scores.reshape(2, -1, 6), BernoulliCube(6))
    atoms, probs = q.top(count)
    assert atoms.shape == (2, len(scores) // 2, count, 6)
    for row in range(len(scores)):
        own = [(float(p), atom) for p, atom in zip(q.probs[q.row == row], q.atoms[q.row == row].tolist(), strict=True)]
        wanted = sorted(own, key=lambda pair: -pair[0])[:count]
        missing = count - len(wanted)
        assert probs.flatten(0, 1)[row].tolist() == [p for p, _ in wanted] + [0] * missing
        assert atoms.flatten(0, 1)[row].tolist() == [atom for _, atom in wanted] + [[0] * 6] * missing
    if count == 50:
        (both,) = torch.autograd.grad((probs * atoms.sum(-1)).sum(), scores)
        torch.testing.assert_close(both, torch.autograd.grad(sparsemap(scores, BernoulliCube(6)).mean().sum(), scores)[0])
    with pytest.raises(ValueError, match="top: count must be"):
        q.top(0)


KEYS = [
    0,
    (1, 2),
    slice(None),
    slice(2, 0),
    (slice(None), 1),
    torch.tensor([2, 0, 2]),
    torch.ones(3, 4).bool(),
    ...,
    (None, -1),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_some_of_the_batch(found: SparseDistribution, key: object) -> None:
    """As tensors are indexed: what is asked of the part is the part of what is asked of all, and so is the gradient."""
    part = found[key]
    assert part.batch_shape == torch.empty(3, 4)[key].shape  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(part.mean(), found.mean()[key], rtol=0, atol=0)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(part.entropy(), found.entropy()[key])  # pyright: ignore[reportArgumentType]
    assert part.stats is not None
    assert found.stats is not None
    for name, field in vars(found.stats).items():
        assert torch.equal(getattr(part.stats, name), field[key])
    weights = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[key]  # pyright: ignore
    if part.batch_shape.numel():
        gradients = [torch.autograd.grad((mean * weights).sum(), found.probs)[0] for mean in (part.mean(), found.mean()[key])]  # pyright: ignore
        torch.testing.assert_close(*gradients)


def test_some_of_the_batch_that_are_not_there(found: SparseDistribution) -> None:
    with pytest.raises(IndexError, match=r"of batch shape \[3, 4\], indexed by 3: .* out of bounds"):
        found[3]
    for key in ("a", slice(None, None, -1)):
        with pytest.raises(IndexError, match=r"of batch shape \[3, 4\], indexed by "):
            found[key]
    with pytest.raises(IndexError, match=r"of batch shape \[\], indexed by 0"):
        found[0, 0][0]
    assert [part.batch_shape for part in found] == [(4,)] * len(found) == [(4,)] * 3
    with pytest.raises(TypeError, match="no length"):
        list(found[0, 0])


def test_some_of_categories() -> None:
    found = SparseDistribution.from_simplex(sparsemax(torch.tensor([[0.1, 0.2, 2.0], [1.0, 0.9, 0.0]])))
    assert found[1].index is not None
    assert found[1].index.tolist() == [0, 1]


def test_without_gradient_and_in_another_dtype(found: SparseDistribution) -> None:
    bare = found.detach()
    assert not bare.probs.requires_grad
    assert torch.equal(bare.mean(), found.mean())
    assert torch.equal(bare.stats.gap, found.stats.gap)
    single = found.to(torch.float32)
    assert single.atoms.dtype == single.probs.dtype == single.mean().dtype == torch.float32
    (gradient,) = torch.autograd.grad(single.mean().sum(), found.probs)
    assert gradient.dtype == torch.float64
    assert found.to(dtype=torch.float32, device="cpu").probs.dtype == torch.float32
    with pytest.raises(ValueError, match=r"floating-point dtype, not torch\.int64"):
        found.to(torch.int64)
    nowhere = found.to("meta")
    fields = (nowhere.atoms, nowhere.probs, nowhere.row, *vars(nowhere.stats).values())
    assert {field.device.type for field in fields} == {"meta"}
