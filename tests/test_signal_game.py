"""The signal game's model. Truth is the published networks as convolutions, softmax formulas, and sums over symbols."""

import math
from collections.abc import Callable

import pytest
import torch
from sparsemarg.layers import SparseMAP, Sparsemax
from sparsemarg.models import NegativeLogLikelihood, Receiver, SampledSuccess, Sender, SignalGame
from sparsemarg.models.estimators import (
    IMLE,
    ConstantTemperature,
    DenseMarginalize,
    DrawnCost,
    Estimator,
    GumbelSoftmax,
    Learned,
    LeaveOneOut,
    Marginalize,
    ReinMax,
    RunningMean,
    ScoreFunction,
    SelfCritic,
    SumAndSample,
)
from sparsemarg.models.scalar_filter import filtered, plain
from sparsemarg.oracles import Simplex
from torch import Tensor
from torch.nn import functional as F

FEATURES, SYMBOLS, IMAGES, GAMES = 7, 5, 4, 6

ESTIMATORS = {
    "sparsemax": lambda: Marginalize(Sparsemax()),
    "sparsemap": lambda: Marginalize(SparseMAP(Simplex(SYMBOLS))),
    "dense": lambda: DenseMarginalize(Simplex(SYMBOLS)),
    "sfe": lambda: ScoreFunction(Simplex(SYMBOLS), RunningMean()),
    "sfe_plus": lambda: ScoreFunction(Simplex(SYMBOLS), SelfCritic()),
    "nvil": lambda: ScoreFunction(Simplex(SYMBOLS), Learned()),
    "rloo": lambda: ScoreFunction(Simplex(SYMBOLS), LeaveOneOut(3)),
    "sum_and_sample": lambda: SumAndSample(Simplex(SYMBOLS), 2, RunningMean()),
    "gumbel": lambda: GumbelSoftmax(Simplex(SYMBOLS), ConstantTemperature(0.7)),
    "straight_through": lambda: GumbelSoftmax(Simplex(SYMBOLS), ConstantTemperature(0.7), straight_through=True),
    "reinmax": lambda: ReinMax(Simplex(SYMBOLS)),
    "imle": lambda: IMLE(Simplex(SYMBOLS), 1.0),
}
SPARSE = ["sparsemax", "sparsemap"]


def game_with(estimator: Estimator, *, cost: SampledSuccess | None = None, coefficient: float = 0.0) -> SignalGame:
    torch.manual_seed(0)
    sender = Sender(FEATURES, SYMBOLS, embedding=6, filters=8, temperature=0.3)
    return SignalGame(estimator, sender, Receiver(FEATURES, SYMBOLS, embedding=3), coefficient, cost).double()


def games(count: int = GAMES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, IMAGES, FEATURES, generator=generator, dtype=torch.float64)
    position = torch.randint(IMAGES, (count,), generator=generator)
    return images[torch.arange(count), position], images, position


def every_cost(game: SignalGame, images: Tensor, position: Tensor) -> Tensor:
    """-log p(target's position | symbol), one symbol after another, by the formula of the published receiver: [B, symbols]."""
    costs = []
    for symbol in range(SYMBOLS):
        embedded = F.linear(images, game.receiver.embed.weight)  # [B, images, embedding]
        scores = (embedded * game.receiver.symbols[symbol]).sum(-1)
        costs.append(-scores.softmax(-1)[torch.arange(len(images)), position].log())
    return torch.stack(costs, 1)


# The networks


def test_sender_is_the_published_convolutions() -> None:
    """The published sender reshapes W x to a picture of one row and runs 1x1 convolutions over it."""
    sender = game_with(DenseMarginalize(Simplex(SYMBOLS))).sender
    target = games()[0]
    picture = F.linear(target, sender.embed.weight)[:, None, None]  # [B, 1, 1, embedding]
    hidden = F.conv2d(picture, sender.filter_in.weight[..., None, None]).sigmoid()
    filtered = F.conv2d(hidden, sender.filter_out.weight[..., None, None]).sigmoid()
    expected = F.linear(filtered.flatten(1), sender.score.weight) / 0.3
    torch.testing.assert_close(sender(target), expected, rtol=0, atol=1e-12)
    assert not [name for name, _ in sender.named_parameters() if "bias" in name]


def test_receiver_scores_every_symbol_at_once() -> None:
    game = game_with(DenseMarginalize(Simplex(SYMBOLS)))
    _, images, position = games()
    costs = -game.receiver(images).log_softmax(1)[torch.arange(GAMES), position]
    torch.testing.assert_close(costs, every_cost(game, images, position), rtol=0, atol=1e-12)


def test_published_sizes_and_initial_symbols() -> None:
    sender, receiver = Sender(4096), Receiver(4096)
    sizes = {name: tuple(parameter.shape) for name, parameter in [*sender.named_parameters(), *receiver.named_parameters()]}
    assert sizes["score.weight"] == (256, 256)
    assert sizes["filter_in.weight"] == (512, 1)
    assert sizes["symbols"] == (256, 256)
    assert abs(float(receiver.symbols.detach().std()) - 1) < 0.02
    assert sender.temperature == 10


# The costs


def test_cost_of_one_hot_and_of_relaxed_messages() -> None:
    table = torch.randn(GAMES, IMAGES, SYMBOLS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.arange(GAMES) % IMAGES
    row = torch.tensor([5, 0, 0, 3])
    relaxed = torch.rand(4, SYMBOLS, dtype=torch.float64).softmax(-1)
    hard = torch.eye(SYMBOLS, dtype=torch.float64)[torch.tensor([0, 4, 2, 2])]
    for messages in (relaxed, hard, hard.clone().requires_grad_()):
        expected = torch.stack(
            [
                -(table[b] @ m).softmax(0)[p].log()
                for b, m, p in zip(row.tolist(), messages, position[row].tolist(), strict=True)
            ]
        )
        torch.testing.assert_close(NegativeLogLikelihood()(table, position, messages, row), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_hot_messages_are_known_as_such_in_any_precision(dtype: torch.dtype) -> None:
    """Where products of matrices are rounded to 8 bits, and there are many symbols."""
    chosen = torch.tensor([0, 255, 256, 257, 511, 5003, 9999])
    messages = torch.nn.functional.one_hot(chosen, 10_000)
    table = torch.randn(1, IMAGES, 10_000, generator=torch.Generator().manual_seed(0))
    row = torch.zeros(len(chosen), dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float16):
        for given in (messages.to(dtype), messages.to(dtype).roll(1, 0)):
            found = NegativeLogLikelihood()(table, row[:1], given, row)
            expected = -table[0, :, given.argmax(-1)].log_softmax(0)[0]
            torch.testing.assert_close(found, expected)
            assert SampledSuccess()(table, row[:1], given, row).log_prob.shape == (len(chosen),)
    relaxed = torch.rand(3, 10_000, dtype=torch.float64).softmax(-1).to(dtype)
    with pytest.raises(ValueError, match="one-hot, but are relaxed"):
        SampledSuccess()(table.to(dtype), row[:1], relaxed, row[:3])


def test_drawn_guesses_follow_the_receiver() -> None:
    draws = 40_000
    table = torch.randn(1, IMAGES, SYMBOLS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    messages = F.one_hot(torch.full((draws,), 3), SYMBOLS).double()
    torch.manual_seed(0)
    position, row = torch.tensor([2]), torch.zeros(draws, dtype=torch.int64)
    drawn = SampledSuccess(entropy_coefficient=0.25)(table, position, messages, row)
    probs = table[0, :, 3].softmax(0)
    assert set(drawn.value.tolist()) == {0.0, -1.0}
    assert abs(float(drawn.value.mean() + probs[2])) < 4 * math.sqrt(probs[2] * (1 - probs[2]) / draws)
    entropy = -(probs * probs.log()).sum()
    torch.testing.assert_close(drawn.penalty, (-0.25 * entropy).expand(draws), rtol=1e-12, atol=0)
    right = drawn.value == -1
    torch.testing.assert_close(drawn.log_prob[right].exp(), probs[2].expand(int(right.sum())), rtol=1e-12, atol=0)
    for image in (0, 1, 3):
        share = float(((drawn.log_prob.exp() - probs[image]).abs() < 1e-12).double().mean())
        assert abs(share - float(probs[image])) < 4 * math.sqrt(float(probs[image]) / draws)


def test_drawn_costs_need_one_hot_messages() -> None:
    with pytest.raises(ValueError, match="must be one-hot"):
        SampledSuccess()(torch.zeros(1, 2, 3), torch.tensor([0]), torch.full((1, 3), 1 / 3), torch.tensor([0]))


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("sfe", "sfe_plus", "nvil", "rloo")])
def test_estimators_without_a_gradient_for_draws_refuse_them(name: str) -> None:
    with pytest.raises(ValueError, match="no gradient for what is drawn: use ScoreFunction"):
        game_with(ESTIMATORS[name](), cost=SampledSuccess())


# The game


@pytest.mark.parametrize("name", [*SPARSE, "dense"])
def test_exact_loss_and_gradient(name: str) -> None:
    """Against q(z) from the projection or softmax of the scores, and a sum over all symbols by autograd."""
    game = game_with(ESTIMATORS[name](), coefficient=0.1)
    target, images, position = games()
    play = game(target, images, position)
    found = torch.autograd.grad(play.loss, list(game.parameters()))

    scores = game.sender(target)
    q = Sparsemax()(scores) if name in SPARSE else scores.softmax(-1)
    costs = every_cost(game, images, position)
    entropy = torch.special.entr(q).sum(-1)
    loss = (q * costs).sum(-1).mean() - 0.1 * entropy.mean()
    torch.testing.assert_close(play.loss, loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(play.cost, (q * costs).sum(-1).detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(play.entropy, entropy.detach(), rtol=0, atol=1e-10)
    for ours, expected in zip(found, torch.autograd.grad(loss, list(game.parameters())), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    if name in SPARSE:
        assert play.estimate.evaluations == int((q > 0).sum()) < GAMES * SYMBOLS


def gradient_samples(game: SignalGame, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the scores and in the table of one game, `draws` times."""
    scores = torch.tensor([0.5, -0.3, 0.9, 0.0, 0.2], dtype=torch.float64).repeat(draws, 1).requires_grad_()
    one = torch.randn(IMAGES, SYMBOLS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    table = one.repeat(draws, 1, 1).requires_grad_()
    position = torch.full((draws,), 1)
    torch.manual_seed(0)

    def cost(messages: Tensor, row: Tensor) -> Tensor | DrawnCost:
        return game.cost(table, position, messages, row)

    context = torch.ones(draws, FEATURES, dtype=torch.float64)
    estimate = game.estimator(scores, cost, context=context)
    by_scores, by_table = torch.autograd.grad(estimate.surrogate.sum(), [scores, table])
    return by_scores, by_table, estimate.value


@pytest.mark.parametrize("name", ["sfe", "sfe_plus", "nvil", "rloo"])
def test_gradient_of_the_zero_one_loss_is_unbiased(name: str) -> None:
    """Against the sum over all symbols and guesses, in the scores of both players; 4 standard errors."""
    game, draws = game_with(ESTIMATORS[name](), cost=SampledSuccess(0.2)), 30_000
    by_scores, by_table, value = gradient_samples(game, draws)

    scores = torch.tensor([0.5, -0.3, 0.9, 0.0, 0.2], dtype=torch.float64, requires_grad=True)
    table = torch.randn(IMAGES, SYMBOLS, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    guesses = table.softmax(0)  # [images, symbols]
    q = scores.softmax(0)
    expected_cost = -(q * guesses[1]).sum()
    # The receiver's entropy is that upon the message drawn: a term of the receiver alone.
    objective = expected_cost - 0.2 * (q.detach() * torch.special.entr(guesses).sum(0)).sum()
    exact = torch.autograd.grad(objective, [scores, table])
    for samples, truth in zip((by_scores, by_table), exact, strict=True):
        error = (samples.mean(0) - truth).abs() / (samples.std(0) / math.sqrt(draws) + 1e-12)
        assert float(error.max()) < 4
        assert float(truth.abs().max()) > 0.01
    assert abs(float((value.mean() - expected_cost).detach())) < 4 * float(value.detach().std()) / math.sqrt(draws)


# Success


def success_by_playing(game: SignalGame, probs: Tensor, images: Tensor, position: Tensor) -> Tensor:
    """Sum over symbols of q(z) times whether the receiver's best guess upon z is right, one game and symbol at a time."""
    result = []
    for b in range(len(images)):
        right = 0.0
        for symbol in range(SYMBOLS):
            scores = (F.linear(images[b], game.receiver.embed.weight) @ game.receiver.symbols[symbol]).tolist()
            right += float(probs[b, symbol]) * (scores.index(max(scores)) == int(position[b]))
        result.append(right)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_success_under_the_own_distribution_and_by_argmax(name: str) -> None:
    game = game_with(ESTIMATORS[name]())
    target, images, position = games(40)
    scores = game.sender(target).detach()
    q = Sparsemax()(scores) if name in SPARSE else scores.softmax(-1)
    expected = success_by_playing(game, q, images, position)
    torch.testing.assert_close(game.success_expected(target, images, position), expected, rtol=0, atol=1e-10)
    hard = F.one_hot(scores.argmax(-1), SYMBOLS)
    by_argmax = game(target, images, position).success_argmax
    assert torch.equal(by_argmax, success_by_playing(game, hard, images, position))
    assert 0 < float(by_argmax.mean()) < 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_says_what_its_distribution_is(name: str) -> None:
    """`distribution` agrees with the entropy and the mode that the estimate reports, and with enumeration."""
    estimator = game_with(ESTIMATORS[name]()).estimator
    scores = torch.randn(GAMES, SYMBOLS, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    probs = Sparsemax()(scores) if name in SPARSE else scores.softmax(-1)
    distribution = estimator.distribution(scores)
    symbols = torch.eye(SYMBOLS, dtype=torch.float64)
    found = torch.stack([distribution.log_prob(symbol.expand(GAMES, -1)).exp() for symbol in symbols], 1)
    torch.testing.assert_close(found, probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(distribution.entropy(), torch.special.entr(probs).sum(-1), rtol=0, atol=1e-10)
    estimate = estimator(scores, lambda m, row: m.sum(-1), context=torch.ones(GAMES, FEATURES, dtype=torch.float64))
    torch.testing.assert_close(estimate.entropy, distribution.entropy(), rtol=0, atol=1e-10)
    assert torch.equal(estimate.mode.argmax(-1), probs.argmax(-1))


# What does not fit


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the sender has 5 symbols, the receiver 6"):
        SignalGame(Marginalize(Sparsemax()), Sender(3, 5), Receiver(3, 6))
    with pytest.raises(ValueError, match="scores of 5 symbols but the estimator's structures have 4"):
        SignalGame(DenseMarginalize(Simplex(4)), Sender(3, 5), Receiver(3, 5))
    for coefficient in (-0.1, math.nan):
        with pytest.raises(ValueError, match="entropy_coefficient must be at least 0"):
            SignalGame(Marginalize(Sparsemax()), Sender(3, 5), Receiver(3, 5), coefficient)
        with pytest.raises(ValueError, match="entropy_coefficient must be at least 0"):
            SampledSuccess(coefficient)
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="Sender: temperature must be above 0 and finite"):
            Sender(3, 5, temperature=temperature)
    with pytest.raises(ValueError, match="Sender: symbols must be at least 1, not 0"):
        Sender(3, 0)
    with pytest.raises(ValueError, match=r"u and v of one shape \[F\], not \[5\] and \[3\]"):
        filtered(torch.zeros(1), torch.ones(5), torch.ones(3))


@pytest.mark.parametrize(
    ("target", "images", "position", "message"),
    [
        ((2, 3), (2, 6, 3), torch.tensor([0, 6]), r"position must be in 0..5, not 0..6"),
        (
            (2, 3),
            (2, 6, 3),
            torch.zeros(2, 1, dtype=torch.int64),
            r"must be \[2\] ints, .*, not \[2, 1\] torch.int64",
        ),
        ((2, 3), (2, 6, 3), torch.zeros(2), r"position must be \[2\] ints, .*, not \[2\] torch.float32"),
        ((2, 3), (2, 3), torch.zeros(2, dtype=torch.int64), r"images must be \[B, n, features\], not \[2, 3\]"),
        ((2, 3), (3, 6, 3), torch.zeros(2, dtype=torch.int64), r"position must be \[3\] ints"),
    ],
)
def test_games_that_do_not_fit_are_refused(
    target: tuple[int, ...], images: tuple[int, ...], position: Tensor, message: str
) -> None:
    game = SignalGame(Marginalize(Sparsemax()), Sender(3, 5), Receiver(3, 5))
    with pytest.raises(ValueError, match=message):
        game(torch.rand(target), torch.rand(images), position)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(), (3, 100), (0, 4), (600,)])
def test_the_compiled_filter_is_the_plain_formula(
    shape: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within float32's rounding of float64, from vanishing to saturated sigmoids."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    inputs = [
        (2 * torch.randn(shape)).requires_grad_(),
        (20 * torch.randn(30)).requires_grad_(),
        torch.randn(30).requires_grad_(),
    ]
    weights = torch.rand(shape)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain(*exact)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    found = filtered(*inputs)
    assert isinstance(found.grad_fn, torch.autograd.function.BackwardCFunction)  # else it is the plain formula
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), inputs), wanted, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_second_derivatives_of_the_compiled_filter() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(size, requires_grad=True) for size in (4, 3, 3)]

    def second(function: Callable[..., Tensor]) -> list[Tensor]:
        (first,) = torch.autograd.grad(function(*inputs).square().sum(), inputs[0], create_graph=True)
        return list(torch.autograd.grad(first.sum(), inputs))

    for ours, theirs in zip(second(filtered), second(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_filter_passes_nan_on_and_works_under_func() -> None:
    entries, filters = torch.tensor([1.0, torch.nan]), torch.ones(2)
    assert filtered(entries, filters, filters).isnan().tolist() == [False, True]
    slopes = torch.func.vmap(torch.func.grad(lambda e: filtered(e, filters, filters)))(entries[:1])
    torch.testing.assert_close(slopes, 2 * entries[:1].sigmoid() * (1 - entries[:1].sigmoid()))
