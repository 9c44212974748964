"""A record as a card for notebooks: HTML that needs nothing else, in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from robustbench_vit.records.reliability import Evidence, Reliability
from robustbench_vit.records.rows import MAJORITY

if TYPE_CHECKING:
    from robustbench_vit.records.record import Record

_POLICIES = {"A": "deterministic", "B": "answers at random", "C": "no useful gradient"}
_GREY = "color-mix(in srgb, currentColor 62%, transparent)"
_RULE = "1px solid color-mix(in srgb, currentColor 22%, transparent)"
_STYLE = f"""
.rbv-card {{display: inline-block; max-width: 100%; box-sizing: border-box; overflow-x: auto; padding: .8em 1em;
  border: {_RULE}; border-radius: 8px; background: transparent; color: inherit;
  font: 13px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums}}
.rbv-card .rbv-name {{font-size: 1.15em; font-weight: 600}}
.rbv-card .rbv-grey {{color: {_GREY}}}
.rbv-card table {{border-collapse: collapse; margin: .6em 0; color: inherit; font-size: 1em}}
.rbv-card tr, .rbv-card th, .rbv-card td {{background: transparent !important; border: 0; color: inherit}}
.rbv-card th, .rbv-card td {{padding: .25em .9em .25em 0; text-align: left; vertical-align: middle;
  white-space: nowrap}}
.rbv-card th {{font-weight: 500; color: {_GREY}; border-bottom: {_RULE}}}
.rbv-card .rbv-number {{text-align: right}}
.rbv-card .rbv-main {{font-weight: 600}}
.rbv-card .rbv-wrap {{white-space: normal}}
.rbv-card .rbv-wrap span {{white-space: nowrap}}
.rbv-card .rbv-bar {{display: inline-block; position: relative; width: 110px; height: 10px; border-radius: 3px;
  vertical-align: middle; background: color-mix(in srgb, currentColor 10%, transparent)}}
.rbv-card .rbv-bar span {{position: absolute; top: 0; bottom: 0; border-radius: 3px}}
.rbv-card .rbv-clean {{background: color-mix(in srgb, currentColor 16%, transparent)}}
.rbv-card .rbv-robust {{background: #3b82c4}}
.rbv-card .rbv-bar .rbv-interval {{top: 3.5px; bottom: 3.5px; border-radius: 0; background: #e8a33d}}
.rbv-card .rbv-weak {{color: #c27c0e; font-weight: 600}}
.rbv-card .rbv-strong {{color: #d64545; font-weight: 600}}
.rbv-card ul {{margin: .4em 0; padding-left: 1.2em}}
"""


def card(record: Record) -> str:
    """What the record says: accuracies with intervals, a line per attack and eps, and what a reader must know of them.

    Every text from the record is escaped.
    """
    parts = [f"<style>{_STYLE}</style>", _heading(record)]
    if record.outcomes:
        parts += [_table(record), _notes(record)]
    parts.append(f'<div class="rbv-grey">{" · ".join(map(escape, _foot(record)))}</div>')
    return f'<div class="rbv-card">{"".join(parts)}</div>'


def _heading(record: Record) -> str:
    about = [str(record.entry[key]) for key in ("model", "defense") if record.entry.get(key)]
    lines = [f'<span class="rbv-name">{escape(str(record.entry.get("name", "unnamed")))}</span>']
    if about:
        lines.append(f' <span class="rbv-grey">{escape(" · ".join(about))}</span>')
    said = "no outcomes"
    if record.outcomes:
        said = f"clean accuracy <b>{_percent(record.clean_accuracy)} %</b> of n = {record.n:,} samples"
    policy = escape(f"policy {record.policy}, {_POLICIES.get(record.policy, 'unknown')}")
    return f'<div>{"".join(lines)}</div><div>{said} <span class="rbv-grey">· {policy}</span></div>'


def _table(record: Record) -> str:
    by_majority = MAJORITY in record.criteria
    heads = [_cell(word, "th") for word in ("attack", "budget")]
    heads += [_cell("robust %", "th", "rbv-number"), _cell("", "th"), _cell("95 % interval", "th")]
    heads += [_cell("by majority %", "th", "rbv-number")] * by_majority
    heads += [_cell(word, "th") for word in ("robust after each lane", "masked gradients")]
    rows = [_row(record, attack, eps, by_majority) for attack, eps in record.budgets]
    return f"<table><tr>{''.join(heads)}</tr>{''.join(rows)}</table>"


def _row(record: Record, attack: str, eps: float, by_majority: bool) -> str:
    chosen = record.at(attack, eps)
    cells = [
        _cell(f"{attack} (adaptive)" if attack in record.evidence else attack),
        _cell(f"{record.protocol.get('norm', '')} {_radius(eps)}"),
    ]
    if not chosen.complete:
        return f"<tr>{''.join(cells)}{_cell('not finished')}</tr>"
    low, high = chosen.interval()
    cells += [
        _cell(_percent(chosen.robust_accuracy), css="rbv-number rbv-main"),
        f"<td>{_bar(chosen.clean_accuracy, chosen.robust_accuracy, low, high)}</td>",
        _cell(f"[{_percent(low)}, {_percent(high)}]"),
    ]
    if by_majority:
        cells.append(_cell(_percent(record.at(attack, eps, MAJORITY).robust_accuracy), css="rbv-number"))
    cells += [f'<td class="rbv-wrap">{_lanes(record, attack, eps)}</td>', _verdict(_judged(record, attack, eps))]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, tag: str = "td", css: str = "") -> str:
    return f'<{tag} class="{css}">{escape(text)}</{tag}>' if css else f"<{tag}>{escape(text)}</{tag}>"


def _verdict(found: Reliability | None) -> str:
    if found is None:
        return _cell("not assessed", css="rbv-grey")
    return _cell(found.flag or "none", css="" if found.evidence is Evidence.NONE else f"rbv-{found.evidence}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _radius(eps: float) -> str:
    """As people write it: a short decimal, or n/255 when it is one."""
    top, short = round(eps * 255), f"{eps:g}"
    return f"{top}/255" if top and top / 255 == eps != float(short) else short


def _bar(clean: float, robust: float, low: float, high: float) -> str:
    """The robust accuracy as a bar before that of the clean one, with the interval as a thin line."""
    spans = [("rbv-clean", 0.0, clean), ("rbv-robust", 0.0, robust), ("rbv-interval", low, high)]
    drawn = [
        f'<span class="{css}" style="left: {_percent(start)}%; width: {_percent(end - start)}%"></span>'
        for css, start, end in spans
    ]
    return f'<span class="rbv-bar">{"".join(drawn)}</span>'


def _judged(record: Record, attack: str, eps: float) -> Reliability | None:
    return next((j.reliability for j in record.judgements if (j.attack, j.eps) == (attack, eps)), None)


def _lanes(record: Record, attack: str, eps: float) -> str:
    if attack not in record.attacks:
        return ""
    after = (f"{lane} {left:,}" for lane, left in record.survivors(attack, eps).items())
    return " → ".join(f"<span>{escape(text)}</span>" for text in after)


def _notes(record: Record) -> str:
    lines = [*_noted(record)]
    return f"<ul>{''.join(_cell(line, 'li') for line in lines)}</ul>" if lines else ""


def _noted(record: Record) -> Iterator[str]:
    """What a reader must know before using a number."""
    if record.protocol.get("profile") == "smoke":
        yield "Smoke profile: shortened attacks; these numbers mean nothing."
    for attack in record.attacks:
        if custom := record.custom(attack):
            yield f"{attack} here is custom, not the published protocol: {'; '.join(custom)}"
        if record.ran_as(attack) != attack:
            yield f"{record.ran_as(attack)} ran in the place of {attack}"
    yield from _best_known(record)
    for judgement in record.judgements:
        found = judgement.reliability
        for reason in found.against:
            yield f"{reason.evidence} evidence of masked gradients, {reason.check}: {reason.message}"
    yield from (f"{finding.level}: {finding.message}" for finding in record.findings if finding.level != "pass")


def _best_known(record: Record) -> Iterator[str]:
    """The worst case with adaptive attacks, at every eps that finished."""
    whole = {*record.attacks} <= {attack for attack, _ in record.budgets}  # not narrowed to some attack
    if not record.evidence or not record.complete or not whole:
        return
    floor, more = list(record.protocol["attacks"])[-1], " and ".join(record.evidence)
    for eps in dict.fromkeys(eps for _, eps in record.budgets):
        best = _percent(float(record.best_known(floor, eps).mean()))
        yield f"best known at {_radius(eps)}: {best} % robust under {floor} and, aimed at this model, {more}"


def _foot(record: Record) -> list[str]:
    data: Mapping[str, Any] = record.protocol.get("data") or {}
    said = [
        "/".join(str(data[key]) for key in ("name", "split") if data.get(key)),
        str(record.protocol.get("precision", "")),
        f"protocol {record.protocol_id}",
        str(record.provenance.get("date", "")),
    ]
    return [part for part in said if part]
