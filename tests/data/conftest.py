"""Small data sets in the published formats, and a network that is not there."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from robustbench_vit.data import mnist
from robustbench_vit.data.cifar import CIFAR10, Source

Answers = dict[str, bytes | Exception]
"""What the network sends for each address."""


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Addresses put in here answer; all others fail as without a network."""
    answers: Answers = {}

    def urlopen(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert timeout <= 10
        answer = answers.get(request.full_url, URLError(OSError("no network")))
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return answers


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, the only one that is looked at."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(folder))
    return folder


def idx(array: np.ndarray) -> bytes:
    """The array as an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) * 4
LABELS = np.array([7, 2, 1], dtype=np.uint8)


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The test split's files, three images of 4×5 pixels, as the published ones: name -> bytes."""
    names = mnist.FILES["test"]
    files = {name: gzip.compress(idx(array), mtime=0) for name, array in zip(names, (IMAGES, LABELS), strict=True)}
    for name, content in files.items():
        monkeypatch.setitem(mnist.SHA256["mnist"], name, hashlib.sha256(content).hexdigest())
        unpacked = hashlib.sha256(gzip.decompress(content)).hexdigest()
        monkeypatch.setitem(mnist.UNPACKED_SHA256["mnist"], name, unpacked)
    return files


def old_pickle(images: np.ndarray, key: str, labels: list[int]) -> bytes:
    """A batch as Python 2 and old numpy pickled it, which is how the CIFAR files were made.

    Text and raw bytes are the opcodes U and T, which Python 3 never writes.
    """

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = images.tobytes()
    shape = b"".join(map(integer, images.shape)) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + integer(-1) * 2 + b"K\x00tb"
    array = empty + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + text("data") + array + text(key) + listed + text("batch_label") + text("tiny") + b"u."


def new_pickle(images: np.ndarray, key: str, labels: list[int]) -> bytes:
    """A batch as this Python and numpy pickle it."""
    return pickle.dumps({"data": images, key: labels}, protocol=2)


Batch = Callable[[np.ndarray, str, list[int]], bytes]


def batches(source: Source, pickled: Batch = old_pickle) -> dict[str, bytes]:
    """Every file of a small CIFAR, two images each, pixels telling the file: name -> bytes."""
    files = {}
    for i, name in enumerate(name for names in source.members.values() for name in names):
        images = np.full((2, 3 * 32 * 32), 10 * i, dtype=np.uint8)
        images[1] = np.arange(3 * 32 * 32) % 251
        files[name] = pickled(images, source.labels, [i, 9 - i])
    return files


def archive(source: Source, files: dict[str, bytes]) -> bytes:
    """The files as a published archive, last first: their order in it must not matter."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in reversed(files):
            entry = tarfile.TarInfo(f"{source.folder}/{name}")
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))
    return packed.getvalue()


Publish = Callable[[Source, dict[str, bytes]], tuple[Source, bytes]]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Makes these files the published ones; returns the source with the new sha256, and the archive."""

    def run(source: Source, files: dict[str, bytes]) -> tuple[Source, bytes]:
        from torchvision import datasets as torchvision_datasets

        packed = archive(source, files)
        known = replace(source, sha256=hashlib.sha256(packed).hexdigest())
        monkeypatch.setattr("robustbench_vit.data.cifar." + ("CIFAR10" if source is CIFAR10 else "CIFAR100"), known)
        theirs: Any = getattr(torchvision_datasets, source.torchvision)
        for attribute, split in (("train_list", "train"), ("test_list", "test")):
            md5 = [[name, hashlib.md5(files[name]).hexdigest()] for name in source.members[split]]
            monkeypatch.setattr(theirs, attribute, md5)
        return known, packed

    return run
