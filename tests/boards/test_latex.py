"""LaTeX: whole environments, nothing that LaTeX would read as a command, the best rows in bold."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.boards import build_table, render
from robustbench_vit.boards.formats.latex import escape
from robustbench_vit.records import Evidence, Judgement, Reason, Reliability

Make = Callable[..., Any]
RANKED = ("columns: [entry,", "columns: [rank, entry,")
NASTY = "odd_name: 50% & $x^2$ #1 {a} <b|c> ~ \\d \"q\" [e] 'f' `g_h`"


@pytest.fixture
def page(make_board: Make, make_record: Make) -> str:
    made = make_board(RANKED)
    robust = {"strong": "1" * 20, "weak": "1" * 9 + "0" * 11}
    records = {name: make_record(made, name, robust=digits) for name, digits in robust.items()}
    reasons = (Reason("large-eps", Evidence.STRONG, NASTY, "look"),)
    judged = (
        Judgement("autoattack", 0.2, Reliability(Evidence.STRONG, reasons, {"forwards": 1, "backwards": 1}, 0.1)),
    )
    records["weak"] = dataclasses.replace(records["weak"], judgements=judged)
    return render(build_table(made.board, made.workspace, records), "tex")


def body(page: str) -> list[str]:
    """The rows between the rules."""
    return page.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()


def require_whole(page: str) -> None:
    """Braces and environments are balanced, and every row has as many cells as its tabular has columns."""
    bare = re.sub(r"\\[\\{}&%$#_]", "", page)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    open_now: list[str] = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", page):
        if verb == "begin":
            open_now.append(name)
        else:
            assert open_now.pop() == name
    assert open_now == []
    for columns, inside in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", page, re.DOTALL):
        rows = [line for line in inside.splitlines() if line.endswith(r" \\")]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}


def test_a_table_is_whole(page: str) -> None:
    require_whole(page)
    assert page.startswith("% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n\\caption{20 samples of ")
    assert "\\label{tab:made}\n\\begin{tabular}{@{}rllrrrrrrrrr@{}}\n\\toprule\nrank & entry & model & " in page
    assert page.endswith("\\end{table}\n")


def test_the_best_rows_are_bold_in_the_ranking_column(page: str) -> None:
    strong, weak, absent = body(page)
    assert strong.startswith(r"1 & strong & digits\_vit & 100.0 & 100.0 & \textbf{100.0 [83.9, 100.0]} & 20 & ")
    assert weak.startswith(r"2 & weak & digits\_cnn & 100.0 & 45.0 & 45.0 [25.8, 65.8] & 9 & ")
    assert absent.startswith(r"-- & absent & digits\_cnn & no record & -- & ")
    assert r"$\alpha$ = 0.05); protocol \texttt{" in page
    assert "Bold: rank 1.}" in page


def test_without_the_column_rank_the_caption_says_what_bold_means(made: Any, make_record: Make) -> None:
    table = build_table(made.board, made.workspace, {"weak": make_record(made, "weak")})
    said = r"Bold: no row is significantly above it (exact McNemar, Holm, $\alpha$ = 0.05).}"
    assert said in render(table, "tex")
    assert "Bold" not in render(build_table(made.board, made.workspace, {}), "tex")


def test_notes_stand_below_the_table_and_are_escaped(page: str) -> None:
    (note,) = [line for line in page.splitlines() if line.startswith(r"\par\smallskip")]
    assert r"odd\_name: 50\% \& \$x\textasciicircum{}2\$ \#1 \{a\} \textless{}b\textbar{}c\textgreater{}" in note
    assert r"\textasciitilde{} \textbackslash{}d" in note
    assert r"[e] `f' \texttt{g\_h}\par}" in note


def test_a_first_cell_is_not_taken_for_an_argument(make_board: Make, make_record: Make) -> None:
    made = make_board(("name: weak,", "name: '[weak]',"))
    page = render(build_table(made.board, made.workspace, {"[weak]": make_record(made, "[weak]")}), "tex")
    assert body(page)[0].startswith("{}[weak] & ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain-text, 1.5", "plain-text, 1.5"),
        ("60.0–61.0 × 2 ± 1", r"60.0--61.0 $\times$ 2 $\pm$ 1"),
        ("it's 'so'", "it's `so'"),
        ("`a` and `b`", r"\texttt{a} and \texttt{b}"),
    ],
)
def test_escaping(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_latex_compiles_it(page: str, tmp_path: Path) -> None:
    program = next((name for name in ("pdflatex", "xelatex", "tectonic") if shutil.which(name)), None)
    if program is None:
        pytest.skip("no LaTeX is installed")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{page}\end{{document}}"
    (tmp_path / "page.tex").write_text(document, encoding="utf-8")
    options = [] if program == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([program, *options, "page.tex"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
