"""Images, maps and words as Pillow images."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALL = 192
"""Images are enlarged by the largest whole number that keeps their longer side within this; larger ones are kept."""
STOPS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from nothing to the largest share, evenly apart: brightness rises throughout, so it survives grey print."""
INK, PALE, GOOD, BAD = (20, 20, 20), (110, 110, 110), (0, 110, 50), (190, 20, 20)
EMPTY, DROPPED = (238, 238, 238), (90, 140, 255)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font; it has the letters of ASCII."""
    return ImageFont.load_default(size)


def ascii_only(text: str) -> str:
    """The text with '?' for what the built-in font cannot draw."""
    return text.encode("ascii", "replace").decode()


def factor_for(height: int, width: int) -> int:
    """By how much images of that size are enlarged."""
    return max(1, SMALL // max(height, width))


def picture(image: np.ndarray) -> Image.Image:
    """An image (c, h, w) in [0, 1], grey or colour, enlarged by nearest neighbour when it is small."""
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    drawn = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)))
    times = factor_for(drawn.height, drawn.width)
    return drawn.resize((drawn.width * times, drawn.height * times), Image.Resampling.NEAREST)


def difference(image: np.ndarray, factor: float) -> Image.Image:
    """A signed difference (c, h, w) times `factor`, around middle grey."""
    return picture(0.5 + factor * image)


def heat(shares: np.ndarray, largest: float, size: tuple[int, int]) -> Image.Image:
    """A map (rows, columns) in colours from 0 to `largest`, by the square root, of that width and height."""
    place = np.sqrt(np.clip(shares / (largest or 1), 0, 1)) * (len(STOPS) - 1)
    colours = np.array(STOPS, float)
    channels = [np.interp(place, np.arange(len(STOPS)), colours[:, c]) for c in range(3)]
    drawn = Image.fromarray(np.rint(np.stack(channels, 2)).astype(np.uint8))
    return drawn.resize(size, Image.Resampling.NEAREST)


def covered(drawn: Image.Image, shares: np.ndarray) -> Image.Image:
    """The picture with cells of a grid (rows, columns) covered in blue: not at all at 1, the more the less below."""
    cover = np.where(shares < 1, 255 * (0.95 - 0.45 * shares), 0)
    mask = Image.fromarray(np.rint(cover).astype(np.uint8)).resize(drawn.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", drawn.size, DROPPED), drawn, mask)


def nothing(size: tuple[int, int], words: str) -> Image.Image:
    """An empty place with words in its middle."""
    drawn = Image.new("RGB", size, EMPTY)
    pen = ImageDraw.Draw(drawn)
    middle = (size[0] / 2, size[1] / 2)
    pen.multiline_text(middle, words, PALE, font(14), anchor="mm", align="center")
    return drawn


def write(onto: Image.Image, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    """Puts one line of words onto a picture, its upper left corner at `at`."""
    ImageDraw.Draw(onto).text(at, ascii_only(text), colour, font(size))


def length(text: str, size: int) -> int:
    """The width of one line of words in pixels."""
    return math.ceil(font(size).getlength(ascii_only(text)))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in ascii_only(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def png(drawn: Image.Image) -> bytes:
    """The bytes of a PNG file; equal for equal pictures (nothing of time or machine is written)."""
    held = io.BytesIO()
    drawn.save(held, "PNG", compress_level=9)
    return held.getvalue()
