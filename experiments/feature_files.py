"""Reads features of images from files, and says what is wrong with them."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from .array_pickles import load_arrays
from .errors import UsageError
from .games import ConceptImages


def read_npz(path: Path) -> tuple[ConceptImages, ConceptImages]:
    """Training and test images of an `.npz` file with `features`, `labels`, `split` and, optionally, `classes`.

    Raises:
        UsageError: the file is missing, damaged or incomplete; its arrays disagree; features are not finite.
    """
    if not path.is_file():
        raise UsageError(
            f"expected the features in {path}, but there is no such file: give its path with --data.init_args.path, or make "
            "one from a folder of images with `sparsemarg extract-features`"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} is not a readable .npz file, it may be truncated ({error}): copy or make it again") from error
    missing = [name for name in ("features", "labels", "split") if name not in arrays]
    if missing:
        raise UsageError(
            f"{path} must hold features, labels and split, but lacks {', '.join(missing)}; it has {sorted(arrays)}"
        )
    labels, split = arrays["labels"], arrays["split"]
    features = _checked_features(arrays["features"], path)
    if labels.shape != features.shape[:1] or split.shape != features.shape[:1]:
        raise UsageError(
            f"{path} must have a label and a split for each of its {len(features)} rows of features, but labels are "
            f"{list(labels.shape)} and split {list(split.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or not np.isin(split, (0, 1)).all():
        raise UsageError(f"{path}: labels must be integers (are {labels.dtype}), and split 0 for training or 1 for test")
    if "classes" in arrays:
        names = [str(name) for name in arrays["classes"]]
        if labels.min(initial=0) < 0 or labels.max(initial=-1) >= len(names):
            raise UsageError(
                f"{path}: labels must be in 0..{len(names) - 1}, for its {len(names)} classes, but are in "
                f"{labels.min()}..{labels.max()}"
            )
    else:
        values, labels = np.unique(labels, return_inverse=True)
        names = [str(value) for value in values]
    images = ConceptImages(torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64)), tuple(names))
    return images[torch.from_numpy(np.flatnonzero(split == 0))], images[torch.from_numpy(np.flatnonzero(split == 1))]


def read_published(folder: Path) -> ConceptImages:
    """One split in the layout of Bouchacourt and Baroni (2018); see `PublishedFeatures`.

    Raises:
        UsageError: h5py is not installed; a file is missing, damaged, or holds anything but what is expected.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError("reading the published features needs h5py: pip install 'sparsemarg[hdf5]'") from error
    h5_path, names_path = folder / "ours_images_single_sm0.h5", folder / "ours_images_single_sm0.objects"
    for path in (h5_path, names_path):
        if not path.is_file():
            raise UsageError(f"expected {path}, but there is no such file: give the right folder with --data.init_args.root")
    try:
        with h5py.File(h5_path, "r") as file:
            sets = [value for value in file.values() if isinstance(value, h5py.Dataset)]
            if len(sets) != 1:
                raise UsageError(f"{h5_path} must hold one data set of features, but has {len(sets)}: {sorted(file)}")
            rows = sets[0][()]
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{h5_path} is not a readable HDF5 file, it may be truncated ({error}): copy it again") from error
    features = _checked_features(rows, h5_path)
    names = load_arrays(names_path)
    if names.shape != features.shape[:1]:
        raise UsageError(
            f"{names_path} must name the concepts of the {len(features)} rows of {h5_path.name}, but is {list(names.shape)}"
        )
    values, concepts = np.unique(names.astype(str), return_inverse=True)
    return ConceptImages(torch.from_numpy(features), torch.from_numpy(concepts.astype(np.int64)), tuple(map(str, values)))


def _checked_features(features: np.ndarray, path: Path) -> np.ndarray:
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise UsageError(
            f"{path}: features must be [images, features] of real numbers, but are {list(features.shape)} of {features.dtype}"
        )
    features = features.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if len(wrong):
        raise UsageError(
            f"{path}: features must be finite, but those of {len(wrong)} images are not, the first in row {wrong[0]}: leave "
            "these images out, or extract their features again"
        )
    return features
