"""CIFAR: the archive and the unpacked folder give the same samples; nothing unknown is unpickled."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.data import load_dataset
from robustbench_vit.data.cifar import CIFAR10, CIFAR100, Source
from robustbench_vit.errors import InputError

from .conftest import Answers, Batch, Publish, archive, batches, new_pickle, old_pickle

BOTH = pytest.mark.parametrize("source", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])


def unpack(folder: Path, source: Source, files: dict[str, bytes]) -> None:
    (folder / source.folder).mkdir(parents=True)
    for name, content in files.items():
        (folder / source.folder / name).write_bytes(content)


def error_of(name: str, split: str = "test") -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(name, split)
    return str(caught.value)


@BOTH
@pytest.mark.parametrize("pickled", [old_pickle, new_pickle])
@pytest.mark.parametrize("below", ["", "named"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_form_gives_the_same(
    root: Path, publish: Publish, source: Source, pickled: Batch, below: str, packed: bool
) -> None:
    files = batches(source, pickled)
    known, content = publish(source, files)
    folder = root / (source.name if below else "")
    folder.mkdir(exist_ok=True)
    if packed:
        (folder / source.archive).write_bytes(content)
    else:
        unpack(folder, source, files)
    train, test = load_dataset(source.name, "train"), load_dataset(source.name, "test")
    members = len(source.members["train"])
    assert (train.x.shape, test.x.shape) == ((2 * members, 3, 32, 32), (2, 3, 32, 32))
    assert (test.x.dtype, test.y.dtype, test.num_classes) == (np.float32, np.int64, source.num_classes)
    assert train.y.tolist() == [label for i in range(members) for label in (i, 9 - i)]
    assert test.y.tolist() == [members, 9 - members]
    assert np.array_equal(train.x[::2, 0, 0, 0] * 255, 10 * np.arange(members))
    expected = (np.arange(3072) % 251).reshape(3, 32, 32).astype(np.float32) / np.float32(255)
    assert np.array_equal(test.x[1], expected)
    assert test.sample_ids == (f"{source.name}:0", f"{source.name}:1")
    assert test.preprocessing == "pixels / 255"
    assert train.source_sha256 == test.source_sha256 == known.sha256 == hashlib.sha256(content).hexdigest()


@BOTH
def test_it_is_what_torchvision_gives(root: Path, publish: Publish, source: Source) -> None:
    from torchvision import datasets as torchvision_datasets

    files = batches(source, new_pickle)
    publish(source, files)
    theirs: Any = getattr(torchvision_datasets, source.torchvision)
    meta = pickle.dumps({theirs.meta["key"]: [str(i) for i in range(source.num_classes)]})
    unpack(root, source, {**files, theirs.meta["filename"]: meta})
    checked = {**theirs.meta, "md5": hashlib.md5(meta).hexdigest()}
    for split in ("train", "test"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(theirs, "meta", checked)
            reference = theirs(str(root), train=split == "train")
        ours = load_dataset(source.name, split)
        assert np.array_equal(ours.x.transpose(0, 2, 3, 1) * 255, reference.data)
        assert ours.y.tolist() == reference.targets


@BOTH
def test_names_are_torchvisions(source: Source) -> None:
    from torchvision import datasets as torchvision_datasets

    theirs: Any = getattr(torchvision_datasets, source.torchvision)
    assert (source.folder, source.archive) == (theirs.base_folder, theirs.filename)
    assert source.members["train"] == tuple(name for name, _ in theirs.train_list)
    assert source.members["test"] == tuple(name for name, _ in theirs.test_list)


@BOTH
def test_a_missing_archive_is_downloaded(root: Path, publish: Publish, network: Answers, source: Source) -> None:
    _, content = publish(source, batches(source))
    network[f"https://www.cs.toronto.edu/~kriz/{source.archive}"] = content
    assert len(load_dataset(source.name, "test")) == 2
    assert [path.name for path in root.iterdir()] == [source.archive]


def test_a_folder_that_lacks_a_file_is_passed_over(root: Path, publish: Publish) -> None:
    files = batches(CIFAR10)
    _, content = publish(CIFAR10, files)
    unpack(root, CIFAR10, {"test_batch": files["test_batch"]})
    assert len(load_dataset("cifar10", "test")) == 2
    assert error_of("cifar10", "train").startswith("cifar10: no cifar-10-python.tar.gz in ")
    (root / CIFAR10.archive).write_bytes(content)
    assert len(load_dataset("cifar10", "train")) == 10


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("packed", [True, False])
def test_an_unknown_file_is_not_unpickled(
    root: Path, tmp_path: Path, publish: Publish, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = batches(CIFAR10)
    publish(CIFAR10, files)
    monkeypatch.setattr("robustbench_vit.data.cifar._samples", lambda *_: pytest.fail("unpickled before the check"))
    bad = {**files, "test_batch": pickle.dumps(Touch(tmp_path / "ran"))}
    if packed:
        (root / CIFAR10.archive).write_bytes(archive(CIFAR10, bad))
        assert error_of("cifar10").startswith(f"{root / CIFAR10.archive} is not the published file, or damaged: sha256")
    else:
        unpack(root, CIFAR10, bad)
        where = root / CIFAR10.folder / "test_batch"
        assert error_of("cifar10").startswith(f"{where} is not the published file, or damaged: md5 ")


@pytest.mark.parametrize("packed", [True, False])
def test_even_a_known_file_cannot_run_code(root: Path, tmp_path: Path, publish: Publish, packed: bool) -> None:
    files = {**batches(CIFAR10), "test_batch": pickle.dumps(Touch(tmp_path / "ran"))}
    _, content = publish(CIFAR10, files)
    if packed:
        (root / CIFAR10.archive).write_bytes(content)
    else:
        unpack(root, CIFAR10, files)
    message = error_of("cifar10")
    assert message.startswith("cifar10: test_batch: not a file of images and labels: it names ")
    assert message.endswith(".mkdir, which no file of images needs")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072), dtype=np.uint8)}),
        new_pickle(np.zeros((2, 3071), dtype=np.uint8), "labels", [0, 1]),
        new_pickle(np.zeros((2, 3072), dtype=np.uint8), "labels", [0, 1, 2]),
        new_pickle(np.zeros((2, 3072), dtype=np.float32), "labels", [0, 1]),
        old_pickle(np.zeros((2, 3072), dtype=np.uint8), "labels", [0, 1])[:-40],
    ],
)
def test_files_of_something_else(root: Path, publish: Publish, content: bytes) -> None:
    files = {**batches(CIFAR10), "test_batch": content}
    publish(CIFAR10, files)
    unpack(root, CIFAR10, files)
    assert error_of("cifar10").startswith("cifar10: test_batch: not a file of images and labels: ")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda files: archive(CIFAR10, {**files, "data_batch_3": b""}),
            "data_batch_3: not a file of images and labels",
        ),
        (
            lambda files: archive(CIFAR10, {k: v for k, v in files.items() if k != "data_batch_3"}),
            "holds no data_batch_3",
        ),
        (lambda files: archive(CIFAR10, files)[:-300], "cifar-10-python.tar.gz is damaged: "),
        (lambda _: b"\x1f\x8b and so on", "cifar-10-python.tar.gz is damaged: "),
    ],
)
def test_a_published_archive_that_cannot_be_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[dict[str, bytes]], bytes], message: str
) -> None:
    content = damage(batches(CIFAR10))
    known = replace(CIFAR10, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr("robustbench_vit.data.cifar.CIFAR10", known)
    (root / CIFAR10.archive).write_bytes(content)
    assert message in error_of("cifar10", "train")


def test_a_web_page_under_the_archives_name(root: Path) -> None:
    (root / CIFAR100.archive).write_bytes(b"<html>moved</html>")
    assert "cifar-100-python.tar.gz is not the published file, or damaged: it is a web page (HTML), " in error_of(
        "cifar100"
    )
