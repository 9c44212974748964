"""rbvit table: formats and columns of what is printed."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from typing import Any

import pytest

from robustbench_vit.boards import EXTRA, FORMATS
from robustbench_vit.cli import main
from robustbench_vit.cli.tables import Format


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["table", *arguments])
    shown: Any = capsys.readouterr()
    return int(left.value.code or 0), shown.out, shown.err


def test_the_command_knows_every_format() -> None:
    assert {form.value for form in Format} == {*FORMATS, *EXTRA}


def test_what_a_paper_needs_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "digits-linf", "--format", "bib")[1].count("@") > 2
    assert "AutoAttack" in printed(capsys, "digits-linf", "--format", "methods")[1]


def test_other_columns_than_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--columns", "rank, entry,n,autoattack:interval", "--format", "csv")
    code, out, err = printed(capsys, "digits-linf", *options)
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["rank", "entry", "n", "autoattack:estimate", "autoattack:low", "autoattack:high"]
    assert {row["n"] for row in rows} == {"500"}
    assert int(rows[0]["rank"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "rank,cleen"], "error: --columns: unknown column 'cleen'; did you mean 'clean'?\n"),
        (["--columns", "n,n"], "error: --columns: column 'n' stands twice\n"),
        (
            ["--columns", "rank", "--write"],
            "error: --columns is for what is printed; the files have the columns that stand on the board's card\n",
        ),
        (
            ["--columns", "rank", "--check"],
            "error: --columns is for what is printed; the files have the columns that stand on the board's card\n",
        ),
    ],
)
def test_columns_that_cannot_be_printed(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert printed(capsys, "digits-linf", *arguments) == (2, "", message)


def test_help_imports_neither_numpy_nor_scipy() -> None:
    code = (
        "import sys, robustbench_vit.cli\n"
        "try:\n    robustbench_vit.cli.main(['table', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(str([n for n in ('numpy', 'scipy', 'pandas') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
