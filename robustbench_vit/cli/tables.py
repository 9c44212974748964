"""rbvit table: a board's table from its records."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from robustbench_vit.cli.app import app, state
from robustbench_vit.errors import InputError


class Format(StrEnum):
    """How a table can be printed."""

    MD = "md"
    CSV = "csv"
    JSON = "json"


@app.command()
def table(
    context: typer.Context,
    board: Annotated[str, typer.Argument(help="A board's name, or the path of its card.")],
    form: Annotated[Format, typer.Option("--format", help="How to print the table.")] = Format.MD,
    write: Annotated[bool, typer.Option("--write", help="Write the table's files and the README's block.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is stale; exit 1 when something is.")] = False,
    records: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with records; default: the board's own.")
    ] = None,
) -> None:
    """Print a board's table from its records; with --write or --check, the files made from it."""
    from robustbench_vit.boards import board_table, publish, render, stale

    if write and check:
        raise InputError("--write and --check exclude each other")
    workspace = state(context).workspace
    loaded = workspace.board(board)
    if check:
        _report(
            stale(loaded, workspace, records), loaded.name if records is None else f"{loaded.name} --records {records}"
        )
    elif write:
        changed = publish(loaded, workspace, records)
        typer.echo("\n".join(f"wrote {path}" for path in changed) or "everything is fresh")
    else:
        typer.echo(render(board_table(loaded, workspace, records), form.value), nl=False)


def _report(faults: list[str], arguments: str) -> None:
    """Prints what is stale and exits with 1, or says that nothing is; `arguments` are those that make it fresh."""
    if not faults:
        typer.echo("everything is fresh")
        return
    for fault in faults:
        typer.echo(fault, err=True)
    typer.echo(f"stale; run: rbvit table {arguments} --write", err=True)
    raise typer.Exit(1)
