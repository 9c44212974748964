"""rbvit badge, cite, import, export: what a paper or a README takes from a board, and what RobustBench says."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vit.cards import BoardCard, Loaded, Workspace, parse_number
from robustbench_vit.cli.app import app, state
from robustbench_vit.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from robustbench_vit.records import Record

OutOption = Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where to write. Default: print.")]
EpsOption = Annotated[str | None, typer.Option(help="Which eps, for example 8/255, where the record holds several.")]


class Foreign(StrEnum):
    """The formats of others that records can be written in."""

    ROBUSTBENCH = "robustbench"


@app.command()
def badge(
    context: typer.Context,
    record: Annotated[str, typer.Argument(help="A record (JSON), or a board, of which --entry names the row.")],
    entry: Annotated[str | None, typer.Option(metavar="NAME", help="The board's entry.")] = None,
    attack: Annotated[str | None, typer.Option(help="Under which attack. Default: the record's last.")] = None,
    eps: EpsOption = None,
    out: OutOption = None,
) -> None:
    """Draw a record's robust accuracy as an SVG for a README."""
    from robustbench_vit.boards.badge import badge as drawn
    from robustbench_vit.records import Record

    chosen = None if eps is None else _eps(eps)
    if record.endswith(".json"):
        if entry is not None:
            raise InputError("--entry is for boards; a record is of one entry")
        svg = drawn(Record.load(record), attack, chosen)
    else:
        loaded = state(context).workspace.board(record)
        card = loaded.card
        svg = drawn(_record(loaded, entry), attack or card.attacks[-1], chosen, card.confidence, card.interval)
    _write(svg, out)


def _record(board: Loaded[BoardCard], entry: str | None) -> Record:
    """The record of a board's entry."""
    from robustbench_vit.boards.folder import board_folder, load_records

    held = load_records(board_folder(board) / "records")
    if entry is None:
        raise InputError(f"'{board.name}' is a board; name one of its rows with --entry: {', '.join(held) or 'none'}")
    if entry not in held:
        raise UnknownNameError("record of an entry", entry, held, board.shown)
    return held[entry]


@app.command()
def cite(
    context: typer.Context,
    board: Annotated[str, typer.Argument(help="A board's name, or the path of its card.")],
    records: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with records; default: the board's own.")
    ] = None,
) -> None:
    """Print what a paper says of a board's numbers, and the BibTeX of what they rest on."""
    workspace = state(context).workspace
    typer.echo(_cited(workspace.board(board), workspace, records), nl=False)


def _cited(board: Loaded[BoardCard], workspace: Workspace, records: Path | None) -> str:
    from robustbench_vit.boards.generated import citation

    return citation(board, workspace, records)


@app.command("import")
def import_(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="model_info files of RobustBench (JSON).")],
    board: Annotated[str, typer.Option(metavar="NAME", help="The board that shall show them as reported rows.")],
) -> None:
    """Take rows that RobustBench reports into a board, where they are kept apart from measured ones."""
    from robustbench_vit.boards.reported import import_rows

    loaded = state(context).workspace.board(board)
    for path, row in import_rows(files, loaded).items():
        info = row.info
        typer.echo(
            f"{'already there' if row.present else 'took'} {path.stem}: {info.architecture},"
            f" {info.autoattack_acc:.2f} % under AutoAttack, {info.best_known:.2f} % under the best known attack"
        )
        if info.unknown:
            typer.echo(f"  fields that are not used: {', '.join(info.unknown)}")
    typer.echo(f"to show them: rbvit table {board} --write")


@app.command()
def export(
    record: Annotated[Path, typer.Argument(help="A record (JSON).")],
    form: Annotated[Foreign, typer.Option("--format", help="Whose format.")] = Foreign.ROBUSTBENCH,
    eps: EpsOption = None,
    name: Annotated[str | None, typer.Option(help="The paper's title. Default: the entry's name.")] = None,
    authors: Annotated[str | None, typer.Option(help="Its authors, separated by commas.")] = None,
    link: Annotated[str | None, typer.Option(help="Where it is.")] = None,
    venue: Annotated[str | None, typer.Option(help="Where it appeared, for example 'ICML 2020'.")] = None,
    architecture: Annotated[str | None, typer.Option(help="Default: the entry's model.")] = None,
    out: OutOption = None,
) -> None:
    """Write a record's result in another benchmark's format; only AutoAttack as published can be exported."""
    from robustbench_vit.boards.robustbench import model_info
    from robustbench_vit.records import Record

    given = {"name": name, "authors": authors, "link": link, "venue": venue, "architecture": architecture}
    about = {field: value for field, value in given.items() if value is not None}
    written = model_info(Record.load(record), None if eps is None else _eps(eps), about)
    _write(json.dumps(written, indent=2, ensure_ascii=False) + "\n", out)


def _eps(text: str) -> float:
    try:
        return parse_number(text)
    except ValueError as error:
        raise InputError(f"--eps: {error}") from error


def _write(text: str, out: Path | None) -> None:
    from robustbench_vit.storage import write_atomic

    if out is None:
        typer.echo(text, nl=False)
        return
    write_atomic(out, text.encode())
    typer.echo(f"wrote {out}")
