"""The shapes of cards: what an attack, a defense and a board must state.

A card never has hidden defaults: a missing setting is a fault. The settings of an algorithm (or of a loss, a
regulariser, …) stand beside the common fields and are checked against the algorithm's own dataclass when it is built,
because that needs torch and reading cards does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from robustbench_vit.cards.numbers import Number

IntervalName = Literal["wilson", "clopper-pearson"]
"""How intervals of a share are made; see `robustbench_vit.statistics.INTERVALS`."""


class Card(BaseModel):
    """What every card states: a version of its settings, what it is, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[StrictInt, Field(ge=1)]
    about: Annotated[StrictStr, Field(min_length=1)]
    reference: Annotated[StrictStr, Field(min_length=1)]


class Component(BaseModel):
    """A named part of a card with settings of its own, e.g. `{name: norm-decay, beta: 1e-3, …}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: StrictStr

    @property
    def settings(self) -> dict[str, Any]:
        """Every field but the name."""
        return dict(self.model_extra or {})


class AlgorithmCard(Card):
    """One attack algorithm with its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    algorithm: StrictStr

    @model_validator(mode="before")
    @classmethod
    def _no_budget(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and (found := [name for name in ("norm", "eps", "seed") if name in fields]):
            raise ValueError(f"'{found[0]}' is no setting of an attack; boards and commands give it, so leave it out")
        return fields

    @property
    def settings(self) -> dict[str, Any]:
        """Every field that belongs to the algorithm."""
        return dict(self.model_extra or {})


Lanes = Annotated[list[StrictStr], Field(min_length=1)]
NormKey = Literal["linf", "l2", "l1"]
Policy = Literal["A", "B", "C"]
"""How a model is attacked: A when it is deterministic and differentiable, B when it answers at random, C when it has no
useful gradient."""
ANY_NORM = "all"
Precision = Literal["fp32", "tf32", "bf16"]
"""In which a model is asked while adversarial images are searched: IEEE float32, TF32, or mixed with bfloat16."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class CascadeCard(Card):
    """Attack cards tried in order, each on the samples that survived the ones before it.

    `lanes` is a list, or a list for each norm. `stand_ins` names the attack cards that run in this one's place on
    models under policy B or C; without one, the card itself runs.
    """

    lanes: Annotated[
        dict[Literal["all", "linf", "l2", "l1"], Lanes],
        Field(min_length=1),
        BeforeValidator(lambda value: {ANY_NORM: value} if isinstance(value, list) else value),
    ]
    stand_ins: dict[Literal["B", "C"], StrictStr] = Field(default_factory=dict)


AttackCard = AlgorithmCard | CascadeCard


class Validation(BaseModel):
    """Robust accuracy on a part of the training set after every epoch; the epoch where it is largest is kept.

    `share` of every class is held out, the same samples for every training seed: `seed` is that of the choice and of
    the attack's noise. Training stops after `patience` epochs in a row that were no better; null: never before its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: Annotated[Number, Field(gt=0, lt=1)]
    seed: StrictInt
    attack: StrictStr
    norm: NormKey
    eps: Annotated[Number, Field(gt=0)]
    patience: Annotated[StrictInt, Field(ge=1)] | None

    @field_validator("eps")
    @classmethod
    def _unit(cls, eps: float, info: ValidationInfo) -> float:
        if info.data.get("norm") == "linf" and eps > 1:
            raise ValueError(f"{eps:g} is larger than the whole range of a pixel in [0, 1]; did you mean {eps:g}/255?")
        return eps


class DefenseCard(Card):
    """A training recipe: an architecture change, a loss, regularisers, and how to optimise them."""

    architecture: Component | None
    loss: Component
    regularisers: list[Component]
    optimiser: Component
    schedule: Component
    epochs: Annotated[StrictInt, Field(ge=1)]
    batch_size: Annotated[StrictInt, Field(ge=1)]
    gradient_clip: Number | None
    weight_average: Number | None
    augment: Component | None
    precision: Literal["fp32", "bf16"]
    validation: Validation | None


def _all_or_a_number(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"expected 'all' or how many samples to take, got {value!r}")


class DataChoice(BaseModel):
    """Which samples a board is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr
    split: StrictStr
    samples: Annotated[Literal["all"] | int, BeforeValidator(_all_or_a_number)]


class Normalisation(BaseModel):
    """Channel means and standard deviations of images in [0, 1], put inside the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: list[Number]
    std: list[Number]


def _name_of_file(value: Any) -> Any:
    """Entry names become file names and stand in tables: no separators, no markup, nothing invisible."""
    if isinstance(value, str) and (not value.isprintable() or value[:1] in ("", ".") or set(value) & set('/\\<>|`"')):
        raise ValueError(f"an entry's name is used as a file name, got {value!r}; use letters, digits, '-' and '.'")
    return value


class Entry(BaseModel):
    """A row of a board: a model with its defense and weights; without `normalise`, images enter it as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[StrictStr, BeforeValidator(_name_of_file)]
    model: StrictStr
    model_args: dict[str, Any] = Field(default_factory=dict)
    defense: StrictStr
    weights: StrictStr
    normalise: Normalisation | None = None
    randomness: StrictStr | None = None  # what in the model is random, in words
    clean_accuracy: Annotated[Number, Field(ge=0, le=1)] | None = None  # on all the board's samples, a canary
    surrogate: StrictStr | None = None  # another entry, whose adversarial images are tried on this one
    family: StrictStr | None = None  # entries of a family are one recipe, trained with other seeds
    training_seed: StrictInt | None = None
    adaptive: list[StrictStr] = Field(default_factory=list)  # attack cards that run on this entry beside the board's


def _precisions(value: Any) -> Any:
    """One word or several different ones, as a list."""
    words = value if isinstance(value, list) else [value]
    if not words or any(word not in PRECISIONS for word in words) or len(set(words)) < len(words):
        raise ValueError(f"should be one of {', '.join(PRECISIONS)}, or a list of them, got {value!r}")
    return words


def adaptive_fault(adaptive: Sequence[str], attacks: Sequence[str]) -> str | None:
    """Why these attacks cannot run on one entry beside the board's; None when they can."""
    if shared := [name for name in adaptive if name in attacks]:
        return f"adaptive attack '{shared[0]}' is one of the board's attacks, which run on every entry; leave it out"
    if twice := [name for name in adaptive if adaptive.count(name) > 1]:
        return f"adaptive attack '{twice[0]}' stands twice; name each once"
    return None


class BoardCard(Card):
    """A leaderboard: samples, budgets and attacks shared by all its entries, and the columns of its table.

    Rows of any `precision` named may share the table; runs use the first one. `alpha` is the significance level of
    ranks, over all pairs of entries. A board without entries shows what papers report.
    """

    data: DataChoice
    norm: NormKey
    eps: Annotated[list[Number], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1)]
    attacks: Annotated[list[StrictStr], Field(min_length=1)]
    precision: Annotated[list[Precision], BeforeValidator(_precisions)]
    seed: StrictInt
    confidence: Number
    interval: IntervalName
    alpha: Number
    columns: Annotated[list[StrictStr], Field(min_length=1)]
    entries: list[Entry]

    @property
    def adaptive(self) -> list[str]:
        """The attack cards that run on single entries, each once, in the order of the entries."""
        return list(dict.fromkeys(attack for entry in self.entries for attack in entry.adaptive))

    @model_validator(mode="after")
    def _unique_entries(self) -> BoardCard:
        names = [entry.name for entry in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"entries need different names; repeated: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _adaptive_beside_the_attacks(self) -> BoardCard:
        for entry in self.entries:
            if fault := adaptive_fault(entry.adaptive, self.attacks):
                raise ValueError(f"entry '{entry.name}': {fault}")
        return self

    @model_validator(mode="after")
    def _different_trainings(self) -> BoardCard:
        seen: dict[tuple[str, int], str] = {}
        for entry in self.entries:
            if entry.family is None:
                continue
            if entry.training_seed is None:
                raise ValueError(f"entry '{entry.name}' has a 'family', so it needs its 'training_seed' too")
            other = seen.setdefault((entry.family, entry.training_seed), entry.name)
            if other != entry.name:
                raise ValueError(
                    f"entries '{other}' and '{entry.name}' of family '{entry.family}' have one training seed,"
                    f" {entry.training_seed}; trainings of a family need different ones"
                )
        return self
