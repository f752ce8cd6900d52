"""`sparsemarg extract-features`: features of a folder of images by a torchvision network, for the signal game."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .command_parser import CommandParser
from .errors import UsageError
from .folders import check_writable_folder

DESCRIPTION = """Compute features of the images in a folder and write them to an .npz file that the data module FeatureFile
reads. The folder has one folder of images for each concept, named as the concept; or `train` and `test` with such folders. In
the first case --test-fraction of each concept's images, chosen at random, are the test split. By default the features are
those of Correia et al. 2020: VGG-19's second fully connected layer (4,096 numbers), before the rectifier."""

PUBLISHED_LAYERS = {"vgg19": "classifier.3"}
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Images(Dataset[Tensor]):
    """Image files, transformed as a network expects.

    Raises:
        UsageError: upon a file that is not a readable image.
    """

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self.paths[index]) as image:
                return self.transform(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise UsageError(f"{self.paths[index]} is not a readable image ({error}): repair it, or take it out") from error


def run(arguments: list[str]) -> None:
    """Compute the features and write them."""
    known = _parse(arguments[1:])
    paths, labels, split, classes = find_images(known.images, known.test_fraction, known.seed)
    if known.output.exists():
        raise UsageError(f"{known.output} exists already: give another --output, or delete it")
    check_writable_folder("--output", known.output.parent)
    network, transform = load_network(known.network, known.weights, known.layer, known.seed)
    features = extract(network, Images(paths, transform), known.batch_size, torch.device(known.device))
    _write(known.output, features=features.numpy(), labels=labels, split=split, classes=np.array(classes))
    print(
        f"{known.output}: {features.shape[1]} features of {len(paths)} images of {len(classes)} concepts, "
        f"{int((split == 0).sum())} to train on, {int(split.sum())} to test on. To play: fit --config "
        f"signal_game/caltech101/sparsemax --data.init_args.path {known.output} --model.init_args.features {features.shape[1]}"
    )


def find_images(folder: Path, test_fraction: float, seed: int) -> tuple[list[Path], np.ndarray, np.ndarray, list[str]]:
    """List image files, their labels [N], their split [N] (0 train, 1 test) and the names of the concepts.

    Raises:
        UsageError: there is no such folder, no concept with two images, or the two splits have different concepts.
    """
    if not folder.is_dir():
        raise UsageError(f"expected a folder of images, but {folder} is none")
    if not {"train", "test"} <= {path.name for path in folder.iterdir() if path.is_dir()}:
        files = _concepts(folder)
        lonely = [name for name, paths in files.items() if len(paths) < 2]
        if lonely:
            raise UsageError(
                f"every concept needs an image to train on and one to test on, but {folder / lonely[0]} has one image in all: "
                "give more, or take the folder out"
            )
        generator = np.random.default_rng(seed)
        splits = {"train": {}, "test": {}}
        for name, paths in files.items():
            held = min(max(1, round(test_fraction * len(paths))), len(paths) - 1)
            chosen = set(generator.permutation(len(paths))[:held].tolist())
            splits["train"][name] = [path for i, path in enumerate(paths) if i not in chosen]
            splits["test"][name] = [path for i, path in enumerate(paths) if i in chosen]
    else:
        splits = {split: _concepts(folder / split) for split in ("train", "test")}
        if different := sorted(set(splits["train"]) ^ set(splits["test"])):
            raise UsageError(
                f"{folder / 'train'} and {folder / 'test'} must have the same concepts, but only one of them has "
                f"{', '.join(different[:5])}: add or take out the folder"
            )
    classes = list(splits["train"])
    found = [
        (path, label, number)
        for number, split in enumerate(("train", "test"))
        for label, name in enumerate(classes)
        for path in splits[split][name]
    ]
    paths, labels, split = zip(*found, strict=True)
    return list(paths), np.array(labels, dtype=np.int64), np.array(split, dtype=np.uint8), classes


def load_network(name: str, weights: str, layer: str | None, seed: int = 0) -> tuple[nn.Module, Any]:
    """A torchvision network that returns features [B, features], and the transform of its images.

    Args:
        name: as `torchvision.models.list_models()` has it.
        weights: "DEFAULT" or another of its weights, a file with a state dict, or "random".
        layer: the module whose output is taken; None takes the published one, or what the last linear layer is given.
        seed: of random weights.

    Raises:
        UsageError: an unknown name, or weights that cannot be read or are another network's.
    """
    from torchvision import models

    try:
        known_weights = models.get_model_weights(name)
    except ValueError as error:
        raise UsageError(f"torchvision has no network {name!r}, but has {', '.join(_classifiers())}") from error
    torch.manual_seed(seed)
    default = known_weights["DEFAULT"] if "DEFAULT" in known_weights.__members__ else next(iter(known_weights))
    try:
        if weights in known_weights.__members__:
            default = known_weights[weights]
            network = models.get_model(name, weights=default)
        else:
            network = models.get_model(name, weights=None, **({"init_weights": True} if "inception" in name else {}))
            if weights != "random":
                network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        cause = str(error).strip().split("\n")[0]
        names = ", ".join(known_weights.__members__)
        raise UsageError(
            f"the weights {weights} of {name} could not be loaded ({cause}): --weights takes {names}, "
            "which are downloaded, a file with a state dict of this network, or random"
        ) from error
    return _Features(network.eval(), layer or PUBLISHED_LAYERS.get(name)), default.transforms()


@torch.inference_mode()
def extract(network: nn.Module, images: Images, batch_size: int, device: torch.device) -> Tensor:
    """Features [N, features] float32 of all images."""
    network = network.to(device)
    parts: list[Tensor] = []
    for batch in DataLoader(images, batch_size):
        parts.append(network(batch.to(device)).float().cpu())
        done = sum(map(len, parts))
        print(f"{done} of {len(images)} images", end="\n" if done == len(images) else "\r", flush=True)
    return torch.cat(parts)


class _Features(nn.Module):
    """The flat output of a layer of a network; the flat input of its last linear layer if the layer is None."""

    def __init__(self, network: nn.Module, layer: str | None) -> None:
        super().__init__()
        self.network = network
        self._seen: list[Tensor] = []
        modules = dict(network.named_modules())
        if layer is None:
            linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
            if not linear:
                raise UsageError(f"{type(network).__name__} has no linear layer: name a layer with --layer: {_names(modules)}")
            linear[-1].register_forward_pre_hook(lambda _, inputs: self._see(inputs[0]))
        elif layer not in modules or not layer:
            raise UsageError(f"{type(network).__name__} has no layer {layer!r}, but has {_names(modules)}")
        else:
            modules[layer].register_forward_hook(lambda _, __, output: self._see(output))  # pyright: ignore[reportArgumentType]  # torch's type is a dict

    def forward(self, images: Tensor) -> Tensor:
        self._seen.clear()
        self.network(images)
        return self._seen[-1].flatten(1)

    def _see(self, output: Tensor) -> None:
        self._seen.append(output.clone())  # a rectifier in place may follow


def _names(modules: dict[str, nn.Module]) -> str:
    return ", ".join(name for name in modules if name)


def _concepts(folder: Path) -> dict[str, list[Path]]:
    """The image files of each folder in a folder, both in the order of names."""
    concepts = {
        path.name: sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    empty = [name for name, files in concepts.items() if not files]
    if not concepts or empty:
        what = f"but {folder / empty[0]} has none" if empty else "but there is no folder in it"
        raise UsageError(f"expected a folder of images for each concept in {folder}, {what} ({', '.join(sorted(SUFFIXES))})")
    return concepts


def _classifiers() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _write(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file that is there as a whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = CommandParser("extract-features", DESCRIPTION)
    parser.add_argument("images", type=Path, help="the folder")
    parser.add_argument("--output", type=Path, default=Path("data/signal_game/features.npz"), help="by default %(default)s")
    parser.add_argument("--network", default="vgg19", help="any classifier of torchvision; by default %(default)s")
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="torchvision's name, downloaded; a file with a state dict; or random. By default %(default)s",
    )
    parser.add_argument(
        "--layer",
        help="whose output is taken; by default the published one for vgg19, else what the last linear layer is given",
    )
    parser.add_argument("--test-fraction", type=float, default=0.2, help="by default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of random weights; by default %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="by default %(default)s")
    parser.add_argument("--device", default="cpu", help="such as cuda; by default %(default)s")
    known = parser.parse_args(arguments)
    if not 0 < known.test_fraction < 1 or known.batch_size < 1 or known.seed < 0:
        raise UsageError(
            "--test-fraction must be between 0 and 1, --batch-size at least 1 and --seed at least 0, not "
            f"{known.test_fraction}, {known.batch_size} and {known.seed}"
        )
    if known.output.suffix != ".npz":
        raise UsageError(f"--output must end in .npz, but is {known.output}")
    try:
        torch.empty(0, device=known.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {known.device} cannot be used ({str(error).splitlines()[0]}): give another, such as cpu"
        ) from error
    return known
