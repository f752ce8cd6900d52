"""The signal game's data: which games are drawn, and what files are read or refused."""

import math
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sparsemarg.experiments import cli
from sparsemarg.experiments.array_pickles import load_arrays
from sparsemarg.experiments.errors import UsageError
from sparsemarg.experiments.feature_files import read_npz
from sparsemarg.experiments.games import ConceptImages, Games
from sparsemarg.experiments.signal_game import SignalGameTask
from sparsemarg.experiments.signal_game_data import DigitsGame, FeatureFile, PublishedFeatures
from sparsemarg.layers import Sparsemax
from sparsemarg.models.estimators import Marginalize


def pool(counts: list[int]) -> ConceptImages:
    """Images whose two features are their concept and their number among its images, in mixed order."""
    rows = torch.tensor([[concept, number] for concept, count in enumerate(counts) for number in range(count)])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return ConceptImages(rows.float(), rows[:, 0], tuple(f"concept {i}" for i in range(len(counts))))


# Games


def test_games_are_uniform_over_distinct_concepts_images_and_positions() -> None:
    """Chi-square statistics at about the 1e-4 quantile: of the target's concept, image and position."""
    games, draws = Games(pool([1, 2, 3, 4, 5]), 3, "training"), 30_000
    batch = games.batch(games.draw(draws, torch.Generator().manual_seed(0)))
    concepts = batch.images[..., 0]
    assert all(len(set(row)) == 3 for row in concepts[:500].tolist())
    assert torch.equal(batch.images[torch.arange(draws), batch.position], batch.target)

    def chi_square(observed: list[float], expected: list[float]) -> float:
        return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))

    seen = Counter(map(tuple, batch.target.int().tolist()))
    images = [(c, n) for c, count in enumerate([1, 2, 3, 4, 5]) for n in range(count)]
    expected = [draws / 5 / count for count in [1, 2, 3, 4, 5] for _ in range(count)]
    assert chi_square([seen[image] for image in images], expected) < 42.6  # 14 degrees of freedom
    position = Counter(batch.position.tolist())
    assert chi_square([position[i] for i in range(3)], [draws / 3] * 3) < 18.5
    triples = Counter(tuple(sorted(row)) for row in concepts.int().tolist())
    assert len(triples) == math.comb(5, 3)
    assert chi_square(list(triples.values()), [draws / 10] * 10) < 33.8
    first = Counter(concepts[:, 0].int().tolist())
    assert chi_square([first[i] for i in range(5)], [draws / 5] * 5) < 23.6


def test_held_out_images_are_some_of_each_concept() -> None:
    images = pool([2, 3, 10, 11])
    kept, out = images.hold_out(0.2, torch.Generator().manual_seed(0))
    assert Counter(out.concepts.tolist()) == {0: 1, 1: 1, 2: 2, 3: 2}
    rows = [*map(tuple, kept.features.tolist()), *map(tuple, out.features.tolist())]
    assert sorted(rows) == sorted(map(tuple, images.features.tolist()))
    kept, out = images.hold_out(0.99, torch.Generator().manual_seed(0))
    assert Counter(kept.concepts.tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_concept_of_one_image_cannot_be_held_out() -> None:
    with pytest.raises(UsageError, match=r"concept 1, concept 2 has one: give more images"):
        pool([2, 1, 1, 3]).hold_out(0.2, torch.Generator())


@pytest.mark.parametrize("images", [1, 4])
def test_games_need_as_many_concepts_as_images(images: int) -> None:
    with pytest.raises(UsageError, match=r"but the test images have 3 concepts: set data.init_args.images between 2"):
        Games(pool([2, 2, 2]), images, "test")


def test_evaluation_games_are_fixed_and_training_games_are_new() -> None:
    data = [DigitsGame(batch_size=8, batches_per_epoch=3, val_games=20, test_games=16) for _ in range(2)]
    for split in ("val_dataloader", "test_dataloader"):
        first, second = (list(getattr(module, split)()) for module in data)
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, getattr(data[0], split)(), strict=True))
        assert sum(len(batch.target) for batch in first) == (20 if split == "val_dataloader" else 16)
    torch.manual_seed(1)
    train = data[0].train_dataloader()
    epochs = [list(train), list(train)]
    assert [len(epoch) for epoch in epochs] == [3, 3]
    seen = [tuple(game.flatten().tolist()) for epoch in epochs for batch in epoch for game in batch.images]
    assert len(set(seen)) == 48


def test_splits_share_no_image_and_features_are_normalised() -> None:
    data = DigitsGame(val_games=2000, test_games=2000, batches_per_epoch=100)
    torch.manual_seed(0)
    seen = []
    for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images = torch.cat([batch.images.flatten(0, 1) for batch in batches])
        torch.testing.assert_close(images.norm(dim=-1), torch.ones(len(images)))
        seen.append({tuple(row) for row in images.unique(dim=0).tolist()})
    # 1,797 different images; of the 1,437 training images a fifth of each concept is held out; all are seen.
    assert len(seen[0]) + len(seen[1]) == 1437
    assert abs(len(seen[1]) - 1437 / 5) <= 10 / 2
    assert len(seen[2]) == 360
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_centring_subtracts_the_training_mean_alone(tmp_path: Path) -> None:
    path, arrays = write_npz(tmp_path)
    data = FeatureFile(str(path), images=2, batch_size=4, batches_per_epoch=1, val_games=4, test_games=64)
    batch = next(iter(data.test_dataloader()))
    train, _ = ConceptImages(
        torch.from_numpy(arrays["features"][:12]), torch.from_numpy(arrays["labels"][:12]), ("a", "b", "c")
    ).hold_out(0.2, torch.Generator().manual_seed(data.val_seed))
    centred = torch.from_numpy(arrays["features"][12:]) - train.features.mean(0)
    expected = centred / centred.norm(dim=-1, keepdim=True)
    distances = torch.cdist(batch.images.flatten(0, 1), expected)
    assert float(distances.amin(1).max()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, not 1.0"),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1, not 0.0"),
        ({"test_games": 0}, "must be at least 1, not 100, 1024 and 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsGame(**options)  # pyright: ignore[reportArgumentType]


# Feature files


def arrays_of() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "features": generator.normal(size=(18, 5)).astype(np.float32),
        "labels": np.arange(18) % 3,
        "split": np.repeat([0, 1], [12, 6]),
        "classes": np.array(["a", "b", "c"]),
    }


def write_npz(folder: Path, **changes: object) -> tuple[Path, dict[str, np.ndarray]]:
    arrays = arrays_of() | {name: np.asarray(value) for name, value in changes.items() if value is not None}
    for name in [name for name, value in changes.items() if value is None]:
        del arrays[name]
    path = folder / "features.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path, arrays


def test_npz_is_read_as_written(tmp_path: Path) -> None:
    path, arrays = write_npz(tmp_path, features=arrays_of()["features"].astype(np.float16))
    train, test = read_npz(path)
    assert train.names == ("a", "b", "c")
    assert np.array_equal(train.features.numpy(), arrays["features"][:12].astype(np.float32))
    assert np.array_equal(test.features.numpy(), arrays["features"][12:].astype(np.float32))
    assert np.array_equal(test.concepts.numpy(), arrays["labels"][12:])


def test_labels_without_names_name_themselves(tmp_path: Path) -> None:
    path, _ = write_npz(tmp_path, classes=None, labels=np.arange(18) % 3 * 10 - 5)
    train, _ = read_npz(path)
    assert train.names == ("-5", "5", "15")
    assert train.concepts.tolist() == [i % 3 for i in range(12)]


NOT_FINITE = arrays_of()["features"].copy()
NOT_FINITE[4, 2], NOT_FINITE[7, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": None}, "must hold features, labels and split, but lacks split"),
        ({"features": np.zeros(18)}, r"must be \[images, features\] of real numbers, but are \[18\] of float64"),
        ({"features": np.zeros((18, 2), dtype=complex)}, "of complex128"),
        ({"features": NOT_FINITE}, "those of 2 images are not, the first in row 4"),
        ({"labels": np.zeros(17, dtype=int)}, r"labels are \[17\] and split \[18\]"),
        ({"labels": np.zeros(18)}, r"labels must be integers \(are float64\)"),
        ({"split": np.full(18, 2)}, "split 0 for training or 1 for test"),
        ({"labels": np.full(18, 3)}, r"labels must be in 0..2, for its 3 classes, but are in 3..3"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path, _ = write_npz(tmp_path, **changes)
    with pytest.raises(UsageError, match=message):
        read_npz(path)


def test_missing_and_damaged_npz_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file: give its path with --data.init_args.path"):
        read_npz(tmp_path / "none.npz")
    path, _ = write_npz(tmp_path)
    whole = path.read_bytes()
    for content in (whole[:300], b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"not a readable .npz file, it may be truncated"):
            read_npz(path)
    np.savez(path, features=np.array([[os.getpid]], dtype=object))
    with pytest.raises(UsageError, match=r"not a readable .npz file"):
        read_npz(path)


# The published layout


def write_published(root: Path, *, names: object = None, features: np.ndarray | None = None, protocol: int = 2) -> Path:
    h5py = pytest.importorskip("h5py")
    for split, seed in (("train", 0), ("test", 1)):
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        rows = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32) if features is None else features
        with h5py.File(folder / "ours_images_single_sm0.h5", "w") as file:
            file.create_dataset("images", data=rows)
        concepts = np.array([f"n{i % 3}" for i in range(12)], dtype=object) if names is None else names
        (folder / "ours_images_single_sm0.objects").write_bytes(pickle.dumps(concepts, protocol=protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["objects", "str", "bytes"])
def test_published_layout_is_read(tmp_path: Path, protocol: int, kind: str) -> None:
    names = np.array([f"n{i % 3}" for i in range(12)], dtype={"objects": object, "str": str, "bytes": "S2"}[kind])
    data = PublishedFeatures(str(write_published(tmp_path, names=names, protocol=protocol)), images=3)
    train, test = data.read()
    assert train.names == ("n0", "n1", "n2")
    assert train.concepts.tolist() == [i % 3 for i in range(12)]
    expected = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32)
    assert np.array_equal(test.features.numpy(), expected)
    assert data.feature_size == 5


class Runs:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"mkdir {self.folder}",)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    harmful = np.array([Runs(trace)] * 12, dtype=object)
    write_published(tmp_path, names=harmful)
    with pytest.raises(UsageError, match=r"must be a pickled NumPy array and nothing else.*names (posix|nt).system"):
        PublishedFeatures(str(tmp_path)).read()
    assert not trace.exists()
    pickle.loads((tmp_path / "train" / "ours_images_single_sm0.objects").read_bytes())
    assert trace.exists()  # the trap works where it is not guarded against


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "must be a pickled NumPy array, but is a list"),
        (pickle.dumps(np.array([1, "a"], dtype=object)), "must be an array of strings, but holds a int"),
        (pickle.dumps(np.arange(3))[:-9], "or it is damaged"),
        (b"", "or it is damaged"),
        (pickle.dumps(Path("a")), "it names pathlib"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_arrays(path)


def test_bad_published_files_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    data = PublishedFeatures(str(tmp_path), images=3)
    with pytest.raises(UsageError, match=r"no such file: give the right folder with --data.init_args.root"):
        data.read()
    write_published(tmp_path, names=np.array(["a"] * 11))
    with pytest.raises(UsageError, match=r"must name the concepts of the 12 rows of .*, but is \[11\]"):
        data.read()
    write_published(tmp_path)
    h5_path = tmp_path / "test" / "ours_images_single_sm0.h5"
    whole = h5_path.read_bytes()
    h5_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="not a readable HDF5 file, it may be truncated"):
        data.read()
    with h5py.File(h5_path, "w") as file:
        file.create_dataset("a", data=np.zeros((12, 4)))
        file.create_dataset("b", data=np.zeros((12, 4)))
    with pytest.raises(UsageError, match=r"must hold one data set of features, but has 2: \['a', 'b'\]"):
        data.read()
    with h5py.File(h5_path, "w") as file:
        file.create_dataset("a", data=np.zeros((12, 4)))
    with pytest.raises(UsageError, match=r"equally many features, but have 5 and 4: extract both with the same network"):
        data.read()


# Through the command line


def test_model_and_data_must_have_the_same_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_npz(tmp_path)
    options = [
        "--config",
        "signal_game/caltech101/sparsemax",
        "--data.init_args.path",
        str(path),
        "--data.init_args.images",
        "2",
    ]
    assert cli.main(["fit", *options, "--folder", str(tmp_path / "run"), "--trainer.max_steps", "1"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "but FeatureFile has 5: set model.init_args.features to the data's" in error


def test_the_features_may_move_between_two_starts(tmp_path: Path) -> None:
    path, _ = write_npz(tmp_path)
    options = ["--config", "signal_game/caltech101/sparsemax", "--model.init_args.features", "5"]
    options += ["--model.init_args.filters", "4", "--data.init_args.images", "2", "--data.init_args.val_games", "4"]
    options += ["--data.init_args.test_games", "6", "--data.init_args.batches_per_epoch", "2"]
    options += ["--folder", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert cli.main(["fit", *options, "--data.init_args.path", str(path), "--trainer.max_steps", "2"]) == 0
    moved = path.rename(tmp_path / "moved.npz")
    options += ["--data.init_args.path", str(moved)]
    assert cli.main(["fit", *options, "--ckpt_path", "last", "--trainer.max_steps", "4"]) == 0
    assert cli.main(["test", *options]) == 0


@pytest.mark.slow
def test_players_learn_to_agree_on_digits() -> None:
    """300 steps lift the success of 8 images from chance (0.125); a wrong gradient or cost leaves it there."""
    torch.manual_seed(0)
    data = DigitsGame(batches_per_epoch=300)
    task = SignalGameTask(Marginalize(Sparsemax()), features=64, symbols=32, embedding=64, filters=64, learning_rate=0.005)
    optimizer = torch.optim.Adam(task.parameters(), 0.005)
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        task.game(batch.target, batch.images, batch.position).loss.backward()
        optimizer.step()
    success = [task.game.success_expected(*batch).mean() for batch in data.val_dataloader()]
    assert float(torch.stack(success).mean()) > 0.4
