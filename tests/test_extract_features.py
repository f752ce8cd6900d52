"""Features of folders of images. Truth is the network cut apart by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sparsemarg.experiments import cli
from sparsemarg.experiments.errors import UsageError
from sparsemarg.experiments.extract_features import find_images, load_network
from sparsemarg.experiments.feature_files import read_npz
from torch import nn
from torchvision import models

NETWORK = ["--network", "squeezenet1_1", "--weights", "random", "--layer", "features.12"]


def write_images(folder: Path, concepts: dict[str, int]) -> Path:
    generator = np.random.default_rng(0)
    for name, count in concepts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_features_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_images(tmp_path / "images", {"cat": 5, "dog": 4, "eel": 2}), tmp_path / "new" / "features.npz"
    assert cli.main(["extract-features", str(folder), "--output", str(output), "--batch-size", "4", *NETWORK]) == 0
    assert "11 images of 3 concepts, 8 to train on, 3 to test on" in capsys.readouterr().out
    train, test = read_npz(output)
    assert train.names == ("cat", "dog", "eel")
    assert sorted(train.concepts.tolist() + test.concepts.tolist()) == [0] * 5 + [1] * 4 + [2] * 2
    assert sorted(test.concepts.tolist()) == [0, 1, 2]

    torch.manual_seed(0)
    network = models.squeezenet1_1(weights=None).eval()
    transform = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    images = torch.stack([transform(Image.open(folder / "eel" / f"{i}.png").convert("RGB")) for i in range(2)])
    with torch.no_grad():
        expected = network.features(images).flatten(1)
    found = torch.cat([train.features[train.concepts == 2], test.features[test.concepts == 2]])
    order = torch.cdist(expected, found).argmin(1)
    torch.testing.assert_close(found[order], expected, rtol=1e-4, atol=1e-5)
    assert sorted(order.tolist()) == [0, 1]

    assert cli.main(["extract-features", str(folder), "--output", str(output), *NETWORK]) == 2
    assert "exists already: give another --output" in " ".join(capsys.readouterr().err.split())


def test_published_layer_is_before_the_rectifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-19's classifier without its last three modules, at a 64th of the size."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Sequential(
                nn.Linear(12, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 3)
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.classifier(images.flatten(1))

    small = Small()
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **_: small)
    images = torch.randn(5, 3, 2, 2)
    network, _ = load_network("vgg19", "random", None)
    expected = small.classifier[:-3](images.flatten(1))
    assert (expected < 0).any()
    torch.testing.assert_close(network(images), expected)
    other, _ = load_network("vgg11", "random", None)  # what the last linear layer is given
    torch.testing.assert_close(other(images), small.classifier[:-1](images.flatten(1)))


def test_given_splits_are_kept(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 2, "b": 1})
    write_images(tmp_path / "test", {"b": 3, "a": 1})
    paths, labels, split, classes = find_images(tmp_path, 0.2, 0)
    assert classes == ["a", "b"]
    assert labels.tolist() == [0, 0, 1, 0, 1, 1, 1]
    assert split.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [path.parent.parent.name for path in paths] == ["train"] * 3 + ["test"] * 4


def test_the_split_is_random_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 10, "b": 30})
    splits = [find_images(tmp_path, 0.3, seed) for seed in (0, 0, 1)]
    tests = [{path for path, s in zip(paths, split, strict=True) if s} for paths, _, split, _ in splits]
    assert tests[0] == tests[1] != tests[2]
    assert [sum(path.parent.name == name for path in tests[0]) for name in "ab"] == [3, 9]


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a folder of images, but .* is none"):
        find_images(tmp_path / "none", 0.2, 0)
    with pytest.raises(UsageError, match="but there is no folder in it"):
        find_images(tmp_path, 0.2, 0)
    write_images(tmp_path, {"a": 2, "b": 1})
    with pytest.raises(UsageError, match=r"but .*b has one image in all"):
        find_images(tmp_path, 0.2, 0)
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match=r"but .*c has none \(.bmp"):
        find_images(tmp_path, 0.2, 0)
    write_images(tmp_path / "train", {"a": 2, "b": 1})
    write_images(tmp_path / "test", {"a": 2, "d": 1})
    with pytest.raises(UsageError, match="but only one of them has b, d"):
        find_images(tmp_path, 0.2, 0)


def test_bad_images_and_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images", {"a": 2, "b": 2})
    output = tmp_path / "f.npz"

    def error_of(*options: str) -> str:
        assert cli.main(["extract-features", str(folder), "--output", str(output), *options]) == 2
        assert not output.exists()
        return " ".join(capsys.readouterr().err.split())

    assert "torchvision has no network 'vgg', but has alexnet, " in error_of("--network", "vgg")
    wrong = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    assert "a file with a state dict of this network" in error_of("--network", "squeezenet1_1", "--weights", str(wrong))
    assert "could not be loaded" in error_of("--network", "squeezenet1_1", "--weights", str(tmp_path / "none"))
    assert "has no layer 'x', but has features, " in error_of(*NETWORK[:-1], "x")
    assert "has no linear layer" in error_of(*NETWORK[:-2])
    assert "--test-fraction must be between 0 and 1" in error_of("--test-fraction", "1")
    assert "and --seed at least 0, not 0.2, 32 and -1" in error_of("--seed", "-1")
    assert f"takes a folder, but {wrong} is a file" in error_of("--output", str(wrong / "f.npz"))
    assert "--device nowhere cannot be used" in error_of("--device", "nowhere")
    assert "`sparsemarg extract-features --help` lists" in error_of("--what")
    (folder / "a" / "0.png").write_bytes(b"no image")
    assert "0.png is not a readable image" in error_of(*NETWORK)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("f.npz")] == []
