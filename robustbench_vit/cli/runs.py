"""rbvit run, plan: a board evaluated, or what that would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.schema import PRECISIONS, Precision
from robustbench_vit.cli.app import app, state
from robustbench_vit.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from robustbench_vit.running.board import BoardRun, RunOptions

BoardArgument = Annotated[str, typer.Argument(help="A board's name, or the path of its card.")]
EntryOption = Annotated[
    list[str] | None, typer.Option("--entry", metavar="NAME", help="Only this entry; may be given several times.")
]
SamplesOption = Annotated[int | None, typer.Option("--n", min=1, help="Only the first N samples.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
WidthOption = Annotated[
    int | None, typer.Option("--width", min=1, help="Rows that run at a time; changes no verdict. Default: automatic.")
]

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        help="In which successes are searched; they are rechecked in float32. Default: the board's first, else fp32.",
    ),
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Search with the model compiled by torch.compile.")]
ChannelsLastOption = Annotated[
    bool, typer.Option("--channels-last", help="Search with a copy of the model in this memory format.")
]


def known_precision(name: str | None) -> Precision | None:
    """The precision of this name; raises UnknownNameError."""
    for precision in PRECISIONS:
        if name == precision:
            return precision
    if name is not None:
        raise UnknownNameError("precision", name, PRECISIONS)
    return None


@app.command()
def run(
    context: typer.Context,
    board: BoardArgument,
    entry: EntryOption = None,
    n: SamplesOption = None,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, one entry each. Default: one per core; one on an accelerator.")
    ] = None,
    width: WidthOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    channels_last: ChannelsLastOption = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the journal and the records go; default: runs/BOARD.")
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="32 samples and a few steps, in seconds: does it run? The numbers mean nothing."),
    ] = False,
    until: Annotated[
        float | None,
        typer.Option(
            metavar="HALF-WIDTH",
            help="Stop an entry as soon as its robust accuracy is known within ± this, such as 0.02; see docs/gate.md.",
        ),
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish", help="Then make the records the board's own: write them and its tables beside its card."
        ),
    ] = False,
) -> None:
    """Evaluate a board's entries and print its table. Run it again to resume; what is decided never runs twice."""
    from robustbench_vit.running.board import RunOptions
    from robustbench_vit.running.until import Until

    workspace = state(context).workspace
    loaded = workspace.board(board)
    options = RunOptions(
        tuple(entry or ()), n, device, width, workers, out, smoke, known_precision(precision), compiled, channels_last,
        None if until is None else Until(until, loaded.card.confidence, loaded.card.seed),
    )  # fmt: skip
    if publish and (n is not None or smoke):
        raise InputError("--publish needs the whole board: leave out --n and --smoke")
    if publish and until is not None:
        raise InputError("--publish needs the whole board, and --until stops early: leave one out")
    if smoke and until is not None:
        raise InputError("--smoke shows whether a board runs, --until how robust its entries are: leave one out")
    finished = _run(loaded, workspace, options)
    _show(loaded, workspace, finished, options)
    if publish:
        _publish(loaded, workspace, finished)


def _run(board: Loaded[BoardCard], workspace: Workspace, options: RunOptions) -> BoardRun:
    from robustbench_vit.progress import Bars
    from robustbench_vit.running.board import run_board

    with Bars(smoke=options.smoke) as bars:
        return run_board(board, workspace, options, bars)


def _show(board: Loaded[BoardCard], workspace: Workspace, finished: BoardRun, options: RunOptions) -> None:
    from robustbench_vit.boards import build_table, render
    from robustbench_vit.running.committed import compare_with_committed
    from robustbench_vit.running.until import until_lines

    typer.echo(render(build_table(_only(board, finished), workspace, finished.records), "md"))
    for name, computed in finished.rows_computed.items():
        if not computed:
            typer.echo(f"{name}: already complete, nothing computed")
    typer.echo(f"records: {finished.folder / 'records'}")
    if options.until is not None:
        for line in until_lines(finished.records):
            typer.echo(line)
    elif options.n is None and not options.smoke:
        for name, line in compare_with_committed(board, finished.records).items():
            typer.echo(f"{name}: {line}")


def _only(board: Loaded[BoardCard], finished: BoardRun) -> Loaded[BoardCard]:
    """The board with the entries that ran, and without columns of adaptive attacks that only others have."""
    entries = [entry for entry in board.card.entries if entry.name in finished.records]
    card = board.card.model_copy(update={"entries": entries})
    absent = {*board.card.adaptive} - {*card.adaptive}
    columns = [name for name in card.columns if name.partition(":")[0] not in absent]
    return replace(board, card=card.model_copy(update={"columns": columns}))


def _publish(board: Loaded[BoardCard], workspace: Workspace, finished: BoardRun) -> None:
    from robustbench_vit.boards import board_folder
    from robustbench_vit.boards import publish as write_tables

    for name, record in finished.records.items():
        replace(record, images=None).save(board_folder(board) / "records" / f"{name}.json")
    for path in write_tables(board, workspace):
        typer.echo(f"wrote {path}")


@app.command()
def plan(
    context: typer.Context,
    board: BoardArgument,
    entry: EntryOption = None,
    n: SamplesOption = None,
    device: DeviceOption = "cpu",
    width: WidthOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    channels_last: ChannelsLastOption = False,
) -> None:
    """Say what running a board would take: samples, lanes, passes, memory and time, without attacking anything."""
    from robustbench_vit.running.board import RunOptions
    from robustbench_vit.running.estimate import estimate_board

    workspace = state(context).workspace
    loaded = workspace.board(board)
    options = RunOptions(
        tuple(entry or ()),
        n,
        device,
        width,
        precision=known_precision(precision),
        compiled=compiled,
        channels_last=channels_last,
    )
    for line in estimate_board(loaded, workspace, options):
        typer.echo(line)
