"""A user's own arrays, and what is said about those that cannot be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_vit.data import load_dataset
from robustbench_vit.data.dataset import content_ids
from robustbench_vit.errors import InputError

X = np.linspace(0, 1, 2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
Y = np.array([1, 0])


def saved(folder: Path, **arrays: Any) -> str:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return str(path)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    data = load_dataset(saved(tmp_path, x=X, y=Y.astype(np.int32)))
    assert np.array_equal(data.x, X)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int64)
    assert (data.name, data.split, data.preprocessing, data.num_classes) == ("npz", "mine.npz", "none", 2)
    assert data.sample_ids == content_ids(X, Y)


def test_bytes_are_divided_by_255(tmp_path: Path) -> None:
    x = np.array([0, 51, 255, 1], dtype=np.uint8).reshape(1, 1, 2, 2)
    data = load_dataset(saved(tmp_path, x=x, y=[3]))
    assert data.x.flatten().tolist() == [0, np.float32(51) / np.float32(255), 1, np.float32(1) / np.float32(255)]
    assert data.preprocessing == "pixels / 255"


@pytest.mark.parametrize(
    ("shape", "labels", "classes"),
    [
        ((3, 1, 5, 5), [0, 9, 4], 10),  # grey-scale
        ((2, 3, 4, 7), [0, 2], 3),  # not square
        ((1, 3, 4, 4), [5], 6),  # a single sample
        ((1, 1, 2, 3), [0], 2),  # whose label does not tell the classes: a classifier has two at least
        ((4, 3, 4, 4), [0, 1, 1, 0], 2),  # two classes
        ((2, 4, 3, 3), [0, 999], 1000),
    ],
)
@pytest.mark.parametrize("pixels", [np.uint8, np.float64])
def test_shapes_and_class_counts(
    tmp_path: Path, shape: tuple[int, ...], labels: list[int], classes: int, pixels: type
) -> None:
    x = np.ones(shape, dtype=pixels)
    data = load_dataset(saved(tmp_path, x=x, y=labels))
    assert (data.x.shape, data.x.dtype, len(data), data.num_classes) == (shape, np.float32, len(labels), classes)
    assert data.y.tolist() == labels
    assert data.first(1).x.shape == (1, *shape[1:])


def test_ids_come_from_an_index_or_from_the_content(tmp_path: Path) -> None:
    assert load_dataset(saved(tmp_path, x=X, y=Y, index=[7, 3])).sample_ids == ("mine:7", "mine:3")
    by_content = content_ids(X, Y)
    for not_an_index in ([7, 7], [7], [0.1, 0.2]):
        assert load_dataset(saved(tmp_path, x=X, y=Y, index=not_an_index)).sample_ids == by_content


def test_repeated_samples_have_ids_of_their_own() -> None:
    twice, labels = X[[0, 0, 0]], np.array([1, 1, 0])
    ids = content_ids(twice, labels)
    assert ids[1] == f"{ids[0]}#2"
    assert len(set(ids)) == 3


def test_ids_follow_their_samples() -> None:
    assert content_ids(X[::-1], Y[::-1]) == content_ids(X, Y)[::-1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "no array y; it has x"),
        ({"images": X, "labels": Y}, "no array x, y; it has images, labels"),
        ({"x": X[0], "y": Y}, "x has shape (3, 4, 4); expected (n, channels, height, width) with n ≥ 1"),
        ({"x": X[:0], "y": Y[:0]}, "x has shape (0, 3, 4, 4); expected (n, channels, height, width) with n ≥ 1"),
        ({"x": X, "y": Y[:1]}, "y has shape (1,); expected one label for each of the 2 images"),
        ({"x": X, "y": np.eye(2)}, "y has shape (2, 2); expected one label for each of the 2 images"),
        ({"x": X, "y": [0.0, 1.0]}, "y has type float64; expected integer class numbers"),
        ({"x": X, "y": [True, False]}, "y has type bool; expected integer class numbers"),
        ({"x": X, "y": [0, -1]}, "y holds the label -1; classes are numbered from 0"),
        ({"x": X.astype(np.int64), "y": Y}, "x has type int64; expected uint8 (0..255) or floats in [0, 1]"),
        ({"x": np.where(X > 0.5, np.nan, X), "y": Y}, "x holds NaN or infinite pixels"),
        ({"x": np.where(X > 0.5, np.inf, X), "y": Y}, "x holds NaN or infinite pixels"),
        ({"x": X * 255, "y": Y}, "x ranges from 0 to 255; expected pixels in [0, 1] (divide by 255?)"),
        (
            {"x": X * 2 - 1, "y": Y},
            "x ranges from -1 to 1; expected pixels in [0, 1] (undo the normalisation and use rbv.normalised)",
        ),
    ],
)
def test_what_cannot_be_evaluated(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(InputError) as caught:
        load_dataset(path)
    assert str(caught.value) == f"{path}: {message}"


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([{"a": 1}], dtype=object), y=[0])
    with pytest.raises(InputError, match=r"not a readable \.npz file of plain arrays"):
        load_dataset(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut short", b"\x80\x04K\x01."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.npz: not a readable \.npz file of plain arrays"):
        load_dataset(str(path))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, x=X, y=Y))
    for keep in (0.3, 0.6, 0.9):
        cut = tmp_path / "cut.npz"
        cut.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        with pytest.raises(InputError, match="not a readable"):
            load_dataset(str(cut))


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, x=X, y=Y))
    content = bytearray(path.read_bytes())
    content[content.index(X[1].tobytes()) + 5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable"):
        load_dataset(str(path))


def test_a_single_array_file_under_an_npz_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with path.open("wb") as handle:
        np.save(handle, X)
    with pytest.raises(InputError, match=r"mine\.npz: not a readable \.npz file of plain arrays"):
        load_dataset(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(str(tmp_path / "none.npz"))
    assert str(caught.value) == f"no data file at {tmp_path / 'none.npz'}"
