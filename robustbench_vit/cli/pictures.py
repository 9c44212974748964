"""rbvit pictures: a contact sheet of a stored record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vit.cli.app import app, state
from robustbench_vit.cli.runs import DeviceOption
from robustbench_vit.cli.verify import BoardOption, DataOption, RecordArgument, WeightsOption


@app.command()
def pictures(
    context: typer.Context,
    record: RecordArgument,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the sheet (RECORD.png) goes.")],
    n: Annotated[int, typer.Option("--n", min=1, max=64, help="Samples, broken ones first.")] = 8,
    weights: WeightsOption = None,
    data: DataOption = None,
    device: DeviceOption = "cpu",
    board: BoardOption = None,
    attention: Annotated[bool, typer.Option(help="Show a Vision Transformer's attention.")] = True,
) -> None:
    """Draw a record's samples: clean, adversarial, their difference, the attention before and after."""
    from robustbench_vit.pictures import ready, save_pictures
    from robustbench_vit.records import Record
    from robustbench_vit.running.rebuild import find_weights, rebuilt, recorded_data
    from robustbench_vit.subject import find_device, placed

    where = find_device(device, None)
    workspace, loaded = state(context).workspace, Record.load(record)
    folder = ready(out)
    samples = recorded_data(loaded, data)
    model = rebuilt(loaded, find_weights(loaded, record, weights, workspace, board), samples, workspace)
    with placed(model, where):
        path = save_pictures(loaded, model, samples, folder / f"{record.stem}.png", n, attention)
    typer.echo(f"pictures: {path}")
