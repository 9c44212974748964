"""The badge: well-formed, says what it must, readable, and refused where a number would mean nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from robustbench_vit.boards.badge import COLOURS, DOUBTFUL_COLOUR, HEIGHT, LABEL_COLOUR, badge
from robustbench_vit.cli import main
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Judgement, Outcome, Reason, Reliability, Status

Make = Callable[..., Any]
SVG = "{http://www.w3.org/2000/svg}"


def parts(svg: str) -> tuple[str, list[str], set[str]]:
    """The title, the texts and the colours of a badge."""
    root = ElementTree.fromstring(svg)
    assert (root.tag, root.get("role"), root.get("height")) == (f"{SVG}svg", "img", str(HEIGHT))
    title = root.findtext(f"{SVG}title") or ""
    assert root.get("aria-label") == title
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    return title, texts, {element.get("fill", "") for element in (*root.iter(f"{SVG}rect"), *root.iter(f"{SVG}path"))}


def test_what_it_says(made: Any, make_record: Make) -> None:
    title, texts, colours = parts(badge(make_record(made, "weak")))
    assert texts == ["robust accuracy", "60.0 % ± 28.7"]
    assert title == (
        "Robust accuracy 60.0 % (95 % Wilson interval 31.3 to 83.2, n = 10) under autoattack, linf, eps 0.2, on"
        " digits/test; clean accuracy 90.0 %"
    )
    assert colours == {LABEL_COLOUR, dict(COLOURS)[0.5]}


def test_of_a_run_that_stopped_early_it_names_a_confidence_sequence(made: Any, make_record: Make) -> None:
    until = {"half_width": 0.2, "confidence": 0.95, "order_seed": 0}
    title, _, _ = parts(badge(make_record(made, "weak", protocol={"profile": "until", "until": until})))
    assert "(95 % confidence sequence " in title
    assert "Wilson" not in title


def test_attack_budget_and_interval_can_be_chosen(make_board: Make, make_record: Make) -> None:
    made = make_board(eps="[4/255, 8/255]")
    record = make_record(made, "weak")
    title, texts, _ = parts(badge(record, "pgd-40", 8 / 255, 0.9, "clopper-pearson"))
    assert "90 % Clopper–Pearson interval" in title
    assert "under pgd-40, linf, eps 8/255," in title
    assert texts[1] == "70.0 % ± 30.7"
    with pytest.raises(InputError, match=r"no outcomes for attack 'autoattack' at eps 0\.5"):
        badge(record, eps=0.5)
    with pytest.raises(InputError, match="no outcomes for attack 'fgsm'"):
        badge(record, "fgsm")


@pytest.mark.parametrize(("robust", "least"), [("0" * 10, 0.0), ("1" * 3 + "0" * 7, 0.3), ("1" * 10, 0.7)])
def test_the_colour_goes_by_the_value(made: Any, make_record: Make, robust: str, least: float) -> None:
    _, _, colours = parts(badge(make_record(made, "weak", robust=robust)))
    assert colours == {LABEL_COLOUR, dict(COLOURS)[least]}


def test_the_number_never_leaves_its_interval(made: Any, make_record: Make) -> None:
    _, texts, _ = parts(badge(make_record(made, "weak", robust="0" * 10)))
    assert texts[1] == "0.0 % ± 27.8"  # the interval is 0 to 27.8


def test_a_doubtful_number_is_grey(made: Any, make_record: Make) -> None:
    judged = Judgement(
        "autoattack", 0.2, Reliability(Evidence.STRONG, (Reason("check", Evidence.STRONG, "said"),), {}, 0.0)
    )
    title, _, colours = parts(badge(make_record(made, "weak", judgements=(judged,))))
    assert colours == {LABEL_COLOUR, DOUBTFUL_COLOUR}
    assert title.endswith("; strong evidence of masked gradients: the number is probably too high")


def test_custom_attacks_and_other_policies_are_told(made: Any, make_record: Make) -> None:
    attacks = make_record(made, "weak").protocol["attacks"]
    custom = {**attacks, "autoattack": {**attacks["autoattack"], "custom": ["steps"]}}
    title, texts, _ = parts(badge(make_record(made, "weak", protocol={"attacks": custom})))
    assert texts[0] == "robust accuracy (custom attack)"
    assert "; 'autoattack' is custom, not the published protocol" in title
    title, _, _ = parts(badge(make_record(made, "weak", policy="C")))
    assert "under black-box in place of autoattack" in title
    assert "no useful gradient" in title


def test_names_are_escaped(made: Any, make_record: Make) -> None:
    record = make_record(made, "weak", protocol={"data": {"name": '<b>&"', "split": "test", "n": 10}})
    title, _, _ = parts(badge(record))
    assert 'on <b>&"/test' in title


def test_numbers_that_mean_nothing_get_none(made: Any, make_record: Make) -> None:
    with pytest.raises(InputError, match="smoke profile, whose numbers mean nothing"):
        badge(make_record(made, "weak", protocol={"profile": "smoke"}))
    record = make_record(made, "weak")
    unfinished = Outcome("digits:99", "autoattack", "linf", 0.2, "untargeted", Status.NOT_RUN)
    with pytest.raises(InputError, match="the record is incomplete"):
        badge(dataclasses.replace(record, outcomes=(*record.outcomes, unfinished)))


@pytest.mark.parametrize("colour", [LABEL_COLOUR, DOUBTFUL_COLOUR, *(colour for _, colour in COLOURS)])
def test_white_text_is_readable(colour: str) -> None:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 4.5  # WCAG 2, level AA


def test_the_texts_fit(made: Any, make_record: Make) -> None:
    svg = badge(make_record(made, "weak"))
    places = re.findall(r'<text x="([\d.]+)" y="14" textLength="(\d+)"', svg)
    width = int(re.findall(r'width="(\d+)"', svg)[0])
    (left, first), (right, second) = ((float(x), int(length)) for x, length in places)
    assert left - first / 2 >= 4
    assert left + first / 2 < right - second / 2 - 8
    assert right + second / 2 <= width - 4


def test_the_command(made: Any, make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(made, "weak")
    made.save(record)
    path, drawn = tmp_path / "record.json", tmp_path / "badge.svg"
    record.save(path)
    assert run(str(path), "-o", str(drawn)) == 0
    assert drawn.read_text(encoding="utf-8") == badge(record)
    capsys.readouterr()
    assert run("made", "--entry", "weak", folder=made.folder) == 0
    assert capsys.readouterr().out == badge(record)
    assert run("made", folder=made.folder) == 2
    assert "'made' is a board; name one of its rows with --entry: weak" in capsys.readouterr().err
    assert run("made", "--entry", "weka", folder=made.folder) == 2
    assert "did you mean 'weak'?" in capsys.readouterr().err
    assert run(str(path), "--entry", "weak") == 2


def run(*arguments: str, folder: Path | None = None) -> Any:
    """The exit code of rbvit badge."""
    given = [] if folder is None else ["--workspace", str(folder)]
    with pytest.raises(SystemExit) as left:
        main([*given, "badge", *arguments])
    return left.value.code
