"""The row protocol: an attack is frozen settings plus pure functions over rows.

A *row* is a sample under one restart and one target of one attack. The state of many rows is a frozen dataclass of
tensors whose dimension 0 is the row, so that rows can join and leave a running batch at any step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise


class Access(IntEnum):
    """What an attack may see of the model, from least to most."""

    DECISIONS = 1
    SCORES = 2
    GRADIENT = 3
    INTERNALS = 4


@dataclass(frozen=True)
class Start:
    """Where rows begin."""

    x0: Tensor  # (row, c, h, w) in [0, 1], the clean images
    y: Tensor  # (row,) int64, the true classes
    target: Tensor  # (row,) int64, the class aimed at; -1 when the attack is untargeted
    eps: Tensor  # (row,) radius of the budget
    restart: Tensor  # (row,) int64, which of the attack's independent runs a row is, from 0


@dataclass(frozen=True)
class Candidates:
    """What rows have to show after a step."""

    x: Tensor  # (row, c, h, w)
    found: Tensor  # bool (row,): the attack believes x to be adversarial and inside the budget
    distance: Tensor | None = None  # (row,) size of x - x0, of attacks that make it small


@dataclass(frozen=True)
class Cost:
    """Model passes of one sample that survives every row of an attack (an upper bound)."""

    forwards: int
    backwards: int


class Objective(Protocol):
    """From logits (m, classes) of the rows numbered `at` (m,) to one value per row (m,), to be increased."""

    def __call__(self, logits: Tensor, at: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Gradient:
    """The answer to a gradient query."""

    logits: Tensor  # (m, classes)
    value: Tensor  # (m,) the objective
    grad: Tensor  # (m, c, h, w) its gradient at the images


class AttendedBlock(Protocol):
    """What a block that drops tokens saw of m images; token i is the i-th one after the class token (and its like)."""

    @property
    def a(self) -> Tensor:
        """(m, tokens): the class token's attention to each token, differentiable."""
        ...

    @property
    def patches(self) -> Tensor:
        """int64 (m, tokens): each token's patch in row-major order, negative for a token made of several."""
        ...

    @property
    def kept_patches(self) -> Tensor:
        """int64 (m, kept): the patches that stayed, likewise."""
        ...

    def first(self, n: int) -> AttendedBlock:
        """The same of the first n images."""
        ...


class AttendedObjective(Protocol):
    """Like `Objective`, of what each block saw too."""

    def __call__(self, logits: Tensor, seen: list[AttendedBlock], at: Tensor, /) -> Tensor: ...


class TargetOracle(Protocol):
    """The model as an attack may see it; methods beyond the declared access do not exist.

    `rows` numbers the rows that `x` belongs to (default: all, in order); queries are counted for them. `draws` > 1
    averages the gradient over that many draws of a random model; logits and value are those of the last one.

    Batches have few sizes, and others are padded. `computed` says how many images the model sees for n; `whole` how
    many of n fill such batches, for attacks whose rows may wait for a step. Questions asked in the place of padding,
    whose answers turn out not to count, are taken off the rows' passes by `discard`.
    """

    def whole(self, n: int) -> int: ...

    def computed(self, n: int) -> int: ...

    def discard(self, rows: Tensor) -> None: ...

    def decisions(self, x: Tensor, rows: Tensor | None = None) -> Tensor: ...

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Tensor: ...

    def gradient(self, x: Tensor, objective: Objective, rows: Tensor | None = None, draws: int = 1) -> Gradient: ...

    def attended(
        self, x: Tensor, read: Callable[[list[AttendedBlock]], Tensor], rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def gradient_attended(self, x: Tensor, objective: AttendedObjective, rows: Tensor | None = None) -> Gradient: ...


@dataclass(frozen=True)
class Oracles:
    """The model under attack (and, for transfer attacks, named surrogates)."""

    target: Any  # a TargetOracle, of which only the declared access exists
    surrogate: dict[str, Any] = dataclasses.field(default_factory=dict)


S = TypeVar("S")


class RowAttack(Protocol[S]):
    """Settings of an attack and its steps; see the module's docstring."""

    lane: ClassVar[Literal["rows"]]
    access: ClassVar[Access]
    norms: ClassVar[tuple[str, ...]]
    algorithm_version: ClassVar[int]
    stop: ClassVar[
        Literal["first", "exhausted"]
    ]  # a sample is decided at its first success, or when rows are exhausted

    def restarts(self) -> int:
        """Independent runs per target."""
        ...

    def targets(self, num_classes: int) -> int:
        """Target classes per sample, taken by clean logit from the second largest; 0 means untargeted."""
        ...

    def cost(self, num_classes: int) -> Cost:
        """Passes of a sample that survives all rows."""
        ...

    def init(self, start: Start, noise: Noise) -> S:
        """The state before the first step; asks the model nothing."""
        ...

    def step(self, state: S, oracles: Oracles, noise: Noise) -> S:
        """The state after one more step of every row."""
        ...

    def finished(self, state: S) -> Tensor:
        """bool (row,): out of steps or queries; never success."""
        ...

    def best(self, state: S) -> Candidates:
        """What each row would hand in now."""
        ...


@runtime_checkable
class Forgetting(Protocol[S]):
    """A row attack that only ever shows the nearest success so far, and so has to forget one that failed its recheck.

    That happens where the search is less precise than the recheck; another success may lie further away.
    """

    def forget(self, state: S) -> S:
        """The state of rows whose candidate failed: as if it had not been found."""
        ...


def take(state: S, index: Tensor) -> S:
    """The rows of `state` at `index` (bool mask or int64 positions)."""
    fields = {f.name: getattr(state, f.name)[index] for f in dataclasses.fields(state)}  # type: ignore[arg-type]
    return type(state)(**fields)


def concatenate(states: Sequence[S]) -> S:
    """All rows of `states`, in order."""
    if len(states) == 1:
        return states[0]
    names = [f.name for f in dataclasses.fields(states[0])]  # type: ignore[arg-type]
    return type(states[0])(**{name: torch.cat([getattr(s, name) for s in states]) for name in names})


def put(state: S, at: Tensor, new: S) -> S:
    """`state` with its rows `at` (int64, different ones) replaced by those of `new`, in place where that is safe.

    A step may have left one tensor in two fields; the second gets its own memory first.
    """
    held: set[int] = set()
    for field in dataclasses.fields(state):  # type: ignore[arg-type]
        values = getattr(state, field.name)
        memory = values.untyped_storage().data_ptr()
        if memory in held or not values.is_contiguous():
            values = values.clone(memory_format=torch.contiguous_format)
            state = dataclasses.replace(state, **{field.name: values})  # type: ignore[type-var]
        held.add(memory)
        values.index_copy_(0, at, getattr(new, field.name))
    return state


def spread(values: Tensor, like: Tensor) -> Tensor:
    """`values` (row,) shaped to broadcast over `like` (row, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def pick(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Row by row `yes` where `mask` (row,), else `no`; one of the two itself where all rows agree.

    On a CPU a look at the mask costs nothing beside a copy of large images; on other devices it would wait for all that
    is under way.
    """
    if mask.device.type == "cpu" and yes.shape == no.shape:
        chosen = int(mask.count_nonzero())
        if chosen in (0, len(mask)):
            return yes if chosen else no
    return torch.where(spread(mask, no), yes, no)


def positions(mask: Tensor) -> Tensor:
    """int64: where `mask` (row,) is true."""
    return mask.nonzero().flatten()


def probe(oracle: TargetOracle, x: Tensor, objective: Objective, want_gradient: Tensor) -> Gradient:
    """Logits, objective and gradient at `x`; rows that don't `want_gradient` (row,) cost a forward pass only.

    Their gradient is zero.
    """
    if bool(want_gradient.all()):
        return oracle.gradient(x, objective)
    last = (~want_gradient).nonzero().flatten()
    logits_last = oracle.scores(x[last], last)
    value_last = objective(logits_last, last)
    logits = logits_last.new_empty(len(x), logits_last.shape[1])
    value, grad = value_last.new_empty(len(x)), torch.zeros_like(x)
    logits[last], value[last] = logits_last, value_last
    rest = want_gradient.nonzero().flatten()
    if len(rest):
        answer = oracle.gradient(x[rest], lambda z, at: objective(z, rest[at]), rest)
        logits[rest], value[rest], grad[rest] = answer.logits, answer.value, answer.grad
    return Gradient(logits, value, grad)
