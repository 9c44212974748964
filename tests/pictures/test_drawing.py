"""What is drawn: pixels, colours, words."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_vit.pictures import drawing


def pixels(drawn) -> np.ndarray:  # noqa: ANN001
    return np.asarray(drawn)


@pytest.mark.parametrize(("size", "factor"), [(8, 24), (28, 6), (32, 6), (192, 1), (193, 1), (224, 1), (384, 1)])
def test_small_images_grow_by_a_whole_number_and_large_ones_stay(size: int, factor: int) -> None:
    drawn = drawing.picture(np.zeros((1, size, size // 2), np.float32))
    assert drawn.size == (size // 2 * factor, size * factor)


def test_every_pixel_becomes_a_square_of_its_colour() -> None:
    image = np.random.default_rng(0).random((3, 4, 6), np.float32)
    drawn = pixels(drawing.picture(image))
    assert drawn.shape == (128, 192, 3)
    levels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)
    assert (drawn == levels.repeat(32, 0).repeat(32, 1)).all()


def test_grey_is_drawn_as_grey() -> None:
    drawn = pixels(drawing.picture(np.full((1, 2, 2), 0.2, np.float32)))
    assert np.unique(drawn).tolist() == [51]


def test_no_difference_is_middle_grey_and_the_range_is_filled() -> None:
    drawn = pixels(drawing.difference(np.array([[[0, 0.1, -0.1, 0.3]]], np.float32), 5))
    assert drawn[0, 24::48, 0].tolist() == [128, 255, 0, 255]


def test_a_map_goes_from_the_first_to_the_last_colour_and_gets_brighter() -> None:
    drawn = pixels(drawing.heat(np.linspace(0, 0.5, 20)[None], 0.5, (20, 1)))[0]
    assert (tuple(drawn[0]), tuple(drawn[-1])) == (drawing.STOPS[0], drawing.STOPS[-1])
    assert (np.diff(drawn.astype(float).mean(1)) > 0).all()
    assert (pixels(drawing.heat(np.zeros((2, 2)), 0, (2, 2))) == drawing.STOPS[0]).all()


def test_kept_cells_are_untouched_and_earlier_dropped_ones_bluer() -> None:
    image = drawing.picture(np.zeros((1, 4, 4), np.float32))
    drawn = pixels(drawing.covered(image, np.array([[1, 2 / 3], [1 / 3, 0]])))
    kept, late, middle, early = (int(drawn[y, x, 2]) for y in (0, -1) for x in (0, -1))
    assert kept == 0 < late < middle < early


def test_long_lines_break_between_words_and_strange_letters_are_marked() -> None:
    text = "one two three four five six seven"
    lines = drawing.wrapped(text, 15, 90)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert max(drawing.length(line, 15) for line in lines) <= 90
    assert drawing.wrapped("größe", 15, 10) == ["gr??e"]
