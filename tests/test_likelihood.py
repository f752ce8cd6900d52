"""Estimates of log p(x). Truth is the sum over all 2^D codes, on models trained until their posteriors are peaked."""

import csv
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from sparsemarg.experiments import cli
from sparsemarg.experiments.data import read_digits
from sparsemarg.layers import SparseDistribution, SparseMAP, TopKSparsemax
from sparsemarg.models import BitVectorVAE, Decoder, Encoder
from sparsemarg.models.estimators import Estimator, Marginalize, ScoreFunction, SelfCritic
from sparsemarg.models.likelihood import LogMarginal, mixture_importance, posterior_and_prior, posterior_importance
from sparsemarg.models.likelihood.importance import _climb
from sparsemarg.models.likelihood.mixture import BernoulliMixture
from sparsemarg.models.likelihood.weights import evaluate, log_marginal
from sparsemarg.oracles import BernoulliCube, Budget
from torch import Tensor
from torch.nn import functional as F

D = 9

ESTIMATORS: dict[str, Callable[[int], Estimator]] = {
    "sparsemap": lambda dim: Marginalize(SparseMAP(BernoulliCube(dim))),
    "budget": lambda dim: Marginalize(SparseMAP(Budget(dim, 3))),
    "topk": lambda dim: Marginalize(TopKSparsemax(BernoulliCube(dim), 5)),
    "bernoulli": lambda dim: ScoreFunction(BernoulliCube(dim), SelfCritic()),
    "at most 3": lambda dim: ScoreFunction(Budget(dim, 3), SelfCritic()),
}
SPARSE = ["sparsemap", "budget", "topk"]


def every_code(dim: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * dim).reshape(-1, dim)


@cache
def trained(name: str, dim: int = D, steps: int = 300) -> tuple[BitVectorVAE, Tensor]:
    """A model trained on digits, and 60 images that it has not seen.

    In float64 and tensor operations, so that it is the same model whatever kernels there are: what is rounded otherwise grows
    in 300 steps to another one.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = read_digits()[0]
    encoder, decoder = Encoder(64, 17, dim, 32, normalize_scores=True), Decoder(dim, 64, 17, 32, 3)
    vae = BitVectorVAE(encoder, decoder, ESTIMATORS[name](dim)).double()
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEMARG_KERNELS", "off")
        for _ in range(steps):
            optimizer.zero_grad()
            vae(images[torch.randint(1500, (64,))]).loss.backward()
            optimizer.step()
    return vae.float().eval(), images[1500:1560]


def exact(vae: BitVectorVAE, images: Tensor) -> Tensor:
    """log p(x) by the plain formula: all codes, all pixels, all grey levels, in float64."""
    dim = vae.encoder.dim
    with torch.no_grad():
        log_probs = vae.decoder(every_code(dim)).double().log_softmax(-1)  # [2^D, pixels, levels]
        chosen = F.one_hot(images.long(), log_probs.shape[-1]).double()
        likelihoods = torch.einsum("zpl,bpl->bz", log_probs, chosen)
    return likelihoods.logsumexp(-1) - dim * math.log(2)


def estimate(
    name: str, vae: BitVectorVAE, images: Tensor, samples: int, *, published: bool = False, seed: int = 0
) -> LogMarginal:
    def log_likelihood(codes: Tensor, row: Tensor) -> Tensor:
        return -vae.distortion(codes, images[row])

    with torch.no_grad():
        posterior = vae.estimator.distribution(vae.encoder(images))
    generator = torch.Generator().manual_seed(seed)
    if not published:
        return mixture_importance(posterior, log_likelihood, samples, generator=generator)
    if isinstance(posterior, SparseDistribution):
        return posterior_and_prior(posterior, log_likelihood, samples, generator=generator)
    return posterior_importance(posterior, log_likelihood, samples, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_common_estimate_agrees_with_enumeration(name: str) -> None:
    """Every kind of posterior, on images whose p(z | x) has few codes: within 5 standard errors and, on average, 0.1 nats."""
    vae, images = trained(name)
    truth = exact(vae, images)
    found = estimate(name, vae, images, 2048)
    error = (found.value - truth).abs()
    assert float(found.standard_error.max()) < 0.3
    assert float(found.standard_error.mean()) < 0.05
    assert bool((error < 5 * found.standard_error + 1e-4).all())
    assert float(error.mean()) < 0.1
    assert float(found.effective_samples.median()) > 200
    # The codes are a part of all that there are: enumeration is no way out for the estimate.
    assert found.evaluations < 60 * 2048
    # It is not the bound that it estimates.
    bound = vae(images).negative_elbo.double()
    assert float((truth + bound).mean()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SPARSE)
def test_support_and_prior_agree_with_enumeration(name: str) -> None:
    """The rest's weights are as uneven as p(z | x) itself, so many samples: at D = 9 a few hundred of each code."""
    vae, images = trained(name)
    truth = exact(vae, images)
    found = estimate(name, vae, images, 60_000, published=True)
    assert bool(((found.value - truth).abs() < 5 * found.standard_error + 1e-4).all())
    assert float((found.value - truth).abs().mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_unbiased_and_know_their_error(name: str, published: bool) -> None:
    """One image 1,500 times gives as many independent estimates of p(x): their mean within 4 standard errors of it.

    D = 4 and few steps of training, so that no rare code carries the mean. q that cannot draw all codes estimates p(x, z in
    its reach), in the published estimate.
    """
    vae, images = trained(name, dim=4, steps=60)
    image = images[:1]
    truth = exact(vae, image)
    if published and name == "at most 3":
        codes = every_code(4)
        reach = codes[codes.sum(-1) <= 3]
        with torch.no_grad():
            truth = (-vae.distortion(reach, image.expand(len(reach), -1))).double().logsumexp(-1, keepdim=True) - 4 * math.log(
                2
            )
    repeats = 1500
    found = estimate(name, vae, image.expand(repeats, -1), 16, published=published)
    ratio = (found.value - truth).exp()
    assert abs(float(ratio.mean() - 1)) < 4 * float(ratio.std()) / math.sqrt(repeats) + 1e-6
    large = estimate(name, vae, image.expand(300, -1), 512, published=published, seed=1)
    spread = float((large.value - truth).std())
    # Stratified samples vary less than the error says, never more; 300 repeats know their spread to 4 %.
    assert spread < 1.15 * float(large.standard_error.mean()) + 1e-6
    assert spread > 0.4 * float(large.standard_error.mean())


@pytest.mark.parametrize("name", SPARSE)
def test_the_support_alone_is_a_lower_bound(name: str) -> None:
    vae, images = trained(name, dim=4, steps=60)
    with torch.no_grad():
        posterior = vae.estimator.distribution(vae.encoder(images))
        costs = vae.distortion(posterior.atoms, images[posterior.row]).double()
    alone = torch.stack([(-costs[posterior.row == b]).logsumexp(0) for b in range(len(images))]) - 4 * math.log(2)
    found = estimate(name, vae, images, 4, published=True)
    assert bool((alone <= found.value + 1e-9).all())
    assert bool((alone < exact(vae, images)).all())


# Appendix D by hand


def test_samples_of_the_rest_are_uniform_off_the_support() -> None:
    """Three bits, 4 atoms: the other 4 codes are drawn equally often (chi-square, 3 degrees of freedom, 1e-4), atoms never."""
    atoms = every_code(3)[[0, 3, 5, 6]]
    posterior = SparseDistribution(atoms, torch.full((4,), 0.25), torch.zeros(4, dtype=torch.int64), (1,))
    calls: list[Tensor] = []

    def log_likelihood(codes: Tensor, row: Tensor) -> Tensor:
        calls.append(codes)
        return codes @ torch.tensor([0.5, 1.0, -2.0])

    samples = 8000
    found = posterior_and_prior(posterior, log_likelihood, samples, generator=torch.Generator().manual_seed(0))
    inside, outside = calls
    assert torch.equal(inside, atoms)
    assert {tuple(code) for code in outside.tolist()} == {tuple(code) for code in every_code(3)[[1, 2, 4, 7]].tolist()}
    values = torch.tensor([math.exp(c @ torch.tensor([0.5, 1.0, -2.0])) for c in every_code(3)], dtype=torch.float64)
    assert abs(float(found.value.exp() - values.mean())) < 4 * float(found.standard_error * found.value.exp())
    assert found.evaluations == 8


def test_a_support_of_all_codes_is_exact() -> None:
    posterior = SparseDistribution(every_code(2), torch.full((4,), 0.25), torch.zeros(4, dtype=torch.int64), (1,))
    found = posterior_and_prior(posterior, lambda codes, row: -1000 * codes.sum(-1), 16)
    assert float(found.value) == pytest.approx(-2 * math.log(2))
    assert float(found.standard_error) == 0


def test_weights_far_below_what_floats_hold() -> None:
    log_weights = torch.tensor([[-3000.0], [-3001.0], [-3005.0], [-9000.0]], dtype=torch.float64)
    found = log_marginal(torch.tensor([-3002.0]), log_weights, 4)
    weights = (log_weights[:, 0] + 3000).exp()
    total = math.exp(-2) + float(weights.mean())
    assert float(found.value) == pytest.approx(-3000 + math.log(total))
    assert float(found.standard_error) == pytest.approx(float(weights.std()) / 2 / total)
    assert float(found.effective_samples) == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()))


def test_equal_codes_are_evaluated_once() -> None:
    codes = torch.zeros(4, 2, 130)
    codes[1, 0, 129] = codes[2, 1, 64] = 1
    asked: list[tuple[int, float]] = []

    def log_likelihood(some: Tensor, row: Tensor) -> Tensor:
        asked.extend(zip(row.tolist(), (some @ torch.arange(130.0)).tolist(), strict=True))
        return some @ torch.arange(130.0) + 1000 * row

    values, count = evaluate(log_likelihood, codes)
    assert values.tolist() == [[0, 1000], [129, 1000], [0, 1064], [0, 1000]]
    assert count == 4
    assert sorted(asked) == [(0, 0), (0, 129), (1, 0), (1, 64)]


# The proposal


def mixture() -> BernoulliMixture:
    generator = torch.Generator().manual_seed(0)
    probs = 0.05 + 0.9 * torch.rand(2, 3, 4, generator=generator)
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]])
    return BernoulliMixture(probs, weights)


def test_mixture_density_is_the_formula_and_sums_to_one() -> None:
    proposal = mixture()
    codes = every_code(4).double()
    density = proposal.log_prob(codes[:, None].expand(-1, 2, -1)).exp()
    on = torch.where(codes[:, None, None] > 0.5, proposal.probs, 1 - proposal.probs).prod(-1)  # [16, B, K]
    torch.testing.assert_close(density, (on * proposal.weights).sum(-1))
    torch.testing.assert_close(density.sum(0), torch.ones(2, dtype=torch.float64))
    both = proposal.beside(mixture(), 0.3)
    torch.testing.assert_close(both.log_prob(codes[:, None].expand(-1, 2, -1)).exp(), density)


def test_mixture_samples_follow_its_density() -> None:
    """Chi-square at 1e-4 with 15 degrees of freedom; and components as often as their weights, but for rounding."""
    proposal, count = mixture(), 20_000
    codes = proposal.sample(count, torch.Generator().manual_seed(1))
    numbers = (codes @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    density = proposal.log_prob(every_code(4).double()[:, None].expand(-1, 2, -1)).exp()
    for row in range(2):
        expected = count * density[:, row]
        observed = torch.bincount(numbers[:, row], minlength=16)
        assert float(((observed - expected).square() / expected).sum()) < 45
    sure = BernoulliMixture(torch.tensor([[[1e-9], [1 - 1e-9]]]), torch.tensor([[0.25, 0.75]]))
    drawn = torch.stack([sure.sample(10).sum() for _ in range(200)])
    assert set(drawn.tolist()) == {7.0, 8.0}


def test_climbs_keep_the_value_of_the_code_that_they_are_at() -> None:
    """From impossible codes as well, where all changes are infinite."""
    dim, generator = 6, torch.Generator().manual_seed(0)
    logs = torch.randn(2**dim, dtype=torch.float64, generator=generator) * 10
    logs = logs.masked_fill(torch.rand(2**dim, generator=generator) < 0.7, -torch.inf)
    powers = 2 ** torch.arange(dim)

    def log_likelihood(codes: Tensor, row: Tensor) -> Tensor:
        return logs[(codes.long() * powers).sum(-1)]

    starts = torch.randint(2, (200, 1, dim), generator=generator).double()
    peaks, _ = _climb(log_likelihood, starts)
    assert torch.equal(peaks.values[:, 0], log_likelihood(peaks.codes[:, 0], torch.zeros(200)))
    assert (peaks.values[:, 0] >= log_likelihood(starts[:, 0], torch.zeros(200))).all()
    assert not peaks.changes.isnan().any()


@pytest.mark.parametrize("possible", ["first bit", "odd", "one", "none"])
def test_codes_that_an_image_excludes(possible: str) -> None:
    """log p(x | z) = -inf for some codes: the estimates stay unbiased, and are -inf where no code that was met is possible."""
    dim = 6
    codes = every_code(dim).double()
    given = torch.randn(2**dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = {
        "first bit": codes[:, 0] > 0,
        "odd": codes.sum(-1) % 2 > 0,
        "one": codes.sum(-1) == dim,
        "none": codes.sum(-1) < 0,
    }[possible]
    logs = torch.where(allowed, given, -torch.inf)
    powers = 2 ** torch.arange(dim - 1, -1, -1)
    place = torch.empty(2**dim, dtype=torch.int64)
    place[(codes.long() * powers).sum(-1)] = torch.arange(2**dim)

    def log_likelihood(some: Tensor, row: Tensor) -> Tensor:
        return logs[place[(some.long() * powers).sum(-1)]]

    truth = logs.logsumexp(0) - dim * math.log(2)
    posterior = SparseMAP(BernoulliCube(dim), "pairs")(torch.zeros(40, dim))
    found = mixture_importance(posterior, log_likelihood, 256, generator=torch.Generator().manual_seed(0))
    gibbs = BernoulliCube(dim).gibbs(torch.zeros(40, dim))
    drawn = posterior_importance(gibbs, log_likelihood, 256, generator=torch.Generator().manual_seed(0))
    for estimate in (found, drawn):
        assert not estimate.value.isnan().any()
        if possible == "none":
            assert estimate.value.isneginf().all()
        elif possible != "one" or estimate is found:
            mean, error = estimate.value.exp().mean(), estimate.value.exp().std() / math.sqrt(40)
            assert abs(float(mean - truth.exp())) < 5 * float(error)


def test_samples_that_are_no_number_are_refused() -> None:
    posterior = SparseMAP(BernoulliCube(3))(torch.zeros(2, 3))
    for samples, message in ((0, "samples must be at least 1, not 0"), (2.5, "samples must be an int at least 1, not 2.5")):
        with pytest.raises(ValueError, match=message):
            mixture_importance(posterior, lambda codes, row: codes.sum(-1), samples)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=message):
            posterior_importance(BernoulliCube(3).gibbs(torch.zeros(2, 3)), lambda codes, row: codes.sum(-1), samples)  # pyright: ignore
    with pytest.raises(ValueError, match="samples must be at least 0, not -1"):
        posterior_and_prior(posterior, lambda codes, row: codes.sum(-1), -1)


# `sparsemarg test`


def columns(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return next(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["sparsemap", "sfe_plus"])
def test_the_command_estimates_the_likelihood(tmp_path: Path, config: str) -> None:
    options = [
        "--config",
        f"bit_vector_vae/digits/{config}",
        "--folder",
        str(tmp_path),
        "--trainer.enable_progress_bar",
        "false",
    ]
    assert cli.main(["fit", *options, "--trainer.max_steps", "20"]) == 0
    few = ["--model.init_args.likelihood_samples", "32", "--model.init_args.likelihood_images", "70"]
    assert cli.main(["test", *options, *few]) == 0
    found = columns(tmp_path / "test.csv")
    assert float(found["test/likelihood_images"]) == 70
    assert float(found["test/bits_per_dim_importance"]) < float(found["test/bits_per_dim"]) + 0.1
    for name in ("appendix_d", "importance"):
        assert 0 <= float(found[f"test/bits_per_dim_{name}_error"]) < 0.1
    assert 1 <= float(found["test/effective_samples_q5"]) <= float(found["test/effective_samples_mean"]) <= 32
    assert cli.main(["test", *options, "--model.init_args.likelihood_images", "0"]) == 0
    assert "test/bits_per_dim_importance" not in columns(tmp_path / "test.csv")
    assert "likelihood" not in (tmp_path / "metrics.csv").read_text()


def test_bad_likelihood_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "bit_vector_vae/digits/sparsemap", "--folder", str(tmp_path)]
    for name, value in (("likelihood_samples", "1"), ("likelihood_images", "-1")):
        assert cli.main(["fit", *options, f"--model.init_args.{name}", value]) == 2
        assert f"{name} must be at least" in capsys.readouterr().err
