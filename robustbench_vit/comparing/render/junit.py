"""A comparison as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from robustbench_vit.comparing.comparison import Comparison, Conclusion, Item
from robustbench_vit.comparing.render import words
from robustbench_vit.comparing.render.text import item_lines

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not (section 2.2)."""


def junit(comparison: Comparison, strict: bool = False) -> str:
    """A test per item: *worse* fails; *undecided* fails when `strict`, and passes otherwise, with what it says."""
    failures = sum(_fails(item, strict) for item in comparison.items)
    counts = {"tests": str(len(comparison.items)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", {"name": comparison.command, **counts})
    suite = ET.SubElement(root, "testsuite", {"name": comparison.command, **counts})
    _properties(
        suite,
        {
            "baseline": comparison.baseline,
            "candidate": comparison.candidate,
            "max_drop": f"{comparison.max_drop:g}",
            "alpha": f"{comparison.alpha:g}",
            "conclusion": comparison.conclusion.value,
        },
    )
    for item in comparison.items:
        _case(suite, item, strict)
    if remarks := list(words.remarks(comparison)):
        ET.SubElement(suite, "system-out").text = _legal("\n".join(remarks))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _fails(item: Item, strict: bool) -> bool:
    return item.conclusion is Conclusion.WORSE or (strict and item.conclusion is Conclusion.UNDECIDED)


def _case(suite: ET.Element, item: Item, strict: bool) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": _legal(item.name), "name": _legal(item.budget)})
    low, high = item.drop_interval
    _properties(
        case,
        {
            "conclusion": item.conclusion.value,
            "drop": repr(item.drop),
            "drop_low": repr(low),
            "drop_high": repr(high),
            "lost": str(item.flips.lost),
            "gained": str(item.flips.gained),
            "n": str(item.flips.n),
            "decided_by": item.decided_by,
        },
    )
    said = _legal("\n".join(item_lines(item)))
    if _fails(item, strict):
        message = _legal(f"{item.conclusion}: {words.sentence(item)}")
        ET.SubElement(case, "failure", {"message": message, "type": item.conclusion.value}).text = said
    else:
        ET.SubElement(case, "system-out").text = said


def _properties(parent: ET.Element, values: dict[str, str]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": name, "value": _legal(value)})


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
