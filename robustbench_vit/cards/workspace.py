"""Folders of cards: the built-in ones with a user's laid over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from robustbench_vit.cards.faults import describe
from robustbench_vit.cards.reader import read_mapping
from robustbench_vit.cards.schema import (
    ANY_NORM,
    AlgorithmCard,
    AttackCard,
    BoardCard,
    CascadeCard,
    DataChoice,
    DefenseCard,
    Entry,
    Normalisation,
    Validation,
)
from robustbench_vit.errors import CardError, InputError, UnknownNameError

C = TypeVar("C", bound=BaseModel)

FOLDERS = {"attack": "attacks", "defense": "defenses", "board": "leaderboards"}
"""The folder of each kind of card."""

_FIELDS_AT = {
    "board": {
        "": (*BoardCard.model_fields, "extends"),
        "data": tuple(DataChoice.model_fields),
        "entries": tuple(Entry.model_fields),
        "entries.normalise": tuple(Normalisation.model_fields),
    },
    "defense": {"": (*DefenseCard.model_fields, "extends"), "validation": tuple(Validation.model_fields)},
    "attack": {"": (*CascadeCard.model_fields, "extends")},  # an algorithm's fields are checked when it is built
}


@dataclass(frozen=True)
class Loaded(Generic[C]):
    """A card with its name, the file it came from, and that file's name in messages."""

    name: str
    path: Path
    shown: str
    card: C


@dataclass(frozen=True)
class Workspace:
    """Layers of folders, built-in first; names are unique over all layers."""

    layers: tuple[Path, ...]
    given: tuple[Loaded[Any], ...] = ()  # attack cards that came as values, not as files

    def with_attack(self, loaded: Loaded[Any]) -> Workspace:
        """This workspace with one more attack card, which is looked up first."""
        return Workspace(self.layers, (*self.given, loaded))

    def files(self, kind: str) -> dict[str, Path]:
        """Every card of `kind` by name. Raises CardError naming both files when a name stands twice."""
        found, faults = self._files(kind)
        if faults:
            raise CardError(faults)
        return found

    def _files(self, kind: str) -> tuple[dict[str, Path], list[str]]:
        """The first card of each name, and a fault for every further one."""
        found: dict[str, Path] = {}
        faults = []
        for layer in self.layers:
            for path in sorted((layer / FOLDERS[kind]).glob("*.yaml")):
                if path.stem in found:
                    faults.append(
                        f"{kind} '{path.stem}' stands twice: {found[path.stem]} and {path}; rename one of them"
                    )
                found.setdefault(path.stem, path)
        return found, faults

    def names(self, kind: str) -> list[str]:
        """The names of all cards of `kind`, sorted."""
        return sorted(self.files(kind))

    def attack(self, name: str, where: str | None = None) -> Loaded[Any]:
        """The attack card called `name` (an AlgorithmCard or a CascadeCard)."""
        for loaded in self.given:
            if loaded.name == name:
                return loaded
        return self._load("attack", name, where)

    def defense(self, name: str, where: str | None = None) -> Loaded[DefenseCard]:
        """The defense card called `name`."""
        return self._load("defense", name, where)

    def board(self, name: str) -> Loaded[BoardCard]:
        """The board called `name`; a path to a board file works too."""
        if name.endswith((".yaml", ".yml")):
            path = Path(name)
            if not path.is_file():
                raise InputError(f"no board file at {name}; known boards: {', '.join(self.names('board')) or 'none'}")
            return self._read("board", path)
        return self._load("board", name, None)

    def lanes(self, name: str, norm: str, where: str | None = None) -> list[Loaded[AlgorithmCard]]:
        """The algorithm cards that the attack card `name` stands for: itself, or a cascade's lanes in order."""
        loaded = self.attack(name, where)
        if not isinstance(loaded.card, CascadeCard):
            return [loaded]
        chosen: Mapping[str, list[str]] = {**loaded.card.lanes}
        found = chosen.get(norm, chosen.get(ANY_NORM))
        if found is None:
            raise CardError(f"{loaded.shown}: has lanes for {', '.join(chosen)}, not for {norm}")
        return self._lanes(loaded, found)

    def lanes_by_norm(self, name: str) -> dict[str, list[Loaded[AlgorithmCard]]]:
        """The lanes of a cascade for every norm its card names ('all' when it has one list); none for an algorithm."""
        loaded = self.attack(name)
        chosen = loaded.card.lanes if isinstance(loaded.card, CascadeCard) else {}
        return {norm: self._lanes(loaded, lanes) for norm, lanes in chosen.items()}

    def _lanes(self, loaded: Loaded[CascadeCard], names: list[str]) -> list[Loaded[AlgorithmCard]]:
        lanes = [self.attack(lane, loaded.shown) for lane in names]
        for lane in lanes:
            if isinstance(lane.card, CascadeCard):
                raise CardError(f"{loaded.shown}: lane '{lane.name}' is itself a cascade; list its lanes instead")
        return lanes

    def stand_in(self, name: str, policy: str, where: str | None = None) -> str:
        """The attack card that runs in the place of `name` under a policy: a stand-in, or the card itself."""
        loaded = self.attack(name, where)
        named: Mapping[str, str] = {**loaded.card.stand_ins} if isinstance(loaded.card, CascadeCard) else {}
        if policy in named:
            self.attack(named[policy], loaded.shown)  # so that the error names the card that names it
        return named.get(policy, name)

    def load_all(self, kind: str) -> tuple[list[Loaded[Any]], list[str]]:
        """Every readable card of `kind`, and every fault of the others."""
        cards: list[Loaded[Any]] = []
        files, faults = self._files(kind)
        for path in files.values():
            try:
                cards.append(self._read(kind, path))
            except CardError as error:
                faults.extend(error.faults)
            except UnknownNameError as error:
                faults.append(str(error))
        return cards, list(dict.fromkeys([*faults, *self._misnamed(kind)]))

    def _misnamed(self, kind: str) -> list[str]:
        """Files beside the cards that look like cards and would be ignored."""
        return [
            f"{self._shown(path)}: cards end in .yaml; rename it to {path.stem}.yaml"
            for layer in self.layers
            for path in sorted((layer / FOLDERS[kind]).glob("*.yml"))
        ]

    def _load(self, kind: str, name: str, where: str | None) -> Loaded[Any]:
        files = self.files(kind)
        if name not in files:
            raise UnknownNameError(kind, name, files, where)
        return self._read(kind, files[name])

    def _shown(self, path: Path) -> str:
        for layer in reversed(self.layers):  # a user's folder may lie inside the built-in one
            if path.resolve().is_relative_to(layer.resolve()):
                return path.resolve().relative_to(layer.resolve()).as_posix()
        return str(path)

    def _read(self, kind: str, path: Path) -> Loaded[Any]:
        shown = self._shown(path)
        fields = self._fields(kind, path, shown, ())
        try:
            card = _schema(kind, fields, shown).model_validate(fields)
        except ValidationError as error:
            raise CardError(describe(error, shown, _FIELDS_AT[kind])) from error
        return Loaded(path.stem, path, shown, card)

    def _fields(self, kind: str, path: Path, shown: str, seen: tuple[Path, ...]) -> dict[str, Any]:
        """The card's fields laid over those of the card it extends."""
        if path in seen:
            chain = " -> ".join(self._shown(p) for p in (*seen, path))
            raise CardError(f"{shown}: cards extend each other in a circle: {chain}")
        fields = read_mapping(path, shown)
        parent = fields.pop("extends", None)
        if parent is None:
            return fields
        files = self.files(kind)
        if not isinstance(parent, str) or parent not in files:
            raise UnknownNameError(f"{kind} to extend", str(parent), files, shown)
        return {**self._fields(kind, files[parent], self._shown(files[parent]), (*seen, path)), **fields}


def _schema(kind: str, fields: dict[str, Any], shown: str) -> type[BaseModel]:
    if kind != "attack":
        return BoardCard if kind == "board" else DefenseCard
    if "algorithm" in fields and "lanes" in fields:
        raise CardError(f"{shown}: an attack has either an 'algorithm' or 'lanes' (a cascade), not both")
    if "algorithm" not in fields and "lanes" not in fields:
        raise CardError(f"{shown}: missing field 'algorithm' (or 'lanes', for a cascade)")
    return CascadeCard if "lanes" in fields else AlgorithmCard


def builtin_layer() -> Path:
    """The folder with the built-in cards: inside an installed wheel, or the repository of an editable install."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_workspace"
    return installed if installed.is_dir() else package.parent


def open_workspace(user: Path | None = None) -> Workspace:
    """The built-in cards with the folder `user` (default: the current one, when it holds cards) laid over them.

    Raises InputError when `user` is given and holds none of the three folders.
    """
    builtin = builtin_layer()
    folder = Path.cwd() if user is None else user
    has_cards = any((folder / name).is_dir() for name in FOLDERS.values())
    if user is not None and not has_cards:
        raise InputError(f"{user} is no workspace: it has none of the folders {', '.join(FOLDERS.values())}")
    if not has_cards or folder.resolve() == builtin.resolve():
        return Workspace((builtin,))
    return Workspace((builtin, folder.resolve()))


def resolved(card: AttackCard, lanes: list[Loaded[AlgorithmCard]]) -> dict[str, Any]:
    """What of an attack card decides numbers: its version and its lanes' algorithms and settings, without the prose."""
    steps = [{"name": lane.name, **_deciding(lane.card)} for lane in lanes]
    return cast(dict[str, Any], {"version": card.version, "lanes": steps})


def _deciding(card: AlgorithmCard) -> dict[str, Any]:
    return {"version": card.version, "algorithm": card.algorithm, **dict(sorted(card.settings.items()))}
