"""The only code that calls the model: typed access, physical batches, passes counted per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustbench_vit.attacks.rows import Access, AttendedBlock, AttendedObjective, Gradient, Objective
from robustbench_vit.engine.ledger import Ledger, Passes
from robustbench_vit.engine.views import VIEWS
from robustbench_vit.errors import AttackError

A = TypeVar("A")

Recorder = Callable[[], AbstractContextManager[list[AttendedBlock]]]
"""A list that fills with what the model's blocks attend to, while the context is open."""

SMALLEST = 8
"""No physical batch is smaller: below that, matrix products take other paths and round differently."""


def ladder(device: torch.device, largest: int, few_shapes: bool = False) -> list[int]:
    """Physical batch sizes, ascending; few fixed shapes, so that a row's result doesn't depend on its neighbours.

    Powers of two on an accelerator and for compiled models, where a shape may cost a compilation. Else shapes are cheap
    on a CPU and an additional call is not, so every multiple of eight.
    """
    if device.type == "cpu" and not few_shapes:
        return list(range(SMALLEST, max(largest, SMALLEST) + 1, SMALLEST))
    return [2**k for k in range(3, 20) if 2**k <= max(largest, SMALLEST)]


def pieces(rows: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """How a batch of `rows` is cut: (rows in the piece, its physical size ≥ that), largest first.

    A piece is padded to the next size when that adds at most a sixteenth or eight rows.
    """
    cut = []
    while rows > 0:
        size = next((s for s in sizes if s >= rows and s - rows < max(rows // 16, SMALLEST)), None)
        if size is None:
            size = next(s for s in reversed(sizes) if s <= max(rows, SMALLEST))
        cut.append((min(rows, size), size))
        rows -= cut[-1][0]
    return cut


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the host, has too little memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says on a CPU, where it has no error of its own for it."""


def unwrap(output: Any) -> Any:
    """The logits of an output: Hugging Face models wrap them in an object."""
    return getattr(output, "logits", output)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """While open, no parameter of `model` asks for a gradient; what it asked for before comes back."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    wanted = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in zip(parameters, wanted, strict=True):
            p.requires_grad_(flag)


_Value = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]]
"""From images, padded, to the logits and the objective of the first so many, which are numbered by the tensor."""


class Oracle:
    """A model with its device and its physical batch; hands out views of a declared access."""

    def __init__(
        self,
        model: Any,
        device: torch.device | str = "cpu",
        largest: int = 256,
        largest_forward: int | None = None,
        few_shapes: bool = False,
        recorder: Recorder | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """`largest` is the physical batch of gradients; without one more images fit, `largest_forward` of them.

        A `recorder` shows what the model attends to. Passes are counted in `ledger`, by default one of its own.
        """
        self._model = model
        self.device = torch.device(device)
        self._gradients = ladder(self.device, largest, few_shapes)
        self._forwards = ladder(self.device, largest_forward or largest, few_shapes)
        self._recorder = recorder
        self._ledger = ledger or Ledger(self.device)

    def beside(self, model: Any) -> Oracle:
        """Another model (a surrogate) on the same device, asked in the same batches; its passes count here."""
        other = Oracle(model, self.device, ledger=self._ledger)
        other._gradients, other._forwards = self._gradients, self._forwards
        return other

    @property
    def work(self) -> int:
        """Forward equivalents asked for so far."""
        return self._ledger.work

    @property
    def passes(self) -> Passes:
        """Passes since `count`."""
        return self._ledger.passes

    def count(self, rows: int) -> None:
        """Starts counting for a batch of `rows`."""
        self._ledger.count(rows)

    def discard(self, rows: Tensor) -> None:
        """Counts an answer to each of these rows (int64) as padding: it stood where padding would have been."""
        self._ledger.discard(rows)

    def computed(self, rows: int) -> int:
        """How many images the model sees when it is asked about so many rows, padding included."""
        return sum(physical for _, physical in pieces(rows, self._forwards))

    def whole(self, rows: int) -> int:
        """The largest number up to `rows` that fills physical batches; `rows` itself when they fill none."""
        filled = rows
        while filled > 0 and self.computed(filled) > filled:
            filled -= 1
        return filled or rows

    def view(self, access: Access) -> Any:
        """What an attack that declares `access` is given: methods beyond it don't exist."""
        return VIEWS[access](self)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(m, classes) without a gradient; one forward pass counted for each row."""
        with torch.no_grad():
            outputs = self._in_pieces(len(x), self._forwards, lambda at, physical: self._logits(x[at], physical))
        self._ledger.forward(rows, len(x))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _logits(self, x: Tensor, physical: int) -> Tensor:
        answer = unwrap(self._model(_padded(x, physical)))[: len(x)]
        self.passes.padding += physical - len(x)
        return answer

    def _in_pieces(self, rows: int, sizes: list[int], ask: Callable[[slice, int], A]) -> list[A]:
        """The answers of `ask` piece by piece; where memory runs out, in smaller pieces from there on."""
        answers, begin = [], 0
        while begin < rows:
            size, physical = pieces(rows - begin, sizes)[0]
            try:
                answers.append(ask(slice(begin, begin + size), physical))
            except (RuntimeError, MemoryError) as error:
                self._shrink(sizes, physical, error)
                continue
            begin += size
        return answers

    def _shrink(self, sizes: list[int], physical: int, error: RuntimeError | MemoryError) -> None:
        """Leaves out sizes above half of `physical` after there was too little memory; other errors go on their way."""
        if not out_of_memory(error) or physical <= sizes[0]:
            raise error
        sizes[:] = [size for size in sizes if size <= max(physical // 2, sizes[0])]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def gradient(self, x: Tensor, objective: Objective, rows: Tensor | None = None, draws: int = 1) -> Gradient:
        """Logits, objective and its gradient at `x`; a forward and a backward pass counted for each row and draw.

        With several draws of a random model the gradient is their mean, the rest is the last draw's.
        """
        answer = self._one_draw(x, objective, rows)
        total = answer.grad
        for _ in range(draws - 1):
            answer = self._one_draw(x, objective, rows)
            total = total + answer.grad
        return answer if draws == 1 else Gradient(answer.logits, answer.value, total / draws)

    def _one_draw(self, x: Tensor, objective: Objective, rows: Tensor | None) -> Gradient:
        def value(images: Tensor, size: int, which: Tensor) -> tuple[Tensor, Tensor]:
            logits = unwrap(self._model(images))[:size]
            return logits, objective(logits, which)

        return self._differentiated(x, value, rows)

    def attended(
        self, x: Tensor, read: Callable[[list[AttendedBlock]], Tensor], rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits (m, classes), and what `read` makes (m, …) of what the model attended to; one forward pass each.

        `read` may be asked about a part of the images at a time. Raises AttackError where nothing was recorded.
        """

        def ask(at: slice, physical: int) -> tuple[Tensor, Tensor]:
            logits, seen = self._recorded(_padded(x[at], physical), at.stop - at.start)
            self.passes.padding += physical - len(logits)
            return logits, read(seen)

        with torch.no_grad():
            answers = self._in_pieces(len(x), self._forwards, ask)
        self._ledger.forward(rows, len(x))
        return torch.cat([logits for logits, _ in answers]), torch.cat([found for _, found in answers])

    def gradient_attended(self, x: Tensor, objective: AttendedObjective, rows: Tensor | None = None) -> Gradient:
        """Like `gradient`, with an objective on what the model attended to as well; AttackError where it is nothing."""

        def value(images: Tensor, size: int, which: Tensor) -> tuple[Tensor, Tensor]:
            logits, seen = self._recorded(images, size)
            return logits, objective(logits, seen, which)

        return self._differentiated(x, value, rows)

    def _recorded(self, images: Tensor, size: int) -> tuple[Tensor, list[AttendedBlock]]:
        """The first `size` images' logits, and what each block saw of them."""
        if self._recorder is None:
            raise AttackError("this attack needs a model whose blocks show what they attend to")
        with self._recorder() as seen:
            logits = unwrap(self._model(images))[:size]
        if not seen:  # an attack on attention that never sees any would be another attack without a word
            raise AttackError("the model's dropping blocks were not part of its forward pass")
        return logits, [block.first(size) for block in seen]

    def _differentiated(self, x: Tensor, value: _Value, rows: Tensor | None) -> Gradient:
        answers = self._in_pieces(len(x), self._gradients, partial(self._gradient, x, value))
        self._ledger.forward(rows, len(x))
        self._ledger.backward(rows, len(x))
        if len(answers) == 1:
            return answers[0]
        return Gradient(
            torch.cat([a.logits for a in answers]),
            torch.cat([a.value for a in answers]),
            torch.cat([a.grad for a in answers]),
        )

    def _gradient(self, x: Tensor, ask: _Value, at: slice, physical: int) -> Gradient:
        size, which = at.stop - at.start, torch.arange(at.start, at.stop, device=x.device)
        x = _padded(x[at].detach(), physical).requires_grad_()
        with torch.enable_grad():
            logits, value = ask(x, size, which)
            (grad,) = torch.autograd.grad(value.sum(), x)
        self.passes.padding += 2 * (physical - size)
        return Gradient(logits.detach(), value.detach(), grad[:size])


def _padded(x: Tensor, physical: int) -> Tensor:
    """`x` with its last row repeated up to `physical` rows."""
    missing = physical - len(x)
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
