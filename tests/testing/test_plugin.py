"""`@pytest.mark.robustness` and the fixture `robust_accuracy` on entries of a board, in a small project's tests."""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from robustbench_vit.models.digits import DigitsCNN
from robustbench_vit.records import Record
from robustbench_vit.statistics import wilson
from robustbench_vit.testing import evaluating

pytest_plugins = ["pytester"]

Tested = Callable[..., pytest.RunResult]
Commit = Callable[..., Path]


def marked(entry: str = "strong", more: str = "min=0.5") -> str:
    """A test with an empty body."""
    return f"@pytest.mark.robustness(board='small', entry='{entry}', {more})\ndef test_robust(): pass\n"


def test_a_marked_test_with_an_empty_body_is_checked(tested: Tested, made: dict[str, Record]) -> None:
    found = made["strong"].at("quick")
    low, high = wilson(round(20 * found.robust_accuracy), 20)
    ran = tested(marked(more=f"min={found.robust_accuracy}"))
    ran.assert_outcomes(passed=1)
    number = f"{100 * found.robust_accuracy:.1f} % [[]{100 * low:.1f}, {100 * high:.1f}]"
    ran.stdout.fnmatch_lines(["*= robust accuracy =*", f"strong (small): {number} under quick, linf, eps 0.2, n = 20"])


def test_too_low_fails_and_says_why(tested: Tested, commit: Commit, made: dict[str, Record]) -> None:
    commit("weak", of="strong")
    lost = [
        before.sample
        for before, after in zip(made["strong"].at("quick").outcomes, made["weak"].at("quick").outcomes, strict=True)
        if before.robust and not after.robust and after.by == "quick"
    ]
    ran = tested(marked("weak", "min=0.45"))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            "robust accuracy of entry 'weak' of board 'small' is * % [[]*[]], below the minimum of 45 %",
            "  attack     quick, linf, eps 0.2",
            "  samples    * of 20 robust; interval at 95 %",
            f"  committed  * % on the same 20 samples; * flipped ({len(lost)} lost, * gained)",
            f"    lost     broken by quick: {', '.join(lost)}",
            "  reproduce  rbvit run small --entry weak",
        ],
        consecutive=True,
    )
    assert "Traceback" not in ran.stdout.str()


def test_samples_that_were_gained_are_named_with_the_lane_that_broke_them(tested: Tested, commit: Commit) -> None:
    commit("strong", of="weak")
    said = tested(marked(more="min=0.99")).stdout
    said.fnmatch_lines(["  committed  * (0 lost, * gained)", "    gained   was broken by quick: digits:*"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "  committed  none beside the board's card"),
        ("{}", "  committed  */weak.json: not a record of this version*"),
    ],
)
def test_without_a_committed_record_the_message_says_so(
    tested: Tested, project: Path, content: str | None, said: str
) -> None:
    if content is not None:
        path = project / "leaderboards" / "small" / "records" / "weak.json"
        path.parent.mkdir()
        path.write_text(content, encoding="utf-8")
    tested(marked("weak")).stdout.fnmatch_lines([said, "  reproduce  *"])


def test_a_minimum_inside_the_interval_may_be_chance(tested: Tested) -> None:
    assert "  chance     the minimum " in tested(marked("weak", "min=0.2")).stdout.str()
    assert "  chance     the minimum " not in tested(marked("weak", "min=0.9")).stdout.str()


def test_attack_and_eps_choose_the_number(tested: Tested, made: dict[str, Record]) -> None:
    value = made["weak"].at("quicker").robust_accuracy
    assert value != made["weak"].at("quick").robust_accuracy
    ran = tested(marked("weak", f"min={value}, attack='quicker'"))
    ran.stdout.fnmatch_lines([f"weak (small): {100 * value:.1f} % * under quicker, *"])
    ran = tested("@pytest.mark.robustness(board='curve', entry='strong', min=0.5, eps='8/255')\ndef test_it(): pass")
    ran.stdout.fnmatch_lines(["strong (curve): * under quick, linf, eps 8/255, n = 20*"])


def test_the_fixture_is_a_number_with_more(tested: Tested) -> None:
    ran = tested(
        """
@pytest.mark.robustness(board='small', entry='strong')
def test_robust(robust_accuracy):
    low, high = robust_accuracy.interval
    assert 0 < low < robust_accuracy < high <= 1
    assert 0.5 < robust_accuracy.value == float(robust_accuracy) == robust_accuracy.record.robust_accuracy
    assert robust_accuracy.n == 20 == len(robust_accuracy.record.verdicts)
    assert robust_accuracy >= robust_accuracy.value and robust_accuracy == robust_accuracy.value
    assert {robust_accuracy} == {robust_accuracy.value}
    with pytest.raises(TypeError):
        robust_accuracy < "much"


@pytest.mark.robustness(board='small', entry='weak')
def test_weak(robust_accuracy):
    assert robust_accuracy > 0.5


@pytest.mark.robustness(board='small', entry='weak', min=0.9)
def test_the_minimum_holds_too(robust_accuracy):
    assert robust_accuracy > 0.01
"""
    )
    ran.assert_outcomes(passed=1, failed=2)
    ran.stdout.fnmatch_lines(
        [
            "E       assert RobustAccuracy(0.*0 [[]0.*, 0.*], n = 20, weak, quick, linf 0.2) > 0.5",
            "* of board 'small' is *, below the minimum of 90 %",
        ]
    )


def test_a_body_that_fails_is_what_is_reported(tested: Tested) -> None:
    ran = tested("@pytest.mark.robustness(board='small', entry='weak', min=0.9)\ndef test_it(): assert 1 == 2")
    ran.assert_outcomes(failed=1)
    assert "below the minimum" not in ran.stdout.str()


def test_methods_classes_and_parameters_may_be_marked(tested: Tested) -> None:
    ran = tested(
        """
import unittest

@pytest.mark.robustness(board='small', min=0.5)
class TestBoard:
    @pytest.mark.robustness(entry='strong')
    def test_strong(self): pass

    @pytest.mark.parametrize('name', [pytest.param('w', marks=pytest.mark.robustness(entry='weak', min=0.05)), 's'])
    @pytest.mark.robustness(entry='strong', min=0.9)
    def test_several(self, name): pass


class TestOld(unittest.TestCase):
    @pytest.mark.robustness(board='small', entry='weak', min=0.5)
    def test_weak(self): pass
"""
    )
    ran.assert_outcomes(passed=1, failed=2, errors=1)  # entry='weak' and entry='strong' on one test
    assert "two markers on one test" in ran.stdout.str()
    ran.stdout.fnmatch_lines(
        ["FAILED *test_several[[]s] - Failed: robust accuracy of *", "FAILED *TestOld::test_weak - Failed: robust *"]
    )


def test_a_skipped_test_is_not_looked_at(tested: Tested) -> None:
    ran = tested("@pytest.mark.skip\n@pytest.mark.robustness(bord='small')\ndef test_it(): pass")
    ran.assert_outcomes(skipped=1)


def test_entries_are_evaluated_once(tested: Tested, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all tests of a session, and of later ones with the same cache or folder."""
    names: list[str] = []
    attack = evaluating._attack
    monkeypatch.setattr(evaluating, "_attack", lambda item, *a: names.append(item.name) or attack(item, *a))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p robustbench_vit.testing.plugin --robustness-n=6")
    several = [marked("weak", "min=0").replace("test_robust", f"test_{i}") for i in range(3)]
    for options, evaluated in (
        ((), 1),
        ((), 0),
        (("--cache-clear",), 1),
        (("--robustness-dir=elsewhere",), 1),
        (("--robustness-dir=elsewhere",), 0),
        (("-p", "no:cacheprovider"), 1),
    ):
        names.clear()
        tested("".join(several), *options).assert_outcomes(passed=3)
        assert names == ["weak"] * evaluated, options
    assert len(list(Path("elsewhere").rglob("journal.sqlite"))) == 1


def test_more_samples_reuse_the_rows_of_fewer(tested: Tested, tmp_path: Path) -> None:
    for n in (17, 20):
        tested(marked("weak", "min=0"), f"--robustness-n={n}", f"--robustness-dir={tmp_path / 'journals'}")
        (journal,) = (tmp_path / "journals").rglob("journal.sqlite")
        with closing(sqlite3.connect(journal)) as rows:
            assert rows.execute("SELECT count(*) FROM clean").fetchone() == (n,)
            assert rows.execute("SELECT count(*) FROM runs").fetchone() == (1,)
            assert rows.execute("SELECT count(image) FROM rows").fetchone() == (0,), "caches stay small"


def test_changed_code_is_evaluated_anew_although_the_weights_are_the_same(
    tested: Tested, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested(marked()).assert_outcomes(passed=1)
    forward = DigitsCNN.forward
    monkeypatch.setattr(DigitsCNN, "forward", lambda self, x: forward(self, 1 - x))
    tested(marked()).assert_outcomes(failed=1)


def test_junit_has_the_numbers(tested: Tested, made: dict[str, Record]) -> None:
    tested(marked(), "--junitxml", "junit.xml")
    properties = xml.etree.ElementTree.parse("junit.xml").findall(".//testcase/properties/property")
    said = {each.get("name"): each.get("value") for each in properties}
    found = made["strong"].at("quick")
    low, high = found.interval()
    numbers = {"value": found.robust_accuracy, "low": low, "high": high, "n": 20}
    expected = {"entry": "strong (small)", **numbers, "protocol_id": found.protocol_id}
    assert said == {f"robust_accuracy.{name}": str(value) for name, value in expected.items()}


def test_fewer_samples_are_said_to_be_fewer(tested: Tested) -> None:
    ran = tested(marked("weak", "min=0.9"), "--robustness-n", "8")
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            "  samples    * of 8 robust (only the board's first 8, --robustness-n); interval at 95 %",
            "  reproduce  rbvit run small --entry weak --n 8",
            "weak (small): * n = 8",
            "only the first 8 samples each (--robustness-n)",
        ]
    )
    assert "n = 20" in tested(marked(), "--robustness-n", "500").stdout.str(), "no more than there are"


def test_skip(tested: Tested, pytester: pytest.Pytester) -> None:
    ran = tested(marked() + "def test_model(robust_accuracy): pass\ndef test_other(): pass", "--robustness-skip", "-rs")
    ran.assert_outcomes(skipped=2, passed=1)
    assert "--robustness-skip" in ran.stdout.str()


def test_the_workspace_may_be_another_folder(tested: Tested, project: Path, pytester: pytest.Pytester) -> None:
    (project / "cards").mkdir()
    for kind in ("attacks", "leaderboards"):
        (project / kind).rename(project / "cards" / kind)
    tested(marked()).assert_outcomes(errors=1)
    pytester.makeini("[pytest]\nrobustness_workspace = cards\n")
    ran = tested(marked("weak", "min=0.9"))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines([f"  reproduce  rbvit --workspace {project / 'cards'} run small --entry weak"])
    pytester.makeini("[pytest]\nrobustness_workspace = crds\n")
    ran = tested(marked())
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"ERROR: robustness_workspace: no folder {project / 'crds'}"])
