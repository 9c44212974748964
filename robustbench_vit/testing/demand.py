"""What `@pytest.mark.robustness(…)` asks for, checked against the cards. No torch, no pytest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_vit.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from robustbench_vit.cards import BoardCard, Loaded, Workspace

MARKER = "robustness"


@dataclass(frozen=True)
class Demand:
    """The arguments of a test's markers; without board and entry, what the fixture's evaluations must reach."""

    board: str | None = None  # its name, or the path of its card
    entry: str | None = None
    min: float | None = None  # smallest admitted robust accuracy, a share
    max_drop: float | None = None  # largest admitted drop against the board's record, a share
    alpha: float | None = None  # level at which a drop is told from chance; default: the board's
    attack: str | None = None  # default: the board's last, which ranks
    eps: float | None = None  # default: the board's only one

    @property
    def of_board(self) -> bool:
        """Whether an entry of a board is asked about, not a model that the test brings along."""
        return self.board is not None


@dataclass(frozen=True)
class Marker:
    """One use of the marker, on a function, a class or a module (`place`)."""

    place: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


def read_demand(markers: Iterable[Marker]) -> Demand:
    """The keywords of a test's markers together, the closest marker (they come first) winning.

    Raises InputError for arguments that make no sense, and where two markers on one place contradict each other.
    """
    held: dict[str, Any] = {}
    places: dict[str, Any] = {}
    for marker in markers:
        if marker.arguments:
            raise InputError(f"{MARKER}(…) takes keywords only, got {marker.arguments[0]!r}; say board=…, entry=…")
        for name, value in marker.keywords.items():
            _require_known(name)
            if name in held and places[name] is marker.place and held[name] != value:
                raise InputError(
                    f"two markers on one test: {name}={held[name]!r} and {name}={value!r}; parametrise the test instead"
                )
            if name not in held:
                held[name], places[name] = value, marker.place
    return _checked(held)


def _require_known(name: str) -> None:
    known = [field.name for field in fields(Demand)]
    if name not in known:
        raise UnknownNameError("argument", name, known, f"{MARKER}(…)")


def _checked(held: Mapping[str, Any]) -> Demand:
    values = dict(held)
    for name in ("board", "entry", "attack"):
        if name in held and not isinstance(held[name], str):
            raise InputError(f"{MARKER}(…): {name} is a name, got {held[name]!r}")
    for name in ("min", "max_drop", "alpha", "eps"):
        if name in held:
            values[name] = _number(name, held[name])
    if "min" in held and not 0 <= values["min"] <= 1:
        raise InputError(f"{MARKER}(…): min is a share between 0 and 1, got {held['min']!r}{_meant(values['min'])}")
    for name in ("max_drop", "alpha"):
        if name in held and not 0 < values[name] < 1:
            raise InputError(f"{MARKER}(…): {name} lies between 0 and 1, got {held[name]!r}{_meant(values[name])}")
    demand = Demand(**values)
    _require_whole(demand)
    return demand


def _number(name: str, value: Any) -> float:
    from robustbench_vit.cards import parse_number

    try:
        return parse_number(value)
    except ValueError as error:
        raise InputError(f"{MARKER}(…): {name}: {error}") from error


def _meant(value: float) -> str:
    return f"; did you mean {value / 100:g}?" if 1 < value < 100 else ""


def _require_whole(demand: Demand) -> None:
    if (demand.board is None) != (demand.entry is None):
        given, missing = ("board", "entry") if demand.entry is None else ("entry", "board")
        raise InputError(f"{MARKER}(…) names {'a' if given == 'board' else 'an'} {given} but no {missing}; give both")
    if demand.board is None:
        alone = [name for name in ("max_drop", "alpha", "attack", "eps") if getattr(demand, name) is not None]
        if alone:
            raise InputError(f"{MARKER}(…): {', '.join(alone)} need board=… and entry=…")
    if demand.alpha is not None and demand.max_drop is None:
        raise InputError(f"{MARKER}(…): alpha belongs to max_drop=…, which is missing")


@dataclass(frozen=True)
class Asked:
    """One number of one entry of a board, found on the cards."""

    board: Loaded[BoardCard]
    entry: str
    attack: str
    eps: float


def find_asked(demand: Demand, workspace: Workspace, root: Path) -> Asked:
    """What the demand names; paths of cards are relative to `root`.

    Raises UnknownNameError naming the nearest board, entry or attack, InputError where the card leaves a choice, and
    CardError for a card that cannot be used.
    """
    name = str(demand.board)
    board = workspace.board(str(root / name) if name.endswith((".yaml", ".yml")) else name)
    card, where = board.card, board.shown
    attack = demand.attack or card.attacks[-1]
    for kind, asked, known in (
        ("entry", str(demand.entry), [entry.name for entry in card.entries]),
        ("attack", attack, card.attacks),
    ):
        if asked not in known:
            raise UnknownNameError(kind, asked, known, where)
    return Asked(board, str(demand.entry), attack, _eps(demand, board))


def _eps(demand: Demand, board: Loaded[BoardCard]) -> float:
    from robustbench_vit.cards.numbers import show_number

    held = board.card.eps
    shown = ", ".join(show_number(eps) for eps in held)
    if demand.eps is None and len(held) > 1:
        raise InputError(f"{board.shown} has several eps, {shown}; say eps=… in the marker")
    if demand.eps is not None and demand.eps not in held:
        raise InputError(f"{board.shown} has no eps {show_number(demand.eps)}, but {shown}")
    return held[0] if demand.eps is None else demand.eps
