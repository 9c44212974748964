"""What the plugin says about markers, boards, entries and options that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

Tested = Callable[..., pytest.RunResult]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'small', 'strong'", "robustness(…) takes keywords only, got 'small'; say board=…, entry=…"),
        ("bord='small'", "robustness(…): unknown argument 'bord'; did you mean 'board'?"),
        ("board='small', min=0.5", "robustness(…) names a board but no entry; give both"),
        ("entry='strong', min=0.5", "robustness(…) names an entry but no board; give both"),
        ("board=3, entry='strong'", "robustness(…): board is a name, got 3"),
        ("board='smal', entry='strong', min=0.5", "unknown board 'smal'; did you mean 'small'?"),
        (
            "board='small', entry='strng', min=0.5",
            "leaderboards/small.yaml: unknown entry 'strng'; did you mean 'strong'?",
        ),
        (
            "board='small', entry='strong', min=0.5, attack='quik'",
            "leaderboards/small.yaml: unknown attack 'quik'; did you mean 'quick'?",
        ),
        (
            "board='small', entry='strong', min=0.5, eps=0.3",
            "leaderboards/small.yaml has no eps 0.3, but 0.2",
        ),
        (
            "board='curve', entry='strong', min=0.5",
            "leaderboards/curve.yaml has several eps, 0.2, 8/255; say eps=… in the marker",
        ),
        (
            "board='small', entry='strong', min=45",
            "robustness(…): min is a share between 0 and 1, got 45; did you mean 0.45?",
        ),
        ("board='small', entry='strong', min=-0.1", "robustness(…): min is a share between 0 and 1, got -0.1"),
        (
            "board='small', entry='strong', min='much'",
            "robustness(…): min: expected a number such as 0.2 or 8/255, got 'much'",
        ),
        ("board='small', entry='strong', max_drop=0", "robustness(…): max_drop lies between 0 and 1, got 0"),
        (
            "board='small', entry='strong', max_drop=2",
            "robustness(…): max_drop lies between 0 and 1, got 2; did you mean 0.02?",
        ),
        ("board='small', entry='strong', min=0.5, alpha=0.1", "robustness(…): alpha belongs to max_drop=…, *"),
        ("board='small', entry='strong'", "robustness(…) says neither min nor max_drop: nothing would be checked"),
        ("min=0.5", "robustness(…) names no board and entry, and the test doesn't use the fixture robust_accuracy"),
        ("max_drop=0.1", "robustness(…): max_drop need board=… and entry=…"),
        (
            "board='small', entry='strong', max_drop=0.1",
            "max_drop compares 'strong' with its committed record, and there is none at *strong.json; `rbvit run small"
            " --publish` makes it",
        ),
        ("board='none.yaml', entry='strong', min=0.5", "no board file at *none.yaml; known boards: *"),
    ],
)
def test_a_marker_that_makes_no_sense_is_an_error_of_its_test(tested: Tested, arguments: str, said: str) -> None:
    ran = tested(f"@pytest.mark.robustness({arguments})\ndef test_it(): pass\ndef test_other(): pass")
    ran.assert_outcomes(errors=1, passed=1)
    ran.stdout.fnmatch_lines(["*_ ERROR at setup of test_it _*", said.replace("[", "[[]")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--robustness-n", "0"], "argument --robustness-n: a number of samples from 1 on, got '0'"),
        (["--robustness-n", "few"], "argument --robustness-n: a number of samples from 1 on, got 'few'"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(tested: Tested, options: list[str], said: str) -> None:
    ran = tested("def test_it(): pass", *options)
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines([f"*{said}"])


def test_a_device_that_is_not_there_is_an_error(tested: Tested) -> None:
    ran = tested(
        "@pytest.mark.robustness(board='small', entry='strong', min=0.5)\ndef test_it(): pass",
        *("--robustness-device", "nowhere"),
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["device 'nowhere' cannot be used here: *"])


def test_weights_that_are_not_there_are_an_error(tested: Tested, project: Path) -> None:
    (project / "leaderboards" / "small" / "weak.safetensors").unlink()
    ran = tested(
        "@pytest.mark.robustness(board='small', entry='weak', min=0.5)\ndef test_it(): pass\n"
        "@pytest.mark.robustness(board='small', entry='weak', min=0.5)\ndef test_uses(robust_accuracy): pass"
    )
    ran.assert_outcomes(failed=1, errors=1)
    ran.stdout.fnmatch_lines(["leaderboards/small.yaml, entry 'weak': *weak.safetensors*"])
