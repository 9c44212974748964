"""MNIST and Fashion-MNIST: real files, every place they may lie in, and damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustbench_vit.data import load_dataset, mnist
from robustbench_vit.data.mnist import files_of, read_idx
from robustbench_vit.data.published import source_sha256
from robustbench_vit.errors import InputError

from .conftest import IMAGES, LABELS, Answers, idx

TEST_IMAGES, TEST_LABELS = mnist.FILES["test"]


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def unpacked(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}


def error_of(name: str, split: str = "test") -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(name, split)
    return str(caught.value)


def test_the_real_test_set(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(shared_data / "mnist"))
    data = load_dataset("mnist", "test")
    assert (data.x.shape, data.x.dtype, data.y.dtype) == ((10000, 1, 28, 28), np.float32, np.int64)
    assert np.bincount(data.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert (data.x.min(), data.x.max(), data.num_classes) == (0, 1, 10)
    assert float(data.x.mean(dtype=np.float64)) == pytest.approx(0.1325, abs=1e-4)
    assert (data.sample_ids[17], data.sample_ids[-1]) == ("mnist:17", "mnist:9999")
    assert (data.name, data.split, data.preprocessing) == ("mnist", "test", "pixels / 255")
    assert data.source_sha256 == "d02fd861282dd42217160f8ee576299f0b4114ace00b5c624a81fdf76f4d2f23"


def test_the_constants_are_those_of_the_real_files(shared_data: Path) -> None:
    from torchvision.datasets import MNIST

    md5 = dict(MNIST.resources)
    for name in mnist.FILES["test"]:
        content = (shared_data / "mnist" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == mnist.SHA256["mnist"][name]
        assert hashlib.sha256(gzip.decompress(content)).hexdigest() == mnist.UNPACKED_SHA256["mnist"][name]
        assert hashlib.md5(content).hexdigest() == md5[name]


def test_torchvision_reads_the_same(shared_data: Path, root: Path) -> None:
    from torchvision.datasets.mnist import read_image_file

    content = (shared_data / "mnist" / TEST_IMAGES).read_bytes()
    (root / "images").write_bytes(gzip.decompress(content))
    assert np.array_equal(read_idx(content, "images"), read_image_file(str(root / "images")).numpy())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_names_are_torchvisions(name: str) -> None:
    from torchvision import datasets as torchvision_datasets

    theirs = getattr(torchvision_datasets, mnist.TORCHVISION[name])
    assert {file for file, _ in theirs.resources} == set(mnist.SHA256[name])
    images = files_of(name, "train")[0]
    assert list(images.urls()) == [f"{mirror}train-images-idx3-ubyte.gz" for mirror in theirs.mirrors]
    assert images.folder == f"{theirs.__name__}/raw"


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_places_and_forms(root: Path, tiny_mnist: dict[str, bytes], below: str, packed: bool) -> None:
    put(root / below, tiny_mnist if packed else unpacked(tiny_mnist))
    data = load_dataset("mnist", "test")
    assert np.array_equal(data.x, IMAGES[:, None].astype(np.float32) / np.float32(255))
    assert data.y.tolist() == LABELS.tolist()
    assert data.sample_ids == ("mnist:0", "mnist:1", "mnist:2")
    assert data.source_sha256 == source_sha256(files_of("mnist", "test"))


def test_the_variable_comes_first_then_data_then_the_cache(
    tmp_path: Path, tiny_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = dict.fromkeys(tiny_mnist, b"damaged")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBUSTBENCH_VIT_DATA", raising=False)
    cache = tmp_path / "home" / ".cache" / "robustbench_vit" / "data"
    put(cache, tiny_mnist)
    assert len(load_dataset("mnist")) == 3
    put(tmp_path / "data", damaged)
    assert error_of("mnist").startswith(f"data/{TEST_IMAGES} is not the published file")
    put(tmp_path / "chosen", tiny_mnist)
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(tmp_path / "chosen"))
    assert len(load_dataset("mnist")) == 3
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(tmp_path / "other"))
    assert f"no {TEST_IMAGES} in {tmp_path / 'other'}, and" in error_of("mnist")


def test_the_variable_must_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ROBUSTBENCH_VIT_DATA", str(tmp_path / "file"))
    message = f"ROBUSTBENCH_VIT_DATA={tmp_path / 'file'} is a file; name the folder that holds the data"
    assert error_of("mnist") == message


def test_a_damaged_file_is_named(root: Path, tiny_mnist: dict[str, bytes]) -> None:
    damaged = tiny_mnist[TEST_LABELS][:-1] + b"\x01"
    put(root, {**tiny_mnist, TEST_LABELS: damaged})
    assert error_of("mnist") == (
        f"{root / TEST_LABELS} is not the published file, or damaged: sha256 {hashlib.sha256(damaged).hexdigest()}, "
        f"expected {mnist.SHA256['mnist'][TEST_LABELS]}, {len(damaged)} bytes;\n"
        "remove it (and what was unpacked from it), then the same command downloads it again"
    )


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>404</html>", b"\xef\xbb\xbf\n <HTML>"])
def test_a_web_page_under_the_name_of_a_file(root: Path, tiny_mnist: dict[str, bytes], page: bytes) -> None:
    put(root, {**tiny_mnist, TEST_IMAGES: page})
    assert f"{root / TEST_IMAGES} is not the published file, or damaged: it is a web page (HTML), " in error_of("mnist")


def test_a_file_that_cannot_be_read(root: Path, tiny_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, tiny_mnist)

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of("mnist") == f"cannot read {root / TEST_IMAGES}: Permission denied"


def test_the_two_data_sets_are_told_apart_in_one_folder(root: Path, tiny_mnist: dict[str, bytes]) -> None:
    put(root, tiny_mnist)
    message = error_of("fashion_mnist")
    assert message.startswith(f"fashion_mnist: no {TEST_IMAGES} in {root}, and it cannot be downloaded:\n")


def test_each_data_set_in_its_own_folder(
    root: Path, tiny_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {TEST_IMAGES: gzip.compress(idx(255 - IMAGES), mtime=0), TEST_LABELS: gzip.compress(idx(9 - LABELS))}
    for name, content in other.items():
        monkeypatch.setitem(mnist.SHA256["fashion_mnist"], name, hashlib.sha256(content).hexdigest())
    put(root, other)
    put(root / "MNIST" / "raw", tiny_mnist)
    assert load_dataset("mnist").y.tolist() == LABELS.tolist()
    assert load_dataset("fashion_mnist").y.tolist() == (9 - LABELS).tolist()
    assert load_dataset("fashion_mnist").sample_ids[2] == "fashion_mnist:2"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_unknown_splits(root: Path, name: str) -> None:
    assert error_of(name, "validation") == f"{name} has the splits 'train' and 'test', not 'validation'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "here: not an idx file of bytes; it begins with nothing"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "here: not an idx file of bytes; it begins with 00000d01"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "here: not an idx file of bytes; it begins with 00000803"),
        (idx(IMAGES)[:-1], "here: 59 values for the shape (3, 4, 5)"),
        (gzip.compress(b"x" * 100, mtime=0)[:-5], "here: damaged gzip file: "),
        (gzip.compress(b"x" * 100, mtime=0)[:12] + b"\xff" * 9, "here: damaged gzip file: "),
    ],
)
def test_what_is_no_idx_file(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_idx(content, "here")
    assert str(caught.value).startswith(message)


def test_images_and_labels_that_do_not_belong_together(
    root: Path, tiny_mnist: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = gzip.compress(idx(LABELS[:2]), mtime=0)
    monkeypatch.setitem(mnist.SHA256["mnist"], TEST_LABELS, hashlib.sha256(few).hexdigest())
    put(root, {**tiny_mnist, TEST_LABELS: few})
    assert error_of("mnist") == "mnist/test: images of shape (3, 4, 5) and labels of shape (2,)"


@pytest.mark.parametrize(
    "work",
    [
        "from robustbench_vit.data import load_dataset; load_dataset('mnist').first(5)",
        "from robustbench_vit.data import datasets; print(datasets.names(), file=sys.stderr)",
    ],
)
def test_listing_and_loading_need_no_torch(shared_data: Path, work: str) -> None:
    code = f"import sys; {work}; print([name for name in ('torch', 'torchvision') if name in sys.modules])"
    environment = {"ROBUSTBENCH_VIT_DATA": str(shared_data), "PYTHONPATH": str(Path(mnist.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


def test_a_missing_file_is_downloaded_once(root: Path, tiny_mnist: dict[str, bytes], network: Answers) -> None:
    for file in files_of("mnist", "test"):
        network[file.urls()[0]] = tiny_mnist[file.name]
    assert load_dataset("mnist").y.tolist() == LABELS.tolist()
    assert sorted(path.name for path in root.rglob("*.gz")) == sorted(tiny_mnist)
    assert {path.parent for path in root.rglob("*.gz")} == {root / "MNIST" / "raw"}
    network.clear()
    assert len(load_dataset("mnist")) == 3
