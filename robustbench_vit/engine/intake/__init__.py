"""Looks at a model before any attack: what would make every number wrong is refused here.

Every check, its tolerance, its source and what to do about it: docs/intake.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.engine.intake import behaviour
from robustbench_vit.engine.intake.accuracy import above_chance, better_shift, canary, labels
from robustbench_vit.engine.intake.answers import eval_mode, finite, is_logits, meaning
from robustbench_vit.engine.intake.asking import PROBE, filled, logits, spread_out, traceless
from robustbench_vit.engine.intake.gradients import gradients
from robustbench_vit.engine.intake.normalisation import normalisation
from robustbench_vit.engine.intake.report import Declared, Intake, Policy
from robustbench_vit.engine.intake.samples import check_samples
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import ModelError
from robustbench_vit.plan import VERIFICATION
from robustbench_vit.records import Finding

__all__ = ["CLEAN", "Declared", "Intake", "Policy", "check_samples", "intake"]

CLEAN = 256
"""Samples, evenly spaced over those given, whose clean answers are looked at."""


def intake(model: Any, x: Tensor, y: Tensor, declared: Declared | None = None) -> Intake:
    """What was found about the model on samples that `check_samples` let pass, and the policy that follows.

    Asks for at most a few thousand answers, and for all samples only when a clean accuracy is stated. Changes neither
    the model nor a generator. Raises ModelError, which names every refusal and carries all findings.
    """
    with traceless(model, x.device):
        return _Examination(model, x, y, declared or Declared()).run()


class _Examination:
    """One examination; `findings` grows check by check."""

    def __init__(self, model: Any, x: Tensor, y: Tensor, declared: Declared) -> None:
        self._model, self._x, self._y, self._declared = model, x, y.long(), declared
        self.findings: list[Finding] = []

    def run(self) -> Intake:
        # What comes later means nothing, or does harm (batch statistics in train mode), where a group before refuses.
        self._note([eval_mode(self._model)])
        self._stop_if_refused()
        probe, labels_of = self._probe()
        self._answers(probe)
        random = self._behaviour(probe) or self._declared.randomness is not None
        found, usable = gradients(self._model, probe, labels_of, min(len(self._x), PROBE))
        self._note([found])
        correct, asked = self._accuracy(random)
        self._stop_if_refused()
        policy: Policy = "C" if not usable else "B" if random else "A"
        return Intake(tuple(self.findings), policy, correct, asked)

    def _note(self, found: Iterable[Finding]) -> None:
        self.findings.extend(found)

    def _stop_if_refused(self, cause: BaseException | None = None) -> None:
        refused = [f.message for f in self.findings if f.level == "refuse"]
        if refused:
            raise ModelError("\n".join(refused), tuple(self.findings)) from cause

    def _probe(self) -> tuple[Tensor, Tensor]:
        """A full probe batch, the given images first, and a label for each of its rows."""
        at = spread_out(len(self._x), PROBE).to(self._x.device)
        rows = torch.arange(PROBE, device=at.device) % len(at)
        return filled(self._x[at]), self._y[at][rows]

    def _answers(self, probe: Tensor) -> None:
        before, given = behaviour.state(self._model), probe.clone()
        output = self._first_answer(given)
        self._note([is_logits(output, len(probe))])
        self._stop_if_refused()
        self._note(meaning(output, self._y))
        self._note([behaviour.untouched(probe, given)])
        self._note([behaviour.stateless(before, behaviour.state(self._model))])
        self._stop_if_refused()

    def _first_answer(self, given: Tensor) -> Any:
        try:
            with torch.no_grad():
                return unwrap(self._model(given))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            shape = tuple(given.shape[1:])
            message = f"the model cannot take images of shape {shape} (channels, height, width): {first}"
            self._note([Finding("logits", "refuse", message)])
            self._stop_if_refused(error)

    def _behaviour(self, probe: Tensor) -> bool:
        said = self._declared.randomness
        calls = behaviour.CALLS if said is None else behaviour.CALLS_DECLARED
        seen = behaviour.repeats(self._model, probe, calls)
        self._note([behaviour.repeatable(seen, said), behaviour.independent(self._model, probe, seen)])
        return seen.random

    def _accuracy(self, random: bool) -> tuple[int, int]:
        at = spread_out(len(self._x), CLEAN).to(self._x.device)
        x, y = self._x[at], self._y[at].cpu()
        answers = logits(self._model, x)
        if not bool(answers.isfinite().all()):
            self._note([finite(answers)])
            self._stop_if_refused()
        decisions, classes = answers.argmax(1), answers.shape[1]
        correct = int((decisions == y).sum())
        shift = better_shift(decisions, y, classes)
        self._note([above_chance(correct, len(at), classes), labels(decisions, y, shift)])
        # Under labels that fit, for a model that is wrong about all would do better behind nearly anything.
        self._note([normalisation(self._model, x, y + shift, decisions == y + shift, classes, random)])
        self._note([canary(self._declared, lambda: self._count(correct, len(at)))])
        return correct, len(at)

    def _count(self, correct: int, asked: int) -> tuple[int, int]:
        """Correct answers among all samples given, of a random model by most of the draws, as a record counts."""
        n, draws = len(self._x), 1 if self._declared.randomness is None else int(VERIFICATION["draws"])
        if asked == n and draws == 1:
            return correct, n
        right = 0
        for x, y in zip(self._x.split(CLEAN), self._y.cpu().split(CLEAN), strict=True):
            wrong = torch.stack([logits(self._model, x).argmax(1) != y for _ in range(draws)])
            right += int((2 * wrong.sum(0) <= draws).sum())
        return right, n
