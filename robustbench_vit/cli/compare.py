"""rbvit compare, baseline: whether a candidate is less robust than a baseline, and a new baseline with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cli.app import app, state
from robustbench_vit.storage import write_atomic

if TYPE_CHECKING:
    from robustbench_vit.comparing import Comparison
    from robustbench_vit.comparing.update import Change, Updated

baseline_app = typer.Typer(no_args_is_help=True, help="Records that a candidate is compared with: update, show.")
app.add_typer(baseline_app, name="baseline")

SOURCE = "a record (.json), a folder of records, a run's folder, a board's card or a board's name"
BaselineArgument = Annotated[str, typer.Argument(metavar="BASELINE", help=f"What was accepted before: {SOURCE}.")]
CandidateArgument = Annotated[str, typer.Argument(metavar="CANDIDATE", help=f"What is to be judged: {SOURCE}.")]
MaxDropOption = Annotated[
    float, typer.Option("--max-drop", metavar="SHARE", help="Largest admitted drop in robust accuracy; 0.02: 2 points.")
]
AlphaOption = Annotated[
    float, typer.Option("--alpha", metavar="SHARE", help="Significance level, over everything compared at once.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail (exit 1) when something is undecided, too.")]
JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML, a test per number.")
]
MarkdownOption = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write Markdown, for a comment on a pull request.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON, with every flipped sample.")]
EntryOption = Annotated[
    list[str] | None, typer.Option("--entry", metavar="NAME", help="Only this entry; may be given several times.")
]


@app.command()
def compare(
    context: typer.Context,
    baseline: BaselineArgument,
    candidate: CandidateArgument,
    entry: EntryOption = None,
    max_drop: MaxDropOption = 0.02,
    alpha: AlphaOption = 0.05,
    strict: StrictOption = False,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the candidate is less robust than the baseline, on the samples both have: exit 1 when it is."""
    from robustbench_vit.comparing.judge import check_levels
    from robustbench_vit.comparing.judge import compare as compared
    from robustbench_vit.comparing.sources import load

    check_levels(max_drop, alpha)  # before records are read
    workspace = state(context).workspace
    found = compared(load(baseline, workspace), load(candidate, workspace), max_drop, alpha, entry or ())
    report(found, strict, junit, markdown, as_json)


def report(comparison: Comparison, strict: bool, junit: Path | None, markdown: Path | None, as_json: bool) -> None:
    """Prints a comparison, writes the files asked for, and exits with 1 when it fails."""
    from robustbench_vit.comparing import render

    if junit is not None:
        write_atomic(junit, render.junit(comparison, strict).encode())
    if markdown is not None:
        write_atomic(markdown, render.markdown(comparison).encode())
    typer.echo((render.as_json if as_json else render.text)(comparison), nl=False)
    if comparison.failed(strict):
        raise typer.Exit(1)


@baseline_app.command()
def update(
    context: typer.Context,
    baseline: BaselineArgument,
    candidate: CandidateArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the baseline's log.")],
    entry: EntryOption = None,
    max_drop: MaxDropOption = 0.02,
    alpha: AlphaOption = 0.05,
) -> None:
    """Replace the baseline's records by the candidate's, and log the reason beside them."""
    from robustbench_vit.comparing.sources import load
    from robustbench_vit.comparing.update import update as updated

    workspace = state(context).workspace
    _tell(updated(baseline, load(candidate, workspace), reason, workspace, max_drop, alpha, entry or ()))


def _tell(done: Updated) -> None:
    from robustbench_vit.comparing.render.text import item_lines
    from robustbench_vit.comparing.update import ADDED, LOG, NOT_COMPARABLE

    for item in done.items:
        typer.echo("\n".join(item_lines(item)))
    for change in done.changes:
        if change.conclusion == NOT_COMPARABLE:
            typer.echo(f"{change.entry}: replaced; the record before is not comparable:")
            typer.echo("\n".join(f"  {difference}" for difference in change.differs))
        elif change.conclusion == ADDED:
            typer.echo(f"{change.entry}: added")
    for name in done.unchanged:
        typer.echo(f"{name}: the same record already, nothing to do")
    if done.changes:
        typer.echo(f"{len(done.changes)} of {len(done.changes) + len(done.unchanged)} written to {done.folder}")
        typer.echo(f"logged in {done.folder / LOG}")
        if done.folder.name == "records" and (done.folder.parent / "table.md").is_file():
            typer.echo(f"the board's tables are stale now; run: rbvit table {done.folder.parent.name} --write")


@baseline_app.command()
def show(
    context: typer.Context,
    baseline: BaselineArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the log as it is, a JSON object per line.")] = False,
) -> None:
    """Print when a baseline changed, why, and what that did to its robust accuracies."""
    from robustbench_vit.comparing.update import read_log

    for change in read_log(baseline, state(context).workspace):
        typer.echo(change.to_json() if as_json else "\n".join(_change_lines(change)))


def _change_lines(change: Change) -> list[str]:
    before = change.before or {}
    old = {(point["attack"], point["eps"]): point["value"] for point in before.get("robust_accuracy", ())}
    lines = [f"{change.date} {change.entry}: {change.conclusion}. {' '.join(change.reason.split())}"]
    for point in change.after["robust_accuracy"]:
        shown = _arrow(old.get((point["attack"], point["eps"])), point["value"], _percent)
        lines.append(f"  {point['attack']} ({point['norm']} {show_number(point['eps'])}): {shown}")
    lines.append(f"  weights: {_arrow(before.get('weights_sha256'), change.after['weights_sha256'], _weights)}")
    return [*lines, *(f"  differs: {difference}" for difference in change.differs)]


def _arrow(old: Any, new: Any, shown: Callable[[Any], str]) -> str:
    """'old → new', or the new alone where there is no old one or it is the same."""
    return shown(new) if old is None or old == new else f"{shown(old)} → {shown(new)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _weights(sha256: str | None) -> str:
    return "unknown" if sha256 is None else sha256[:12]
