"""A record's robust accuracy as a small picture for a README."""

from __future__ import annotations

import math
from html import escape

from robustbench_vit.boards.formats.text import INTERVAL_NAMES
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cards.schema import IntervalName
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Record

BADGE_START = '<svg xmlns="http://www.w3.org/2000/svg" class="robust-accuracy"'
"""How the file of a badge begins."""
HEIGHT = 20
LABEL_COLOUR = "#3c4043"
COLOURS = ((0.7, "#1e6b37"), (0.5, "#4d6b12"), (0.3, "#7d5f00"), (0.1, "#9c4a12"), (0.0, "#a3231b"))
"""From which robust accuracy on a badge has which colour; white text is readable on all of them."""
DOUBTFUL_COLOUR = "#5f6368"

_FONT = "Verdana,DejaVu Sans,Geneva,sans-serif"
_FONT_SIZE = 11
_PADDING = 6
_CORNER = 4
_WIDTHS = {
    **dict.fromkeys(" .,:;|!ijl'", 3.5),
    **dict.fromkeys("()[]frt-", 4.3),
    **dict.fromkeys("0123456789", 7.0),
    **dict.fromkeys("mwMW%±", 10.0),
}
_WIDTH = 6.7
"""Pixels of any other character; with Verdana's widths, and so DejaVu Sans's, texts keep their natural spacing."""
_POLICIES = {
    "B": "the model answers at random, and one wrong draw breaks a sample",
    "C": "the model has no useful gradient and was attacked by scores and decisions only",
}


def badge(
    record: Record,
    attack: str | None = None,
    eps: float | None = None,
    confidence: float = 0.95,
    interval: IntervalName = "wilson",
) -> str:
    """A self-contained SVG: the robust accuracy in percent, ± the longer side of its interval.

    Its title says what the number depends on. The attack is the record's last one and eps its first one unless they are
    named. Grey: there is strong evidence of masked gradients. Raises InputError for a smoke profile, an incomplete
    record, and what the record doesn't hold.
    """
    if record.protocol["profile"] == "smoke":
        raise InputError("no badge: the record is of a smoke profile, whose numbers mean nothing")
    if not record.complete:
        raise InputError("no badge: the record is incomplete; run the same command again to finish it")
    attack = attack or str(list(record.protocol["attacks"])[-1])
    chosen = _held(record, eps)
    judged = record.at(attack, chosen)
    low, high = judged.interval(confidence, interval)
    label = "robust accuracy (custom attack)" if record.custom(attack) else "robust accuracy"
    reach = max(high - judged.robust_accuracy, judged.robust_accuracy - low)
    value = f"{100 * judged.robust_accuracy:.1f} % ± {100 * reach:.1f}"
    kind = "confidence sequence" if record.protocol["profile"] == "until" else f"{INTERVAL_NAMES[interval]} interval"
    bounds = f"{100 * confidence:g} % {kind} {100 * low:.1f} to {100 * high:.1f}"
    best = float(record.best_known(attack, chosen).mean())
    return _drawn(label, value, _colour(judged), _title(judged, attack, chosen, bounds, best))


def _held(record: Record, eps: float | None) -> float:
    """The record's own number for `eps`, which may have been rounded on its way here."""
    held = list(record.protocol["eps"])
    if eps is None:
        return held[0]
    return next((value for value in held if math.isclose(value, eps, rel_tol=1e-9)), eps)


def _title(judged: Record, attack: str, eps: float, bounds: str, best: float) -> str:
    """The number with everything it depends on, for who hovers over it or cannot see it."""
    data = judged.protocol["data"]
    ran = judged.ran_as(attack)
    under = attack if ran == attack else f"{ran} in place of {attack}"
    said = [
        f"Robust accuracy {100 * judged.robust_accuracy:.1f} % ({bounds}, n = {judged.n:,})",
        f" under {under}, {judged.protocol['norm']}, eps {show_number(eps)}, on {data['name']}/{data['split']}",
        f"; clean accuracy {100 * judged.clean_accuracy:.1f} %",
        f"; {100 * best:.1f} % best known, under {', '.join(judged.evidence)} too" if judged.evidence else "",
        f"; '{attack}' is custom, not the published protocol" if judged.custom(attack) else "",
        f"; {_POLICIES[judged.policy]}" if judged.policy in _POLICIES else "",
        "; strong evidence of masked gradients: the number is probably too high" if _masked(judged) else "",
    ]
    return "".join(said)


def _colour(judged: Record) -> str:
    if _masked(judged):
        return DOUBTFUL_COLOUR
    return next(colour for least, colour in COLOURS if judged.robust_accuracy >= least)


def _masked(judged: Record) -> bool:
    return any(judgement.reliability.evidence is Evidence.STRONG for judgement in judged.judgements)


def _width(text: str) -> int:
    """About how many pixels the text takes."""
    return math.ceil(sum(_WIDTHS.get(character, _WIDTH) for character in text))


def _drawn(label: str, value: str, colour: str, title: str) -> str:
    left, right = _width(label) + 2 * _PADDING, _width(value) + 2 * _PADDING
    total = left + right
    texts = [_text(label, left / 2, left), _text(value, left + right / 2, right)]
    return "\n".join(
        [
            f'{BADGE_START} width="{total}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{total}" height="{HEIGHT}" rx="{_CORNER}" fill="{LABEL_COLOUR}"/>',
            f'<path d="M{left} 0H{total - _CORNER}a{_CORNER} {_CORNER} 0 0 1 {_CORNER} {_CORNER}'
            f'V{HEIGHT - _CORNER}a{_CORNER} {_CORNER} 0 0 1 -{_CORNER} {_CORNER}H{left}z" fill="{colour}"/>',
            f'<g fill="#fff" text-anchor="middle" font-family="{_FONT}" font-size="{_FONT_SIZE}">',
            *texts,
            "</g>",
            "</svg>",
            "",
        ]
    )


def _text(text: str, middle: float, width: int) -> str:
    return f'<text x="{middle:g}" y="14" textLength="{width - 2 * _PADDING}">{escape(text)}</text>'
