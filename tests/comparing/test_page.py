"""docs/compare.md shows what its commands print."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vit.comparing.judge import least_for_not_worse
from tests.comparing.conftest import Ran

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^    (rbvit [^\n]+)\n\n```text\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), EXAMPLES)
def test_examples_are_what_the_commands_print(
    rbvit: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str, output: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert rbvit(*command.split()[1:]).out == output


def test_the_examples_show_every_conclusion() -> None:
    said = "".join(output for _, output in EXAMPLES)
    assert all(f": {conclusion}. " in said for conclusion in ("worse", "undecided", "not worse"))


def test_the_least_numbers_of_samples_are_right() -> None:
    assert (least_for_not_worse(0.02, 0.05), least_for_not_worse(0.01, 0.05)) == (189, 381)
    assert "takes 189 samples; `--max-drop 0.01` takes 381" in PAGE
