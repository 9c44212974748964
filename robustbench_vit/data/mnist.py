"""MNIST and Fashion-MNIST from their published idx files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence

import numpy as np

from robustbench_vit.data.dataset import Dataset, datasets, from_bytes, require_split
from robustbench_vit.data.published import Published, opened, source_sha256
from robustbench_vit.errors import InputError

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""What torchvision.datasets calls them."""

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""Images and labels; both data sets use the same names."""

SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}
"""Of the published .gz files."""

UNPACKED_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
}
"""Of what those files hold, where it is known."""


@datasets.register("mnist")
def mnist(split: str) -> Dataset:
    """MNIST's handwritten digits, 28×28 grey, 60,000 train and 10,000 test samples, 10 classes, pixels / 255."""
    return _load("mnist", split)


@datasets.register("fashion_mnist")
def fashion_mnist(split: str) -> Dataset:
    """Fashion-MNIST's clothing, 28×28 grey, 60,000 train and 10,000 test samples, 10 classes, pixels / 255."""
    return _load("fashion_mnist", split)


def read_idx(content: bytes, where: str) -> np.ndarray:
    """The uint8 array in an idx file, packed by gzip or not; raises InputError when it is none.

    The format (yann.lecun.com/exdb/mnist): two zero bytes, a type (8 = uint8), the number of dimensions, each size as
    a big-endian 32-bit integer, the values in C order. torchvision's reader wants unpacked files.
    """
    try:
        data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{where}: damaged gzip file: {error}") from error
    if data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise InputError(f"{where}: not an idx file of bytes; it begins with {data[:4].hex() or 'nothing'}")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], dtype=">u4").astype(int).tolist())
    values = np.frombuffer(data, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise InputError(f"{where}: {values.size} values for the shape {shape}")
    return values.reshape(shape)


def files_of(name: str, split: str) -> tuple[Published, Published]:
    """The files of a split: images, labels."""
    images, labels = (_published(name, file) for file in FILES[split])
    return images, labels


def _published(name: str, file: str) -> Published:
    def urls() -> Sequence[str]:
        from torchvision import datasets as torchvision_datasets

        return [f"{mirror}{file}" for mirror in getattr(torchvision_datasets, TORCHVISION[name]).mirrors]

    return Published(
        dataset=name,
        name=file,
        sha256=SHA256[name][file],
        folder=f"{TORCHVISION[name]}/raw",
        urls=urls,
        unpacked_sha256=UNPACKED_SHA256.get(name, {}).get(file),
        namesakes=frozenset(hashes[file] for other, hashes in SHA256.items() if other != name),
    )


def _load(name: str, split: str) -> Dataset:
    require_split(name, split)
    files = files_of(name, split)
    images, labels = (_array(file) for file in files)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{name}/{split}: images of shape {images.shape} and labels of shape {labels.shape}")
    return from_bytes(name, split, images[:, None], labels, source_sha256(files), num_classes=10)


def _array(file: Published) -> np.ndarray:
    with opened(file) as handle:
        return read_idx(handle.read(), f"{file.dataset}: {file.name}")
