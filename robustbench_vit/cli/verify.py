"""rbvit verify: stored adversarial images, checked again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vit.cli.app import app, state
from robustbench_vit.cli.runs import DeviceOption

if TYPE_CHECKING:
    from robustbench_vit.running.recheck import Failure, Recheck, Rounded

SHOWN = 3
"""Samples named for each fault."""


RecordArgument = Annotated[Path, typer.Argument(help="A record (JSON) with its images beside it.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The model's weights. Default: looked for beside the record and the boards."),
]
DataOption = Annotated[
    str | None, typer.Option(help="The .npz file that the record was made on; other data are found by name.")
]
BoardOption = Annotated[str | None, typer.Option(help="The board in whose folder the weights lie. Default: any.")]


@app.command()
def verify(
    context: typer.Context,
    record: RecordArgument,
    weights: WeightsOption = None,
    data: DataOption = None,
    device: DeviceOption = "cpu",
    board: BoardOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Recheck a record's adversarial images with its model: exit code 1 when one doesn't hold."""
    from robustbench_vit.records import Record
    from robustbench_vit.running.rebuild import find_weights, rebuilt, recorded_data
    from robustbench_vit.running.recheck import recheck
    from robustbench_vit.subject import find_device

    where = find_device(device, None)
    workspace, loaded = state(context).workspace, Record.load(record)
    samples = recorded_data(loaded, data)
    model = rebuilt(loaded, find_weights(loaded, record, weights, workspace, board), samples, workspace)
    found = recheck(loaded, model, samples, where)
    if as_json:
        typer.echo(json.dumps({"record": str(record), **found.to_dict()}, indent=1))
    else:
        for line in lines(loaded.entry["name"], found, samples.preprocessing):
            typer.echo(line)
    if not found.passed:
        raise typer.Exit(1)


def lines(name: str, found: Recheck, preprocessing: str) -> Iterator[str]:
    """What was found, in words."""
    yield f"{name}: {found.attack}, {found.norm}, eps {found.eps:.6g}, {found.n} samples"
    yield f"counted as broken  {found.counted}"
    yield f"hold               {found.hold}"
    yield f"do not hold        {len(found.broken)}"
    yield from _faults(found.broken)
    yield f"clean as recorded  {found.n - len({fault.sample for fault in found.clean})} of {found.n}"
    yield from _faults(found.clean)
    yield from _rounded(found.rounded, found.counted, preprocessing)
    yield from (f"differs here: {difference}" for difference in found.differences)
    yield "everything is as the record says" if found.passed else "not everything is as the record says"


def _faults(faults: Sequence[Failure]) -> Iterator[str]:
    by_reason: dict[str, list[Failure]] = defaultdict(list)
    for fault in faults:
        by_reason[fault.reason].append(fault)
    for reason, those in by_reason.items():
        named = "; ".join(f"{fault.sample} ({fault.detail})" for fault in those[:SHOWN])
        yield f"  {reason}: {len(those)}: {named}" + ("; …" if len(those) > SHOWN else "")


def _rounded(rounded: Rounded, counted: int, preprocessing: str) -> Iterator[str]:
    yield (
        f"rounded to 8 bits, of {counted}: {rounded.misclassified} misclassified,"
        f" {rounded.inside} inside the budget ({rounded.near} within half a grey level of it),"
        f" {rounded.hold} both ({rounded.nearly_hold})"
    )
    if not rounded.on_grid:
        yield (
            f"  the clean pixels are no multiples of 1/255 ({preprocessing}):"
            " rounding moves them too, even where nothing was attacked"
        )
