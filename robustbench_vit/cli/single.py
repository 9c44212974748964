"""rbvit attack, train: one model evaluated, one model trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vit.cli.app import app, state
from robustbench_vit.cli.runs import (
    ChannelsLastOption,
    CompileOption,
    DeviceOption,
    PrecisionOption,
    SamplesOption,
    WidthOption,
    known_precision,
)
from robustbench_vit.errors import InputError
from robustbench_vit.running.memory import keep_freed_memory

if TYPE_CHECKING:
    from robustbench_vit.data import Dataset
    from robustbench_vit.records import Record


ModelArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg",
        metavar="NAME=VALUE",
        help="A setting of the model, e.g. keep_rate=0.7; may be given several times.",
    ),
]


@app.command()
def attack(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name: ours (`rbvit list models`) or any timm classifier.")],
    data: Annotated[str, typer.Option(help="A dataset's name (`rbvit list datasets`) or the path of an .npz file.")],
    card: Annotated[str, typer.Option("--attack", help="An attack card's name (`rbvit list attacks`).")] = "autoattack",
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    eps: Annotated[
        str, typer.Option(help="Radius of the budget, e.g. 8/255; several, separated by commas, give a curve.")
    ] = "8/255",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors file, or .pt with tensors only.")
    ] = None,
    defense: Annotated[
        str | None, typer.Option(help="The defense card whose architecture change the weights were trained with.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Channel means of the normalisation, e.g. .49,.48,.45.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel standard deviations.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=2, help="Default: the dataset's; for an .npz file the model's own.")
    ] = None,
    model_arg: ModelArgOption = None,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "test",
    n: SamplesOption = None,
    seed: Annotated[int, typer.Option(help="Of the attacks' noise.")] = 0,
    randomness: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What in the model answers at random, in words.")
    ] = None,
    clean_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="What it should be on these samples; another one is refused.")
    ] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="Another model by name, whose adversarial images are tried on this one.")
    ] = None,
    surrogate_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Its weights.")] = None,
    device: DeviceOption = "cpu",
    width: WidthOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    channels_last: ChannelsLastOption = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the journal and the record go; default: runs/attack.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Save a contact sheet (PNG) there: clean, adversarial, difference, attention."
        ),
    ] = None,
    pictures_n: Annotated[int, typer.Option(min=1, max=64, help="Samples on that sheet, broken ones first.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="32 samples and a few steps: does it run?")] = False,
) -> None:
    """Attack one model and say how robust it is. Run the same command again to resume."""
    from robustbench_vit.evaluation import evaluate
    from robustbench_vit.progress import bar
    from robustbench_vit.running.board import Interrupted
    from robustbench_vit.running.single import ModelChoice, builder_args, choose_model, chosen_data, numbers

    keep_freed_memory()
    workspace = state(context).workspace
    radii = numbers(eps, "--eps")
    samples = chosen_data(data, split, n, smoke)
    if pictures is not None:
        _check_pictures(pictures, samples)
    means, stds = (numbers(text, name) if text else None for text, name in ((mean, "--mean"), (std, "--std")))
    choice = ModelChoice(model, weights, defense, means, stds, builder_args(model_arg or ()), num_classes)
    built, about = choose_model(choice, samples, workspace)
    other = None
    if surrogate is None and surrogate_weights is not None:
        raise InputError("--surrogate-weights needs --surrogate, the name of that model")
    if surrogate is not None:  # images in [0, 1] enter it as they enter the model
        choice = ModelChoice(surrogate, surrogate_weights, None, means, stds, num_classes=num_classes)
        other, _ = choose_model(choice, samples, workspace)
    folder = out or Path("runs") / ("attack-smoke" if smoke else "attack")
    try:
        with bar(model, len(samples), smoke) as watch:
            record = evaluate(
                built, samples, None, card, norm, radii, seed, device, width,
                out=folder, workspace=workspace, entry=about, smoke=smoke, watch=watch,
                randomness=randomness, clean_accuracy=clean_accuracy, surrogate=other,
                precision=known_precision(precision) or "fp32", compiled=compiled, channels_last=channels_last,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what is decided is kept in {folder}. Run the same command again to go on."
        ) from None
    name = f"{model}-{about['weights_sha256'][:8]}-{card}-seed-{seed}-{record.protocol_id}"
    path = record.save(folder / f"{name}.json")
    sheet = None if pictures is None else pictures / f"{name}.png"
    _print(record, card, {"record": path, **({} if sheet is None else {"pictures": sheet})}, as_json)
    if sheet is not None:
        _draw(record, built, samples, sheet, pictures_n, device)


def _check_pictures(folder: Path, samples: Dataset) -> None:
    """Raises before the attack what would stop its pictures afterwards."""
    from robustbench_vit.pictures import check_drawable, ready

    check_drawable(samples)
    ready(folder)


def _draw(record: Record, model: Any, samples: Dataset, path: Path, n: int, device: str) -> None:
    from robustbench_vit.pictures import save_pictures
    from robustbench_vit.subject import find_device, placed

    with placed(model, find_device(device, model)):
        save_pictures(record, model, samples, path, n)


def _print(record: Record, card: str, files: Mapping[str, Path], as_json: bool) -> None:
    import json

    from robustbench_vit.boards.summary import summary, summary_lines

    if as_json:
        typer.echo(json.dumps({**summary(record, card), **{what: str(path) for what, path in files.items()}}, indent=1))
        return
    for line in summary_lines(record, card):
        typer.echo(line)
    for what, path in files.items():
        typer.echo(f"{what}: {path}")


@app.command()
def train(
    context: typer.Context,
    defense: Annotated[str, typer.Argument(help="A defense card's name (`rbvit list defenses`).")],
    model: Annotated[str, typer.Option(help="A model's name: ours (`rbvit list models`) or any timm classifier.")],
    data: Annotated[str, typer.Option(help="A dataset's name (`rbvit list datasets`).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where weights, log and checkpoint go.")],
    model_arg: ModelArgOption = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the batches and the attacks.")] = 0,
    device: DeviceOption = "cpu",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the card's number.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; weights are bit-identical for equal numbers.")] = 1,
    plot: Annotated[bool, typer.Option("--plot", help="Then draw the log as log.png beside it.")] = False,
) -> None:
    """Train a model by a defense card. Run the same command again to resume after an interruption."""
    import torch

    from robustbench_vit.defenses.shares import first_process
    from robustbench_vit.defenses.train import train_defense
    from robustbench_vit.diagnostics.norms_plot import require_matplotlib
    from robustbench_vit.progress import training_bar
    from robustbench_vit.running.board import Interrupted
    from robustbench_vit.running.single import builder_args

    keep_freed_memory()
    torch.set_num_threads(threads)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if plot:
        require_matplotlib()
    try:
        with training_bar(f"{model} + {defense}") as watch:
            args, workspace = builder_args(model_arg or ()), state(context).workspace
            path = train_defense(defense, model, data, out, seed, device, workspace, watch, epochs, args)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the last finished epoch is kept in {out}. Run the same command again to go on."
        ) from None
    if first_process():
        _say_trained(path, f"{model} + {defense}, seed {seed}" if plot else None)


def _say_trained(weights: Path, title: str | None) -> None:
    """Names what training made; with a title its log is drawn, too."""
    from robustbench_vit.defenses.checkpoint import read_log
    from robustbench_vit.defenses.curves import PICTURE, learning_curves
    from robustbench_vit.defenses.selection import said
    from robustbench_vit.storage import write_atomic

    log = read_log(weights.parent)
    if kept := said(log):
        typer.echo(f"kept: {kept}")
    if title is not None:
        write_atomic(weights.parent / PICTURE, learning_curves(log, title))
        typer.echo(f"curves: {weights.parent / PICTURE}")
    typer.echo(f"weights: {weights}")
