"""Small figures as SVG, drawn from numbers; they need no library and their text stays text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

INK, FAINT, BLUE, ORANGE = "#24292f", "#d0d7de", "#0969da", "#bc4c00"
STYLE = f"<style>text{{font:11px sans-serif;fill:{INK}}} .title{{font-weight:bold}}</style>"

Curves = Mapping[str, Sequence[float]]
"""Label -> a value in [0, 1] per epoch; two of them at most."""


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    """The file; its ground is white, so that dark pages don't hide the text."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    ground = f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, ground, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = FAINT) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"/>'


def curves(panels: Mapping[str, Curves], columns: int = 4) -> str:
    """A panel per name, side by side: shares against epochs, all with the same axes from 0 to 100 %."""
    width, height, left, top, gap = 170, 110, 34, 40, 30
    parts = [_legend(next(iter(panels.values())), left)]
    for at, (name, drawn) in enumerate(panels.items()):
        x, y = left + (at % columns) * (width + gap), top + (at // columns) * (height + 44)
        parts += [_text(x, y - 5, name, extra=' class="title"')]
        for share in (0, 0.5, 1):
            parts += [_line(x, y + height * (1 - share), x + width, y + height * (1 - share))]
            parts += [_text(x - 4, y + height * (1 - share) + 4, f"{100 * share:g}", "end")]
        epochs = max(len(values) for values in drawn.values())
        parts += [_text(x, y + height + 14, "epoch 1"), _text(x + width, y + height + 14, str(epochs), "end")]
        for values, colour in zip(drawn.values(), (BLUE, ORANGE), strict=False):
            step = width / max(len(values) - 1, 1)
            points = " ".join(f"{x + i * step:.1f},{y + height * (1 - v):.1f}" for i, v in enumerate(values))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    rows = -(-len(panels) // columns)
    return _svg(left + min(columns, len(panels)) * (width + gap), top + rows * (height + 44), parts)


def _legend(drawn: Curves, left: float) -> str:
    parts = []
    for at, (label, colour) in enumerate(zip(drawn, (BLUE, ORANGE), strict=False)):
        x = left + at * 240
        parts += [_line(x, 11, x + 18, 11, colour), _text(x + 24, 15, f"% {label}")]
    return "\n".join(parts)


def dots(rows: Sequence[tuple[str, Sequence[float], Sequence[float]]], labels: tuple[str, str], axis: str) -> str:
    """A row per name: full dots for the first values and rings for the second, in percent, on one axis."""
    left, width, top, pitch = 150, 420, 44, 22
    values = [value for _, full, rings in rows for value in (*full, *rings)] or [0.0]
    low = max(0, 10 * int(min(values) // 10))
    high = min(100, 10 * (int(max(values) // 10) + 1))
    bottom = top + pitch * len(rows)

    def x(value: float) -> float:
        return left + width * (value - low) / (high - low)

    parts = [f'<circle cx="{left}" cy="11" r="4" fill="{BLUE}"/>', _text(left + 10, 15, labels[0])]
    parts += [f'<circle cx="{left + 130}" cy="11" r="4" fill="none" stroke="{ORANGE}" stroke-width="1.5"/>']
    parts += [_text(left + 140, 15, labels[1])]
    for tick in range(low, high + 1, 10):
        parts += [_line(x(tick), top - 8, x(tick), bottom), _text(x(tick), bottom + 15, str(tick), "middle")]
    for at, (name, full, rings) in enumerate(rows):
        y = top + pitch * (at + 0.5)
        parts.append(_text(left - 10, y + 4, name, "end"))
        parts += [f'<circle cx="{x(v):.1f}" cy="{y:g}" r="4" fill="{BLUE}" fill-opacity="0.7"/>' for v in full]
        parts += [
            f'<circle cx="{x(v):.1f}" cy="{y:g}" r="6" fill="none" stroke="{ORANGE}" stroke-width="1.5"/>'
            for v in rings
        ]
    return _svg(left + width + 30, bottom + 44, [*parts, _text(left + width / 2, bottom + 34, axis, "middle")])
