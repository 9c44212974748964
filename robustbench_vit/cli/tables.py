"""rbvit table: a board's table from its records."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from robustbench_vit.cards import BoardCard, Loaded
from robustbench_vit.cli.app import app, state
from robustbench_vit.errors import InputError


class Format(StrEnum):
    """How a table can be printed; listed here so that `--help` imports none of the code that does it."""

    MD = "md"
    CSV = "csv"
    TEX = "tex"
    JSON = "json"
    BIB = "bib"
    METHODS = "methods"


@app.command()
def table(
    context: typer.Context,
    board: Annotated[str, typer.Argument(help="A board's name, or the path of its card.")],
    form: Annotated[
        Format, typer.Option("--format", help="How to print the table; or BibTeX, or a methods paragraph.")
    ] = Format.MD,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Print these columns, separated by commas, in the place of those on the card."
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the table's files and the README's block.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is stale; exit 1 when something is.")] = False,
    records: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with records; default: the board's own.")
    ] = None,
) -> None:
    """Print a board's table from its records; with --write or --check, the files made from it."""
    from robustbench_vit.boards import printed, publish, stale

    if write and check:
        raise InputError("--write and --check exclude each other")
    if columns is not None and (write or check):
        raise InputError("--columns is for what is printed; the files have the columns that stand on the board's card")
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
        shown = loaded if columns is None else _with_columns(loaded, columns)
        typer.echo(printed(shown, workspace, form.value, records), nl=False)


def _with_columns(board: Loaded[BoardCard], columns: str) -> Loaded[BoardCard]:
    """The board with other columns on its card; raises InputError for those that don't exist."""
    from robustbench_vit.boards.columns import column_faults

    names = [name.strip() for name in columns.split(",")]
    card = board.card.model_copy(update={"columns": names})
    if faults := column_faults(card, "--columns"):
        raise InputError("\n".join(faults))
    return replace(board, card=card)


def _report(faults: list[str], arguments: str) -> None:
    """Prints what is stale and exits with 1, or says that nothing is; `arguments` are those that make it fresh."""
    if not faults:
        typer.echo("everything is fresh")
        return
    for fault in faults:
        typer.echo(fault, err=True)
    typer.echo(f"stale; run: rbvit table {arguments} --write", err=True)
    raise typer.Exit(1)
