"""rbvit gate: whether a board's entries are no worse than before, on as few samples as it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vit.cli.app import app, state
from robustbench_vit.cli.compare import (
    EntryOption,
    JsonOption,
    JunitOption,
    MarkdownOption,
    MaxDropOption,
    StrictOption,
    report,
)
from robustbench_vit.cli.runs import BoardArgument, DeviceOption, WidthOption


@app.command()
def gate(
    context: typer.Context,
    board: BoardArgument,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE", help="Records to compare with, or one entry's. Default: the board's own records."
        ),
    ] = None,
    entry: EntryOption = None,
    max_drop: MaxDropOption = 0.02,
    alpha: Annotated[
        float, typer.Option(metavar="SHARE", help="How often it may be wrong: false alarms, and drops overlooked.")
    ] = 0.05,
    seed: Annotated[
        int | None, typer.Option(help="Of the order in which samples are taken. Default: the board's seed.")
    ] = None,
    strict: StrictOption = False,
    always: Annotated[
        bool, typer.Option("--always", help="Evaluate an entry even if its weights are the baseline's.")
    ] = False,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the journal goes; default: runs/BOARD-gate.")
    ] = None,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, one entry each. Default: one per core; one on an accelerator.")
    ] = None,
    width: WidthOption = None,
) -> None:
    """Evaluate entries until it is clear that they are worse than their baseline, or not: exit 1 when one is worse.

    Run it again to resume; what is decided never runs twice.
    """
    from robustbench_vit.progress import Bars
    from robustbench_vit.running.gate import GateOptions, gate_board

    workspace = state(context).workspace
    options = GateOptions(max_drop, alpha, tuple(entry or ()), baseline, seed, always, device, width, workers, out)
    with Bars() as bars:
        found = gate_board(workspace.board(board), workspace, options, bars)
    report(found, strict, junit, markdown, as_json)
