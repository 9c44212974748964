"""rbvit list, show, check: what there is, what it says, whether it is right."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_vit.cards import Loaded, Workspace, open_workspace
from robustbench_vit.cards.schema import ANY_NORM
from robustbench_vit.cli.app import app, state
from robustbench_vit.errors import CardError, UnknownNameError


class Kind(StrEnum):
    """What can be listed and shown."""

    MODELS = "models"
    ATTACKS = "attacks"
    DEFENSES = "defenses"
    DATASETS = "datasets"
    BOARDS = "boards"

    @property
    def singular(self) -> str:
        """As errors and workspaces call it."""
        return self.value.removesuffix("s")

    @classmethod
    def _missing_(cls, value: object) -> Kind | None:
        """The singular is accepted too."""
        return next((kind for kind in cls if kind.singular == value), None)


KIND_HELP = "models, attacks, defenses, datasets or boards"


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise UnknownNameError("kind", text, [kind.value for kind in Kind]) from None


@dataclass(frozen=True)
class Listed:
    """A line of `rbvit list`."""

    name: str
    about: str


@app.command("list")
def list_(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{KIND_HELP}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be named: models, attacks, defenses, datasets or boards."""
    chosen = _kind(kind)
    lines, faults = _listed(chosen, state(context).workspace)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False))
    else:
        width = max((len(line.name) for line in lines), default=0)
        for line in lines:
            typer.echo(f"{line.name.ljust(width)}  {line.about}")
        if chosen is Kind.MODELS:
            typer.echo("Any timm classifier can be named too, for example vit_tiny_patch16_224.")
        if chosen is Kind.DATASETS:
            typer.echo("A path to an .npz file with arrays x and y can be named too.")
    if faults:
        raise CardError(faults)


def _listed(kind: Kind, workspace: Workspace) -> tuple[list[Listed], list[str]]:
    """What there is of a kind, and the faults of cards that cannot be listed."""
    if kind is Kind.MODELS:
        from robustbench_vit.models.catalogue import model_catalogue

        return [Listed(name, about) for name, about in model_catalogue().items()], []
    if kind is Kind.DATASETS:
        from robustbench_vit.data import datasets

        return [Listed(name, _first_line(datasets.get(name))) for name in datasets.names()], []
    cards, faults = workspace.load_all(kind.singular)
    return [Listed(loaded.name, loaded.card.about) for loaded in sorted(cards, key=lambda card: card.name)], faults


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


@app.command()
def show(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{KIND_HELP} (the singular works too).")],
    name: Annotated[str, typer.Argument(help="A name from `rbvit list KIND`.")],
) -> None:
    """Show one thing: what it is, where it comes from, its file, and every setting."""
    typer.echo(_shown(_kind(kind), name, state(context).workspace))


def _shown(kind: Kind, name: str, workspace: Workspace) -> str:
    if kind is Kind.MODELS:
        from robustbench_vit.cli.sources import model_source

        return model_source(name)
    if kind is Kind.DATASETS:
        from robustbench_vit.data import datasets

        loader = datasets.get(name)
        return f"dataset {name}\nfile: {inspect.getsourcefile(inspect.unwrap(loader))}\n\n{inspect.getdoc(loader)}"
    loaded = getattr(workspace, kind.singular)(name)
    lanes = workspace.lanes_by_norm(name) if hasattr(loaded.card, "lanes") else {}
    return "\n".join([f"{kind.singular} {loaded.name}", f"file: {loaded.path}", "", _settings(loaded, lanes)])


def _settings(loaded: Loaded[Any], lanes: dict[str, list[Loaded[Any]]]) -> str:
    """The card as YAML, with what it extends filled in and a cascade's lanes spelled out."""
    import yaml

    fields = loaded.card.model_dump(mode="json")
    if lanes:
        fields["lanes"] = {norm: _lanes(found) for norm, found in lanes.items()}
        fields["lanes"] = fields["lanes"].get(ANY_NORM, fields["lanes"])
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120).rstrip()


def _lanes(lanes: list[Loaded[Any]]) -> dict[str, Any]:
    return {lane.name: lane.card.model_dump(mode="json", exclude={"reference"}) for lane in lanes}


@app.command()
def check(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="A workspace: a folder with attacks/, defenses/ or leaderboards/.")
    ] = None,
) -> None:
    """Validate every card of the workspace and name every fault."""
    from robustbench_vit.check import check_workspace

    cards, faults = check_workspace(state(context).workspace if path is None else open_workspace(path))
    if faults:
        raise CardError([f"{len(faults)} fault{'s' if len(faults) > 1 else ''}", *faults])
    typer.echo(f"{cards} cards are valid")
