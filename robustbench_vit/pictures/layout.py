"""Where things stand on a sheet: title, headings, a strip of pictures for each sample, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from robustbench_vit.pictures import drawing
from robustbench_vit.pictures.columns import Cell, Column

GAP, TEXT, TITLE = 16, 15, 22
"""Pixels: between pictures, and the sizes of words."""
NARROWEST = 640
"""Width of a sheet at least, so that its words have room."""


@dataclass(frozen=True)
class Line:
    """Words of one size and colour."""

    text: str
    size: int = TEXT
    colour: tuple[int, int, int] = drawing.INK


def laid_out(
    title: Sequence[Line], names: Sequence[str], columns: Sequence[Column], notes: Sequence[str]
) -> Image.Image:
    """The sheet: every column as wide as its pictures and words need, a strip for each name."""
    widths = [_width(column) for column in columns]
    width = max(sum(widths) + GAP * (len(widths) + 1), NARROWEST)
    strips = [_strip(name, [column.cells[i] for column in columns], widths, width) for i, name in enumerate(names)]
    blocks = [
        _paragraph(title, width),
        _headings([column.heading for column in columns], widths, width),
        *strips,
        _paragraph([Line(note, 14, drawing.PALE) for note in notes], width),
    ]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _width(column: Column) -> int:
    words = [column.heading, *(cell.caption for cell in column.cells)]
    return max(*(cell.drawn.width for cell in column.cells), *(drawing.length(text, TEXT) for text in words))


def _paragraph(lines: Sequence[Line], width: int) -> Image.Image:
    """Lines under each other, long ones wrapped."""
    parts = [
        Line(text, line.size, line.colour)
        for line in lines
        for text in drawing.wrapped(line.text, line.size, width - 2 * GAP)
    ]
    block = Image.new("RGB", (width, GAP + sum(_height(part.size) for part in parts)), "white")
    top = GAP // 2
    for part in parts:
        drawing.write(block, (GAP, top), part.text, part.size, part.colour)
        top += _height(part.size)
    return block


def _headings(headings: Sequence[str], widths: Sequence[int], width: int) -> Image.Image:
    block = Image.new("RGB", (width, _height(TEXT) + 4), "white")
    left = GAP
    for heading, column in zip(headings, widths, strict=True):
        drawing.write(block, (left, 0), heading, TEXT, drawing.PALE)
        left += column + GAP
    return block


def _strip(name: str, cells: Sequence[Cell], widths: Sequence[int], width: int) -> Image.Image:
    """A line, what is said of the sample, its pictures, and their captions below them."""
    tallest = max(cell.drawn.height for cell in cells)
    said = drawing.wrapped(name, TEXT, width - 2 * GAP)
    head = GAP // 2 + len(said) * _height(TEXT)
    block = Image.new("RGB", (width, head + tallest + _height(TEXT) + GAP // 2), "white")
    ImageDraw.Draw(block).line([(GAP, 0), (width - GAP, 0)], fill=drawing.EMPTY, width=2)
    for i, text in enumerate(said):
        drawing.write(block, (GAP, GAP // 2 + i * _height(TEXT) - 2), text, TEXT, drawing.INK)
    left = GAP
    for cell, column in zip(cells, widths, strict=True):
        block.paste(cell.drawn, (left, head))
        drawing.write(block, (left, head + tallest + 3), cell.caption, TEXT, cell.colour)
        left += column + GAP
    return block


def _height(size: int) -> int:
    return round(1.45 * size)
