"""The embedded data set: a split that no library version can change."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.data import datasets, load_dataset
from robustbench_vit.data.digits import positions_of_test
from robustbench_vit.errors import InputError, UnknownNameError


def test_sizes_shapes_and_ranges() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    for data in (train, test):
        assert data.x.shape == (len(data), 1, 8, 8)
        assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)
        assert (data.x.min(), data.x.max()) == (0, 1)
        assert np.array_equal(data.x * 16, np.round(data.x * 16))
        assert (data.num_classes, data.preprocessing) == (10, "pixels / 16")


def test_the_test_split_is_this_one() -> None:
    test = load_dataset("digits", "test")
    ids = hashlib.sha256("\n".join(test.sample_ids).encode()).hexdigest()
    pixels = hashlib.sha256(test.x.tobytes() + test.y.tobytes()).hexdigest()
    assert ids == "1a465a142b4daad0d445d37100069e7c2ac879a8cb1b4a3de7db84868c43a76d"
    assert pixels == "35c9b4e5bf863836a1d1dfe9074903eb86455a91422bf33fbb8d58cb7e5d7c56"


def test_the_splits_are_disjoint_and_whole() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert not set(train.sample_ids) & set(test.sample_ids)
    assert len({*train.sample_ids, *test.sample_ids}) == 1797
    assert train.source_sha256 == test.source_sha256


def test_the_split_is_stratified() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    in_test = np.bincount(test.y, minlength=10)
    everywhere = in_test + np.bincount(train.y, minlength=10)
    assert np.abs(in_test - everywhere * 500 / 1797).max() < 1


def test_samples_know_where_they_come_from() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    test = load_dataset("digits", "test")
    for i in (0, 17, 499):
        position = int(test.sample_ids[i].removeprefix("digits:"))
        assert np.array_equal(test.x[i, 0] * 16, source.images[position])
        assert test.y[i] == source.target[position]


def test_the_split_does_not_depend_on_the_order_of_the_source() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 17, (60, 4, 4), dtype=np.uint8)
    labels = generator.integers(0, 3, 60).astype(np.uint8)
    shuffled = generator.permutation(60)
    chosen = positions_of_test(images, labels, 20)
    again = positions_of_test(images[shuffled], labels[shuffled], 20)
    assert len(chosen) == 20
    assert sorted(shuffled[again]) == list(chosen)


def test_the_first_n() -> None:
    test = load_dataset("digits", "test")
    few = test.first(3)
    assert (len(few), few.sample_ids, few.num_classes) == (3, test.sample_ids[:3], 10)
    assert test.first(None) is test
    for n in (0, -1, 501):
        with pytest.raises(InputError, match=rf"asked for {n} samples of digits/test, which has 500"):
            test.first(n)


def test_unknown_names_and_splits() -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("digits", "validation")
    assert str(caught.value) == "digits has the splits 'train' and 'test', not 'validation'"
    with pytest.raises(UnknownNameError) as caught:
        load_dataset("digit")
    assert str(caught.value) == "unknown dataset 'digit'; did you mean 'digits'?"


def test_some_samples_by_position() -> None:
    test = load_dataset("digits", "test")
    some = test.take([7, 0, 499])
    assert some.sample_ids == (test.sample_ids[7], test.sample_ids[0], test.sample_ids[499])
    assert np.array_equal(some.x, test.x[[7, 0, 499]])
    assert np.array_equal(some.y, test.y[[7, 0, 499]])
    assert (some.split, some.source_sha256, some.num_classes) == ("test", test.source_sha256, 10)
    assert test.take(np.arange(500)).sample_ids == test.sample_ids


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 500], "asked for position 500 of digits/test, which has 0 to 499"),
        ([-1], "asked for position -1 of digits/test, which has 0 to 499"),
        ([3, 3], "asked for a position of digits/test twice; a sample counts once"),
        ([], "positions must be a list of one or more integers, not []"),
        ([0.5], "positions must be a list of one or more integers, not [0.5]"),
        ([True, False], "positions must be a list of one or more integers, not [True, False]"),
        ([[1, 2]], "positions must be a list of one or more integers, not [[1, 2]]"),
    ],
)
def test_positions_that_cannot_be_taken(positions: list[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("digits", "test").take(positions)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_has_unique_ids_and_images_in_the_unit_box(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(shared_data))
    try:
        data = load_dataset(name, "test")
    except InputError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(f"no files of {name} here")
    assert len(set(data.sample_ids)) == len(data) == len(data.x)
    assert data.x.min() >= 0
    assert data.x.max() <= 1
    assert datasets.get(name).__doc__
