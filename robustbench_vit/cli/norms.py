"""rbvit norms: how much each layer of a model can enlarge what it is given."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vit.cards import Workspace
from robustbench_vit.cli.app import app, state
from robustbench_vit.cli.runs import EntryOption
from robustbench_vit.cli.single import ModelArgOption
from robustbench_vit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from robustbench_vit.diagnostics.norms import ModelNorms
    from robustbench_vit.diagnostics.operator_norm import Order


@dataclass(frozen=True)
class Wanted:
    """What the command line says of the models."""

    model: str | None
    weights: tuple[Path, ...]
    defense: str | None
    data: str | None
    shape: tuple[int, ...] | None  # (c, h, w)
    num_classes: int | None
    args: dict[str, Any]
    board: str | None
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Measurable:
    """A model and an image it takes."""

    name: str
    model: nn.Module
    image: Tensor  # (1, c, h, w)


@app.command()
def norms(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A model's name: ours (`rbvit list models`) or any timm classifier.")
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Several are compared. Default: fresh weights, as training starts with."),
    ] = None,
    board: Annotated[str | None, typer.Option(help="Compare entries of this board, instead of MODEL.")] = None,
    entry: EntryOption = None,
    data: Annotated[str | None, typer.Option(help="The dataset whose images the model takes.")] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Their size. Default: the dataset's, else the model's own.")
    ] = None,
    ord: Annotated[str, typer.Option("--ord", help="Which norms, of 1, 2 and inf.")] = "1,2,inf",
    defense: Annotated[
        str | None, typer.Option(help="The defense card whose architecture change the weights were trained with.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=2, help="Default: the dataset's, else the model's own.")
    ] = None,
    model_arg: ModelArgOption = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every norm there.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw densities and layers there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the exact norms of every layer of a model, or of several side by side."""
    from robustbench_vit.diagnostics.norms import model_norms
    from robustbench_vit.running.single import builder_args

    orders, shape = _orders(ord), None if input_size is None else _shape(input_size)
    _check_plot(plot)
    wanted = Wanted(
        model, tuple(weights or ()), defense, data, shape, num_classes,
        builder_args(model_arg or ()), board, tuple(entry or ()),
    )  # fmt: skip
    found = [model_norms(m.model, m.image, m.name, orders) for m in _models(wanted, state(context).workspace)]
    files = _written(found, csv, plot)
    _print(found, files, as_json)


def _orders(text: str) -> list[Order]:
    from robustbench_vit.diagnostics.operator_norm import named_order

    return list(dict.fromkeys(named_order(word.strip()) for word in text.split(",")))


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.replace("x", ",").split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise InputError(f"--input-size: expected channels, height and width, such as 3,224,224, got '{text}'")
    return tuple(map(int, sizes))


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    from robustbench_vit.diagnostics.norms_plot import require_matplotlib

    if plot.suffix != ".png":
        raise InputError(f"--plot writes a .png file, not '{plot.name}'")
    require_matplotlib()


def _models(wanted: Wanted, workspace: Workspace) -> list[Measurable]:
    """The models to measure; raises InputError for options that don't go together."""
    if (wanted.model is None) == (wanted.board is None):
        raise InputError("name a MODEL, or a board with --board NAME (and its entries with --entry)")
    if wanted.board is None:
        if wanted.entries:
            raise InputError("--entry names a row of a board: give --board, too")
        return _named(wanted, workspace)
    if wanted.weights or wanted.defense or wanted.args or wanted.num_classes:
        raise InputError("a board says how its entries are built: leave out --weights, --defense and model settings")
    return _entries(wanted, workspace)


def _entries(wanted: Wanted, workspace: Workspace) -> list[Measurable]:
    """Entries of a board with their weights."""
    import torch

    from robustbench_vit.running.entries import chosen, entry_subject

    board = workspace.board(wanted.board or "")
    entries = chosen(board, wanted.entries)
    shape = _data_shape(wanted) or _image_shape(board.card.data.name, board.card.data.split)
    image = torch.zeros(1, *shape)
    return [Measurable(each.name, entry_subject(board, each, workspace).model, image) for each in entries]


def _named(wanted: Wanted, workspace: Workspace) -> list[Measurable]:
    """One model by name, with each of the weights files, or with fresh weights."""
    if not wanted.weights:
        return [_built(wanted, None, f"{wanted.model} (fresh weights)", workspace)]
    names = _labels(wanted.weights)
    return [_built(wanted, path, name, workspace) for path, name in zip(wanted.weights, names, strict=True)]


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of weights files without their folders, where that tells them apart."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else str(path.with_suffix("")) for path in paths]


def _built(wanted: Wanted, weights: Path | None, name: str, workspace: Workspace) -> Measurable:
    import torch

    from robustbench_vit.defenses.recipe import apply_architecture
    from robustbench_vit.models.build import build_model
    from robustbench_vit.models.weights import load_weights

    shape = _data_shape(wanted)
    follows = {} if shape is None else {"in_chans": shape[0]}
    if classes := wanted.num_classes or _classes(wanted.data):
        follows["num_classes"] = classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # fresh weights are the same each time
        model = build_model(wanted.model or "", **{**follows, **wanted.args})
        if wanted.defense is not None:
            model = apply_architecture(workspace.defense(wanted.defense).card, model)
    if weights is not None:
        load_weights(model, weights)
    shape = shape or (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if shape is None:
        raise InputError(f"'{wanted.model}' has no image size of its own; give --data NAME or --input-size C,H,W")
    return Measurable(name, model, torch.zeros(1, *shape))


def _data_shape(wanted: Wanted) -> tuple[int, ...] | None:
    """(c, h, w) as the command line gives it."""
    return wanted.shape or (None if wanted.data is None else _image_shape(wanted.data, "test"))


def _image_shape(data: str, split: str) -> tuple[int, ...]:
    from robustbench_vit.data import load_dataset

    return tuple(load_dataset(data, split).x.shape[1:])


def _classes(data: str | None) -> int | None:
    """The dataset's number of classes; None for a user's arrays, which may lack some."""
    from robustbench_vit.data import load_dataset

    return None if data is None or data.endswith(".npz") else load_dataset(data).num_classes


def _written(found: Sequence[ModelNorms], csv: Path | None, plot: Path | None) -> list[Path]:
    """Writes the files asked for."""
    from robustbench_vit.diagnostics.norms import csv_text
    from robustbench_vit.diagnostics.norms_plot import density_plot
    from robustbench_vit.storage import write_atomic

    if csv is not None:
        write_atomic(csv, csv_text(found).encode())
    if plot is not None:
        write_atomic(plot, density_plot(found))
    return [path for path in (csv, plot) if path is not None]


def _print(found: Sequence[ModelNorms], files: Sequence[Path], as_json: bool) -> None:
    from robustbench_vit.diagnostics.norms import comparison, table

    if as_json:
        report = {"models": [each.to_dict() for each in found], "files": [str(path) for path in files]}
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
        return
    lines = [line for each in found for line in (*table(each), "")]
    if len(found) > 1:
        lines += [*comparison(found), ""]
    for line in [*lines[:-1], *(f"wrote {path}" for path in files)]:
        typer.echo(line)
