"""A comparison as text, Markdown, JUnit XML and JSON."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustbench_vit.comparing import Comparison, Conclusion, Item
from robustbench_vit.comparing.comparison import EQUAL_WEIGHTS, SEQUENTIAL_TEST
from robustbench_vit.comparing.judge import compare
from robustbench_vit.comparing.render import as_json, junit, markdown, text
from robustbench_vit.comparing.render.markdown import LIMIT
from robustbench_vit.comparing.render.words import change, counted, percent, sentence
from robustbench_vit.records import Record
from robustbench_vit.statistics import Flips
from tests.comparing.made import letters, make_record, source

NASTY = "a|b <img src=x> `c` *d* [e](f) \x07&"


def both(name: str, lost: int, gained: int, n: int) -> tuple[Record, Record]:
    before, after = letters(lost, gained, n)
    return make_record(before, name, weights="aa"), make_record(after, name, weights="bb")


def comparison(*flips: tuple[str, int, int, int]) -> Comparison:
    pairs = [both(*each) for each in flips]
    return compare(
        source(*(before for before, _ in pairs), name="old"), source(*(after for _, after in pairs), name="new")
    )


@pytest.fixture(scope="module")
def mixed() -> Comparison:
    """One number of each conclusion, the worst in the middle."""
    return comparison(("calm", 0, 0, 500), ("fallen", 31, 5, 500), ("open", 20, 14, 500))


def item(lost: int, gained: int, n: int) -> Item:
    return comparison(("net", lost, gained, n)).items[0]


def test_text_says_it_in_plain_words(mixed: Comparison) -> None:
    lines = text(mixed).splitlines()
    assert lines[0] == "baseline old, candidate new"
    assert lines[2] == (
        "fallen, cascade (linf 0.1): worse. robust 52.6 % → 47.4 %, a drop of 5.2 points [3.0, 7.8]; 31 samples lost,"
        " 5 gained of 500, p = 1.3e-05 (3.9e-05 adjusted); clean 100.0 %"
    )
    assert lines[3].startswith("  lost: made:0 (lane), made:1 (lane), ")
    assert lines[3].endswith("made:7 (lane), … (23 more)")
    assert lines[4] == f"  gained: {', '.join(f'made:{i} (lane)' for i in range(31, 36))}"
    assert lines[5].startswith("open, cascade (linf 0.1): undecided. ")
    assert " samples would decide, were flips as frequent" in lines[5]
    assert lines[8] == (
        "calm, cascade (linf 0.1): not worse. robust 50.0 % → 50.0 %, no change [-0.8, 0.8]; none of 500 samples"
        " flipped; clean 100.0 %"
    )
    assert lines[-1] == (
        "1 worse, 1 undecided, 1 not worse (largest admitted drop 2 points, alpha 0.05, Holm over 3 comparisons)"
    )


def test_text_has_notes_and_new_entries() -> None:
    found = compare(source(make_record("rb" * 20)), source(make_record("rb" * 20), make_record("r", "more")))
    lines = text(found).splitlines()
    assert lines[3] == "  note: n = 40 is too small for 'not worse': it takes 189 samples even without a flip"
    assert lines[5] == "note: new in the candidate, not compared: more"
    assert lines[6] == "1 undecided (largest admitted drop 2 points, alpha 0.05)"


def test_what_all_numbers_have_in_common_is_told_once() -> None:
    few = comparison(("one", 0, 0, 40), ("two", 1, 0, 40))
    said = "n = 40 is too small for 'not worse': it takes 189 samples even without a flip"
    assert text(few).count(said) == markdown(few).count(said) == 1
    assert f"note: all numbers: {said}\n" in text(few)
    mixture = comparison(("one", 0, 0, 40), ("two", 1, 0, 40), ("three", 0, 0, 500))
    assert text(mixture).count(f"  note: {said}\n") == 2
    assert f"- two, cascade (linf 0.1); one, cascade (linf 0.1): {said}" in markdown(mixture) or (
        f"- one, cascade (linf 0.1); two, cascade (linf 0.1): {said}" in markdown(mixture)
    )
    assert all(
        said in (case.findtext("system-out") or "") for case in ET.fromstring(junit(few).encode()).iter("testcase")
    )


def test_words() -> None:
    assert change(item(5, 31, 500)) == "a gain of 5.2 points [3.0, 7.8]"
    assert change(item(3, 3, 500)) == "no change [-1.2, 1.2]"
    assert counted(item(1, 0, 500)).startswith("1 sample lost, 0 gained of 500, p = 1")
    assert percent(0.60249, 500) == "60.2"
    assert percent(0.60249, 10_000) == "60.25"
    assert percent(-0.00001, 500) == "0.0"
    even = item(12, 2, 500)
    assert sentence(even).endswith("more samples would not decide while the drop stays at the largest admitted one")
    same = compare(source(make_record("rb" * 200)), source(make_record("rb" * 200))).items[0]
    assert "none of 400 samples flipped, the weights are the same" in sentence(same)


def test_what_a_gate_decided_early_is_told() -> None:
    early = dataclasses.replace(item(0, 0, 300), used=300, of=500, decided_by=SEQUENTIAL_TEST, p=None, p_adjusted=None)
    assert sentence(early).endswith("decided by a sequential test after 300 of 500 samples")
    assert "p =" not in sentence(early)
    skipped = dataclasses.replace(early, used=0, decided_by=EQUAL_WEIGHTS, equal_weights=True)
    assert sentence(skipped) == "the weights are the baseline's, so nothing was evaluated"
    found = Comparison("old", "new", 0.02, 0.05, (early, skipped), command="rbvit gate", extra={"seed": 0})
    assert "| 300 of 500 |" in markdown(found)
    assert "not worse (equal weights)" in markdown(found)
    assert "Holm" not in text(found)
    assert json.loads(as_json(found))["seed"] == 0
    assert ET.fromstring(junit(found).encode()).get("name") == "rbvit gate"


def test_markdown_is_a_heading_a_table_and_folded_lists(mixed: Comparison) -> None:
    shown = markdown(mixed)
    lines = shown.splitlines()
    assert lines[0] == "### Robustness: worse"
    assert lines[2].startswith("1 worse, 1 undecided, 1 not worse: candidate new against baseline old; ")
    assert lines[6] == (
        "| fallen | cascade (linf 0.1) | **worse** | 52.6 | 47.4 | 5.2 [3.0, 7.8] | 31 | 5 | 500 | 3.9e-05 |"
    )
    assert lines[8].startswith("| calm | cascade (linf 0.1) | not worse |")
    assert lines[9] == ""  # what follows is no part of the table
    assert shown.count("<details><summary>") == shown.count("</details>") == 2
    assert "<details><summary>fallen, cascade (linf 0.1): 31 lost, 5 gained</summary>\n\nLost" in shown


def rendered_cells(shown: str) -> list[str]:
    """The text of the table's cells as a Markdown reader sees it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(shown)
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    return ["".join(child.content for child in cell.children or []) for cell in cells]


def test_markdown_shows_names_letter_by_letter() -> None:
    before, after = both(NASTY, 31, 5, 500)
    found = compare(source(before, name="x_y_z | *"), source(after, name="`"))
    shown = markdown(found)
    cells = rendered_cells(shown)
    assert len(cells) == 10
    assert cells[0] == " ".join(NASTY.split())
    assert "<img" not in shown.replace("\\<img", "")
    assert "x\\_y\\_z \\| \\*" in shown
    assert "\n" not in shown.splitlines()[6]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1))
@settings(max_examples=80, deadline=None)
def test_any_name_survives_in_every_format(name: str) -> None:
    before, after = both(name, 1, 0, 3)
    found = compare(source(before), source(after))
    assert rendered_cells(markdown(found))[0].split() == name.split()
    assert json.loads(as_json(found))["items"][0]["entry"] == name
    case = ET.fromstring(junit(found).encode()).find("testsuite/testcase")
    assert case is not None


def test_markdown_fits_into_a_comment() -> None:
    pairs = [both(f"net-{i}", 150, 40, 200) for i in range(60)]
    before, after = (source(*(pair[side] for pair in pairs)) for side in (0, 1))
    shown = markdown(compare(before, after))
    assert 0.8 * LIMIT < len(shown) < LIMIT + 200
    assert shown.endswith(" more are left out; `--json` has them all.\n")
    assert "… and 50 more" in shown
    assert shown.count("| **worse** |") == 60


def test_junit_counts_what_fails(mixed: Comparison) -> None:
    for strict, failing in ((False, {"fallen"}), (True, {"fallen", "open"})):
        root = ET.fromstring(junit(mixed, strict).encode())
        (suite,) = root
        assert {suite.get(key) for key in ("tests",)} == {"3"}
        assert int(suite.get("failures", "")) == int(root.get("failures", "")) == len(failing)
        cases = suite.findall("testcase")
        assert {case.get("classname") for case in cases if case.find("failure") is not None} == failing
        assert all((case.find("failure") is None) != (case.find("system-out") is None) for case in cases)
        failure = next(case for case in cases if case.get("classname") == "fallen").find("failure")
        assert failure is not None
        assert failure.get("type") == "worse"
        assert (failure.get("message") or "").startswith("worse: robust 52.6 % → 47.4 %, a drop of 5.2 points")
        assert "lost: made:0 (lane)" in (failure.text or "")


def test_junit_has_the_numbers_as_properties(mixed: Comparison) -> None:
    (suite,) = ET.fromstring(junit(mixed).encode())
    said = {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")}
    assert said == {
        "baseline": "old", "candidate": "new", "max_drop": "0.02", "alpha": "0.05", "conclusion": "worse",
    }  # fmt: skip
    case = suite.findall("testcase")[1]
    values = {p.get("name"): p.get("value") for p in case.iterfind("properties/property")}
    assert (values["lost"], values["gained"], values["n"], values["drop"]) == ("31", "5", "500", "0.052")


def test_junit_holds_names_that_xml_cannot() -> None:
    before, after = both(NASTY, 31, 5, 500)
    (suite,) = ET.fromstring(junit(compare(source(before), source(after))).encode())
    case = suite.find("testcase")
    assert case is not None
    assert case.get("classname") == NASTY.replace("\x07", "\ufffd")


def test_json_has_everything_unrounded(mixed: Comparison) -> None:
    said = json.loads(as_json(mixed))
    assert said["format"] == "robustbench_vit/comparison/1"
    assert said["conclusion"] == "worse"
    assert said["counts"] == {"worse": 1, "undecided": 1, "not worse": 1}
    fallen = mixed.items[1]
    found = said["items"][1]
    assert set(found) == {"drop", *(field.name for field in dataclasses.fields(Item))}
    assert found["flips"] == {"lost": 31, "gained": 5, "n": 500}
    assert Flips(**found["flips"]).drop == found["drop"] == fallen.drop
    assert found["drop_interval"] == list(fallen.drop_interval)
    assert found["p"] == fallen.p
    assert found["baseline"]["robust_accuracy"] == fallen.baseline.robust_accuracy
    assert len(found["lost"]) == 31
    assert found["lost"][0] == {"sample": "made:0", "baseline": "robust", "candidate": "lane"}
    assert Conclusion(found["conclusion"]) is fallen.conclusion
