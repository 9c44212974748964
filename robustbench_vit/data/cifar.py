"""CIFAR-10 and CIFAR-100 from their published archives or the folders torchvision unpacks them into.

The published files are Python pickles, and unpickling can run code. Two locks: a file is unpickled only after its hash
(sha256 of the archive, torchvision's md5 of an unpacked file) has shown that it is the published one, and the unpickler
builds nothing but plain containers and numpy arrays.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_vit.data.dataset import Dataset, datasets, from_bytes, require_split
from robustbench_vit.data.published import Published, check_hash, opened, places, source_sha256
from robustbench_vit.errors import InputError


@dataclass(frozen=True)
class Source:
    """How one of the two is published."""

    name: str
    torchvision: str  # its name in torchvision.datasets
    archive: str
    sha256: str  # of the archive (the value Keras checks too)
    folder: str  # inside the archive, and where torchvision unpacks it
    members: dict[str, tuple[str, ...]]  # split -> files, in the published order
    labels: str  # key of the labels in a file
    num_classes: int


CIFAR10 = Source(
    name="cifar10",
    torchvision="CIFAR10",
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    folder="cifar-10-batches-py",
    members={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    num_classes=10,
)

CIFAR100 = Source(
    name="cifar100",
    torchvision="CIFAR100",
    archive="cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    folder="cifar-100-python",
    members={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    num_classes=100,
)


@datasets.register("cifar10")
def cifar10(split: str) -> Dataset:
    """CIFAR-10's photographs, 32×32 RGB, 50,000 train and 10,000 test samples, 10 classes, pixels / 255."""
    return _load(CIFAR10, split)


@datasets.register("cifar100")
def cifar100(split: str) -> Dataset:
    """CIFAR-100's photographs, 32×32 RGB, 50,000 train and 10,000 test samples, 100 classes, pixels / 255."""
    return _load(CIFAR100, split)


def _load(source: Source, split: str) -> Dataset:
    require_split(source.name, split)
    archive = _published(source)
    contents = _from_folder(source, split) or _from_archive(source, split, archive)
    parts = [_samples(content, source.labels, f"{source.name}: {member}") for member, content in contents.items()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # an unpacked file that passed its check holds the archive's bytes: both ways name one source
    return from_bytes(source.name, split, images, labels, source_sha256([archive]), source.num_classes)


def _published(source: Source) -> Published:
    return Published(source.name, source.archive, source.sha256, "", lambda: [_torchvision(source).url])


def _torchvision(source: Source) -> Any:
    """torchvision's class: it knows the address and the md5 of every unpacked file."""
    from torchvision import datasets as torchvision_datasets

    return getattr(torchvision_datasets, source.torchvision)


def _from_folder(source: Source, split: str) -> dict[str, bytes] | None:
    """The split's files by name from an unpacked folder, each checked; None where no folder has them all."""
    members = source.members[split]
    folders = (place / source.folder for place in places(source.name, ""))
    folder = next((place for place in folders if all(map(os.path.isfile, (place / m for m in members)))), None)
    if folder is None:
        return None
    published = _torchvision(source)
    md5 = dict((*published.train_list, *published.test_list))
    return {member: _checked(folder / member, md5[member]) for member in members}


def _checked(path: Path, md5: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    check_hash(io.BytesIO(content), path, "md5", md5)
    return content


def _from_archive(source: Source, split: str, archive: Published) -> dict[str, bytes]:
    """The split's files by name from the archive, found or downloaded."""
    wanted = {f"{source.folder}/{member}": member for member in source.members[split]}
    contents: dict[str, bytes] = {}
    try:
        with opened(archive) as handle, tarfile.open(fileobj=handle, mode="r:gz") as tar:
            for entry in tar:
                if entry.name in wanted and (content := tar.extractfile(entry)) is not None:
                    contents[wanted[entry.name]] = content.read()
                if len(contents) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{source.name}: {archive.name} is damaged: {error}") from error
    if missing := [member for member in source.members[split] if member not in contents]:
        raise InputError(f"{source.name}: {archive.name} holds no {', '.join(missing)}")
    return {member: contents[member] for member in source.members[split]}


def _samples(content: bytes, labels_key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) from one file; raises InputError when it holds something else."""
    try:
        found = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        images, labels = np.asarray(found["data"]), np.asarray(found[labels_key], dtype=np.int64)
        return images.reshape(len(labels), 3, 32, 32).astype(np.uint8, casting="no"), labels
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{where}: not a file of images and {labels_key}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers, text and numpy arrays; any other name in the file is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := _PLAIN.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of images needs")
        return found


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_PLAIN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
"""What array pickles name, old numpy's way and new."""
