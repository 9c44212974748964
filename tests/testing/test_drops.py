"""`max_drop`: an entry against the record that is committed with its board, with three outcomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vit.records import Record

pytest_plugins = ["pytester"]

Tested = Callable[..., pytest.RunResult]
Commit = Callable[..., Path]


def against_committed(entry: str, more: str) -> str:
    return f"@pytest.mark.robustness(board='small', entry='{entry}', {more})\ndef test_drop(): pass\n"


def test_worse_fails(tested: Tested, commit: Commit) -> None:
    commit("weak", of="strong")
    ran = tested(against_committed("weak", "max_drop=0.02"))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            "worse: entry 'weak' of board 'small': robust *, a drop of * points [[]*[]]; * samples lost, 0 gained of"
            " 20, p = *; largest admitted drop 2 points",
            "  committed  * flipped (* lost, 0 gained)",
            "    lost     broken by quick: *",
        ]
    )


def test_not_worse_passes(tested: Tested, commit: Commit) -> None:
    """On 20 samples none of which flipped, the drop's interval ends below 20 points."""
    commit("strong")
    ran = tested(against_committed("strong", "max_drop=0.2"))
    ran.assert_outcomes(passed=1, warnings=0)


def test_undecided_passes_with_a_warning_and_fails_when_strict(tested: Tested, commit: Commit) -> None:
    commit("strong")
    ran = tested(against_committed("strong", "max_drop=0.02"))
    ran.assert_outcomes(passed=1, warnings=1)
    said = "undecided: entry 'strong' of board 'small': *; none of 20 samples flipped*; about * samples would *"
    ran.stdout.fnmatch_lines([f"*RobustnessWarning: {said}"])
    ran = tested(against_committed("strong", "max_drop=0.02"), "--robustness-strict")
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines([said])


def test_alpha_decides(tested: Tested, commit: Commit) -> None:
    """Worse by p of about one in a thousand: not at a level of one in a million."""
    commit("weak", of="strong")
    ran = tested(against_committed("weak", "max_drop=0.02, alpha=1e-6"))
    ran.assert_outcomes(passed=1, warnings=1)


def test_both_demands_are_held(tested: Tested, commit: Commit) -> None:
    commit("weak", of="strong")
    said = tested(against_committed("weak", "max_drop=0.02, min=0.9")).stdout
    said.fnmatch_lines(["robust accuracy of entry 'weak' *, below the minimum of 90 %", "worse: *"])


def test_fewer_samples_are_compared_on_those(tested: Tested, commit: Commit) -> None:
    commit("weak", of="strong")
    ran = tested(against_committed("weak", "max_drop=0.02"), "--robustness-n", "15")
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["  committed  * on the same 15 samples; *", "  note * of 20 in the baseline *"])


def test_another_protocol_is_refused_with_the_fields(tested: Tested, commit: Commit, made: dict[str, Record]) -> None:
    protocol = made["strong"].protocol
    commit("strong", protocol={**protocol, "data": {**protocol["data"], "preprocessing": "rounded"}})
    ran = tested(against_committed("strong", "max_drop=0.02"))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            "the records of 'strong' in the committed record and this test cannot be compared; they differ:",
            "  data.preprocessing: *",
        ]
    )


def test_another_attacks_settings_are_no_matter(tested: Tested, commit: Commit, made: dict[str, Record]) -> None:
    protocol = made["strong"].protocol
    other = {**protocol["attacks"]["quicker"], "version": 7}
    commit("strong", protocol={**protocol, "attacks": {**protocol["attacks"], "quicker": other}})
    tested(against_committed("strong", "max_drop=0.2")).assert_outcomes(passed=1)
