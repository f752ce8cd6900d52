"""The bit-vector VAE against enumeration of all codes, and against formulas written out here."""

import math

import pytest
import torch
from sparsemarg.kernels import compiled
from sparsemarg.layers import SparseMAP, TopKSparsemax
from sparsemarg.layers.solvers import SortedDecomposition
from sparsemarg.models import BitVectorVAE, Decoder, Encoder, objective, pixel_cross_entropy
from sparsemarg.models.estimators import Marginalize
from sparsemarg.models.objective import plain
from sparsemarg.oracles import BernoulliCube, Budget
from torch import Tensor, nn

DIM, PIXELS, LEVELS = 4, 6, 5

LAYERS = {
    "sparsemap": lambda: SparseMAP(BernoulliCube(DIM), coding="pairs"),
    "budget": lambda: SparseMAP(Budget(DIM, 2), coding="pairs"),
    "sorted": lambda: SparseMAP(BernoulliCube(DIM), coding="pairs", solver=SortedDecomposition()),
    "topk": lambda: TopKSparsemax(BernoulliCube(DIM), k=5),
    "topk-all": lambda: TopKSparsemax(BernoulliCube(DIM), k=2**DIM),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    return LAYERS[request.param]()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(LEVELS, (7, PIXELS), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def make_vae(layer: nn.Module, max_atoms: int | None = None, normalize_scores: bool = False) -> BitVectorVAE:
    torch.manual_seed(0)
    encoder = Encoder(PIXELS, LEVELS, DIM, hidden=8, normalize_scores=normalize_scores)
    return BitVectorVAE(encoder, Decoder(DIM, PIXELS, LEVELS, hidden=8, rank=3), Marginalize(layer, max_atoms)).double()


def all_codes() -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * DIM)


def enumerated_costs(vae: BitVectorVAE, images: Tensor) -> Tensor:
    """-log p(x | z) of every image and every code, [B, 2^D], from torch's own Categorical."""
    pixels = torch.distributions.Categorical(logits=vae.decoder(all_codes()))  # [2^D, pixels]
    return -pixels.log_prob(images[:, None].long()).sum(-1)


def reference_sparsemax(scores: Tensor) -> Tensor:
    """Martins and Astudillo 2016, algorithm 1, row by row."""
    rows = []
    for row in scores:
        ordered = row.sort(descending=True).values
        count = max(k for k in range(1, len(row) + 1) if 1 + k * ordered[k - 1] > ordered[:k].sum())
        rows.append((row - (ordered[:count].sum() - 1) / count).clamp(min=0))
    return torch.stack(rows)


def entropy(probs: Tensor) -> Tensor:
    return -(probs * probs.clamp(min=1e-300).log()).sum(-1)


def gradients(vae: BitVectorVAE, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(vae.parameters())))


def test_loss_and_gradient_equal_enumeration_of_all_codes(images: Tensor) -> None:
    """With k = 2^D the distribution is sparsemax over all codes, so value and gradient can be written out."""
    vae = make_vae(LAYERS["topk-all"]())
    probs = reference_sparsemax(vae.encoder(images) @ all_codes().T)
    assert (probs == 0).any()  # else the test says nothing about sparsity
    costs = enumerated_costs(vae, images)
    expected = (probs * costs).sum(-1)
    loss = (expected - entropy(probs)).mean()

    bound = vae(images)

    torch.testing.assert_close(bound.loss, loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(bound.distortion, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(bound.rate, DIM * math.log(2) - entropy(probs), rtol=0, atol=1e-10)
    for ours, enumerated in zip(gradients(vae, bound.loss), gradients(vae, loss), strict=True):
        torch.testing.assert_close(ours, enumerated, rtol=0, atol=1e-9)


def test_bound_equals_dense_sum_and_bounds_the_likelihood(layer: nn.Module, images: Tensor) -> None:
    vae = make_vae(layer)
    distribution = layer(vae.encoder(images))
    every_code = all_codes()
    log_probs = torch.stack([distribution.log_prob(code.expand(len(images), -1)) for code in every_code], dim=-1)
    costs = enumerated_costs(vae, images)
    negative_elbo = (log_probs.exp() * costs).sum(-1) - entropy(log_probs.exp()) + DIM * math.log(2)
    log_likelihood = (-costs).logsumexp(-1) - DIM * math.log(2)

    bound = vae(images)

    torch.testing.assert_close(bound.negative_elbo, negative_elbo, rtol=0, atol=1e-10)
    assert (bound.negative_elbo >= -log_likelihood).all()
    torch.testing.assert_close(bound.loss, (negative_elbo - DIM * math.log(2)).mean(), rtol=0, atol=1e-10)


def test_encoder_gradient_equals_finite_differences(layer: nn.Module, images: Tensor) -> None:
    vae = make_vae(layer)
    bias = vae.encoder.output.bias
    analytic = torch.autograd.grad(vae(images).loss, bias)[0]
    step = 1e-6
    numeric = torch.empty_like(bias)
    with torch.no_grad():
        for i in range(DIM):
            bias[i] += step
            above = vae(images).loss
            bias[i] -= 2 * step
            numeric[i] = (above - vae(images).loss) / (2 * step)
            bias[i] += step
    assert analytic.abs().max() > 1e-3
    torch.testing.assert_close(analytic, numeric, rtol=0, atol=1e-6)


def test_decoder_sees_each_pair_with_mass_once(layer: nn.Module, images: Tensor) -> None:
    vae = make_vae(layer)
    rows: list[int] = []
    vae.decoder.hidden.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    estimate = vae(images).estimate
    assert rows == [int(estimate.support.sum())] == [estimate.evaluations]
    assert estimate.mode.shape == (len(images), DIM)


def test_max_atoms_changes_neither_value_nor_gradient(layer: nn.Module, images: Tensor) -> None:
    whole, pieces = make_vae(layer), make_vae(layer, max_atoms=3)
    pieces.max_logits = 1  # one pair at a time, within pieces of three
    torch.testing.assert_close(pieces(images).loss, whole(images).loss, rtol=0, atol=1e-12)
    pairs = zip(gradients(pieces, pieces(images).loss), gradients(whole, whole(images).loss), strict=True)
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_logits", [1, 2 * PIXELS * LEVELS, None])
def test_pixel_cross_entropy_equals_categorical(max_logits: int | None, images: Tensor) -> None:
    torch.manual_seed(2)
    head = nn.Linear(3, LEVELS).double()
    features = torch.randn(len(images), PIXELS, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(len(images), dtype=torch.float64)
    inputs = [features, head.weight, head.bias]
    expected = -torch.distributions.Categorical(logits=head(features)).log_prob(images.long()).sum(-1)
    costs = pixel_cross_entropy(features, head, images, max_logits=max_logits)
    torch.testing.assert_close(costs, expected, rtol=0, atol=1e-12)
    pairs = zip(torch.autograd.grad(costs @ weights, inputs), torch.autograd.grad(expected @ weights, inputs), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_pixel_cross_entropy_derivatives_of_both_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 2), (7, 2), (7,)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    images = torch.randint(0, 7, (3, 4), generator=generator)

    def costs(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = nn.Linear(2, 7).double()
        del head.weight, head.bias
        head.weight, head.bias = weight, bias  # pyright: ignore
        return pixel_cross_entropy(features, head, images, max_logits=56)

    assert torch.autograd.gradcheck(costs, inputs)
    assert torch.autograd.gradgradcheck(costs, inputs)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_autocast_leaves_pixels_alone(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    torch.manual_seed(4)
    head, images = nn.Linear(5, 17), torch.randint(0, 17, (3, 20))
    features = torch.randn(3, 20, 5, requires_grad=True)

    def derivatives(mixed: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            costs = pixel_cross_entropy(features, head, images)
        first = torch.autograd.grad(costs.sum(), [features, head.weight], create_graph=True)
        return [costs, *first, *torch.autograd.grad(first[0].square().sum(), features)]

    for ours, expected in zip(derivatives(True), derivatives(False), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_pixel_cross_entropy_in_float32_is_within_1e_5() -> None:
    torch.manual_seed(3)
    head, images = nn.Linear(5, 256), torch.randint(0, 256, (4, 784))
    features = (3 * torch.randn(4, 784, 5)).requires_grad_()
    logits = head.double()(features.double())
    expected = -torch.distributions.Categorical(logits=logits).log_prob(images).sum(-1)
    inputs = [features, head.weight, head.bias]
    wanted = torch.autograd.grad(expected.sum(), inputs)
    head.float()
    found = pixel_cross_entropy(features, head, images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), [features, head.weight, head.bias]), wanted, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_logits_do_not_outlive_their_pair() -> None:
    """What the graph keeps for the backward pass is far smaller than the logits."""
    head, images = nn.Linear(5, 256), torch.zeros(16, 784, dtype=torch.int64)
    kept: list[int] = []
    features = torch.randn(16, 784, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        pixel_cross_entropy(features, head, images)
    assert sum(kept) < 16 * 784 * 256 / 10


def test_saturated_scores_collapse_without_normalization_only(images: Tensor) -> None:
    """A large common bias makes every bit certain: one atom, gradient exactly 0. Normalised scores do not notice."""
    found = {}
    for normalize_scores in (False, True):
        vae = make_vae(LAYERS["sparsemap"](), normalize_scores=normalize_scores)
        with torch.no_grad():
            vae.encoder.output.bias += 10
        bound = vae(images)
        norm = torch.cat([g.flatten() for g in torch.autograd.grad(bound.loss, list(vae.encoder.parameters()))]).norm()
        found[normalize_scores] = (bound.estimate.support.double().mean().item(), norm.item())
    assert found[False] == (1.0, 0.0)
    assert found[True][0] > 1
    assert found[True][1] > 1e-3


def test_a_last_batch_of_one_image_is_normalized_by_the_running_averages(images: Tensor) -> None:
    encoder = Encoder(PIXELS, LEVELS, 4, normalize_scores=True).double()
    encoder(images)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    alone = encoder(images[:1])
    alone.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(alone, encoder.eval()(images[:1]))


def test_published_sizes() -> None:
    count = sum(p.numel() for net in (Encoder(784, 256, 32), Decoder(32, 784, 256)) for p in net.parameters())
    assert count == (784 * 128 + 128 + 128 * 32 + 32) + (32 * 128 + 128 + 128 * 3920 + 3920 + 5 * 256 + 256)


def test_bits_per_dim_of_a_uniform_decoder() -> None:
    """A decoder of zeros gives each of 256 levels the same probability: 8 bits a pixel, whatever the code."""
    vae = BitVectorVAE(Encoder(784, 256, DIM), Decoder(DIM, 784, 256), Marginalize(LAYERS["sparsemap"]()))
    nn.init.zeros_(vae.decoder.head.weight)
    nn.init.zeros_(vae.decoder.head.bias)
    images = torch.randint(256, (3, 784), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    torch.testing.assert_close(vae.bits_per_dim(vae(images).distortion), torch.full((3,), 8.0))


def test_reconstruction_is_the_mean_level() -> None:
    vae = make_vae(LAYERS["sparsemap"]())
    probs = torch.distributions.Categorical(logits=vae.decoder(all_codes())).probs
    mean = sum(level * probs[..., level] for level in range(LEVELS))
    torch.testing.assert_close(vae.reconstruct(all_codes()), mean, rtol=0, atol=1e-12)


def test_wrong_sizes_are_refused(images: Tensor) -> None:
    encoder, estimator = Encoder(PIXELS, LEVELS, DIM), Marginalize(LAYERS["sparsemap"]())
    with pytest.raises(ValueError, match=r"images has shape \[7, 5\], but .* \[B, 6\]"):
        encoder(images[:, 1:])
    with pytest.raises(ValueError, match="scores of 4 bits but the decoder takes 3"):
        BitVectorVAE(encoder, Decoder(3, PIXELS, LEVELS), estimator)


def test_the_compiled_pixel_kernel_is_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both within float32's rounding of float64, also where one level has all the mass; on one thread and on two."""
    torch.manual_seed(4)
    head, images = nn.Linear(5, 256), torch.randint(0, 256, (7, 784), dtype=torch.uint8)
    scales = torch.tensor([0.0, 0.1, 1, 3, 10, 100, 1000])[:, None, None]
    features = (scales * torch.randn(7, 784, 5)).requires_grad_()
    inputs = [features, head.weight, head.bias]
    weights = torch.rand(7)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain(*exact, images.long())
    wanted = torch.autograd.grad(expected @ weights.double(), exact)
    for switch, threads in (("on", 1), ("on", 2), ("off", 1)):
        monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = pixel_cross_entropy(features, head, images)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        for ours, theirs in zip(torch.autograd.grad(found @ weights, inputs), wanted, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        assert torch.equal(pixel_cross_entropy(features.detach(), head, images), found)


@pytest.mark.parametrize(("pixels", "rank", "levels"), [(1, 1, 1), (4, 5, 16), (6, 2, 17), (33, 12, 100), (50, 6, 255)])
def test_the_compiled_pixel_kernel_in_any_size(pixels: int, rank: int, levels: int) -> None:
    """Pixels that do not come in fours, levels that do not fill a vector, more ranks than have registers."""
    torch.manual_seed(levels)
    head, images = nn.Linear(rank, levels), torch.randint(0, levels, (3, pixels))
    inputs = [torch.randn(3, pixels, rank).requires_grad_(), head.weight, head.bias]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, found = plain(*exact, images), pixel_cross_entropy(inputs[0], head, images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    weights = torch.rand(3)
    ours, theirs = torch.autograd.grad(found @ weights, inputs), torch.autograd.grad(expected @ weights.double(), exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_pixel_derivatives_are_computed_where_they_are_wanted_only(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With parameters that require gradients, as in an evaluation: it would take twice as long."""
    monkeypatch.setenv("SPARSEMARG_KERNELS", switch)
    name, wanted = "_compiled" if switch == "on" else "_chunk", []
    original = getattr(objective, name)
    monkeypatch.setattr(objective, name, lambda *given: (wanted.append(given[-1]), original(*given))[1])
    features, head, images = torch.randn(2, 3, 2), nn.Linear(2, 5), torch.randint(0, 5, (2, 3))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            costs = pixel_cross_entropy(features, head, images)
        assert costs.requires_grad == enabled
    assert wanted == [True, False]


@pytest.mark.parametrize("levels", [16, 17])
def test_the_compiled_pixel_kernel_avoids_subnormal_numbers(levels: int) -> None:
    """Arithmetic with them is a hundred times slower: where a level has no mass, and where levels fill up a vector."""
    torch.manual_seed(5)
    features, head, images = torch.randn(3, 1, 2), nn.Linear(2, levels), torch.randint(0, levels - 1, (3, 1))
    with torch.no_grad():
        head.bias[-1] = -1000
    found = objective._compiled(features, head.weight, head.bias, images, True)
    assert found is not None
    for numbers in found:
        size = (numbers if numbers._base is None else numbers._base).abs()  # what fills up a vector, too
        assert not ((size > 0) & (size < torch.finfo(size.dtype).tiny)).any()


def test_pixels_that_are_not_finite_are_not_hidden() -> None:
    head, images = nn.Linear(2, 3), torch.zeros(2, 4, dtype=torch.int64)
    features = torch.zeros(2, 4, 2)
    features[1, 2, 0] = torch.nan
    found = pixel_cross_entropy(features, head, images)
    assert found.isnan().tolist() == [False, True]


def test_the_kernels_run() -> None:
    """Else the tests above compare the plain path with itself."""
    assert compiled(".kernels.pixels", "sparsemarg.models", "pixel_costs", torch.device("cpu")) is not None
    assert compiled(".kernels.filters", "sparsemarg.models", "filter_values", torch.device("cpu")) is not None


def test_pixels_that_do_not_fit_are_refused() -> None:
    features, head = torch.zeros(2, 4, 5), torch.nn.Linear(5, 17)
    with pytest.raises(ValueError, match=r"images must hold grey levels from 0 to 16, not 0 to 17"):
        pixel_cross_entropy(features, head, torch.tensor([[0, 1, 2, 17], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match=r"images must be \[n, pixels\] = \[2, 4\].*not \[2, 3\]"):
        pixel_cross_entropy(features, head, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must hold integer grey levels, not torch.float32: of pixels in \[0, 1\]"):
        pixel_cross_entropy(features, head, torch.rand(2, 4))
    for rank in (4, 6, 400):
        with pytest.raises(ValueError, match=rf"features must be \[n, pixels, 5\], .* not \[2, 4, {rank}\]"):
            pixel_cross_entropy(torch.zeros(2, 4, rank), head, torch.zeros(2, 4, dtype=torch.int64))


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 4 grey levels but the decoder gives distributions over 8"):
        BitVectorVAE(Encoder(6, 4, 3), Decoder(3, 6, 8), Marginalize(SparseMAP(BernoulliCube(3))))
    with pytest.raises(ValueError, match="Encoder: levels must be at least 2, not 1"):
        Encoder(6, 1, 3)
    with pytest.raises(ValueError, match="Decoder: rank must be at least 1, not 0"):
        Decoder(3, 6, 4, rank=0)
