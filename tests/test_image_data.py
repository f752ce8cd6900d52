"""Splits of images, and the batches that are made of them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment_cases import in_temporary_folder as in_temporary_folder
from experiment_cases import real_data
from sparsemarg.experiments.batches import Batches, Shard, Source
from sparsemarg.experiments.data import MNIST, Digits, FashionMNIST


def test_digits_are_split_without_loss_or_overlap() -> None:
    from sklearn.datasets import load_digits

    splits = Digits().splits
    assert [len(splits.train), len(splits.val), len(splits.test)] == [1257, 180, 360]
    together = torch.cat([splits.train, splits.val, splits.test]).numpy()
    everything = load_digits(return_X_y=True)[0].astype(np.uint8)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(everything, axis=0))
    assert together.sum() == everything.sum()
    assert together.max() == Digits.levels - 1
    assert torch.equal(Digits().splits.test, splits.test)


@real_data
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_real_splits_are_slices_of_the_original_files(kind: type[MNIST]) -> None:
    root = Path(os.environ["SPARSEMARG_DATA"])
    splits = kind(str(root), download=False).splits
    raw = root / kind.dataset / "raw"
    train = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8)[16:].reshape(60000, 784)
    test = np.fromfile(raw / "t10k-images-idx3-ubyte", np.uint8)[16:].reshape(10000, 784)
    np.testing.assert_array_equal(splits.train.numpy(), train[:55000])
    np.testing.assert_array_equal(splits.val.numpy(), train[55000:])
    np.testing.assert_array_equal(splits.test.numpy(), test)


def test_batches_cover_each_epoch_in_a_new_order() -> None:
    batches = Batches(Source.of(torch.arange(10)), 4, seed=3)
    epochs = [list(batches) for _ in range(3)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert torch.cat(list(Batches(Source.of(torch.arange(10)), 4, fixed=True))).tolist() == list(range(10))


@pytest.mark.parametrize("given_out", range(1, 9))
@pytest.mark.parametrize("limit", [None, 2])
def test_batches_continue_from_their_state(given_out: int, limit: int | None) -> None:
    """As Lightning uses them: a new iterator each epoch, left after `limit` batches."""

    def stream(batches: Batches) -> Any:
        while True:
            for batch in batches:
                yield batch.tolist()
                if batches.position == limit:
                    break

    first = Batches(Source.of(torch.arange(10)), 4, seed=3, batches_per_epoch=limit)
    original = stream(first)
    for _ in range(given_out):
        next(original)
    resumed = Batches(Source.of(torch.arange(10)), 4, seed=99, batches_per_epoch=limit)
    resumed.load_state_dict(first.state_dict())
    continued = stream(resumed)
    assert [next(continued) for _ in range(7)] == [next(original) for _ in range(7)]


def test_a_batch_draws_the_same_when_it_is_made_again() -> None:
    """Its generator is a function of seed, epoch and batch: no two agree, and a resumed stream repeats them."""
    source = Source(lambda index, generator: torch.rand(len(index), generator=generator), 10)
    batches = Batches(source, 4, seed=3)
    epochs = [torch.cat(list(batches)) for _ in range(3)]
    assert torch.cat(epochs).unique().numel() == 30
    again = Batches(source, 4, seed=0)
    again.load_state_dict({"seed": 3, "epoch": 1, "position": 1})
    assert torch.equal(torch.cat(list(again)), epochs[1][4:])
    fixed = Batches(source, 4, seed=3, fixed=True)
    assert torch.equal(torch.cat(list(fixed)), torch.cat(list(fixed)))


def test_shards_are_the_parts_of_the_whole_batches() -> None:
    source = Source(lambda index, generator: (index, torch.rand(len(index), generator=generator)), 11)
    whole = list(Batches(source, 4, seed=3))
    parts = [list(Batches(source, 4, seed=3, shard=Shard(rank, 3))) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    for batch, *shards in zip(whole, *parts, strict=True):
        for i in range(2):
            together = torch.cat([shard[i] for shard in shards]).sort().values
            assert torch.equal(together, batch[i].sort().values)
    assert len(Batches(source, 5, shard=Shard(0, 2))) == 2  # one example for two processes is left out
