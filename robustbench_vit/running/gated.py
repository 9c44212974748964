"""What a gate says of an entry: the conclusion, what it rests on, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vit.comparing import Conclusion, Item
from robustbench_vit.comparing.comparison import EQUAL_WEIGHTS, SEQUENTIAL_TEST
from robustbench_vit.comparing.judge import Levels, conclude, judge, samples_needed
from robustbench_vit.comparing.sources import Pair
from robustbench_vit.plan import Plan
from robustbench_vit.provenance import provenance
from robustbench_vit.records import Record
from robustbench_vit.running.baselines import passes, ranked, ranking_protocol
from robustbench_vit.running.entries import Prepared
from robustbench_vit.running.not_worse import NotWorse
from robustbench_vit.running.sequential import Verdicts
from robustbench_vit.statistics import Decision


@dataclass(frozen=True)
class Terms:
    """What a gate decides by."""

    max_drop: float
    alpha: float
    entries: int  # that are evaluated


@dataclass(frozen=True)
class Gated:
    """What a gate found of one entry, and at what cost."""

    item: Item
    evaluated: int  # samples that were decided, including those after which it would have stopped already
    passes: int  # of the model, forward and backward
    saved: int  # passes that all samples would have taken on top, were they as costly as for the baseline


def gated(
    item: Prepared, order: Sequence[str], rule: NotWorse, verdicts: Verdicts, record: Record, terms: Terms
) -> Gated:
    """What became of an entry whose rule has decided, or has heard of every sample."""
    used = order[: rule.test.n]
    about = {**provenance(), "seed": item.plan.seed}
    protocol, outcomes = ranking_protocol(item.plan), verdicts.outcomes(used)
    candidate = Record(item.subject.entry, protocol, outcomes, item.findings, about, policy=item.plan.policy)
    (found,) = judge(
        [Pair(item.name, item.name, ranked(record, item.plan, used), candidate)], terms.max_drop, terms.alpha
    )
    found = _by_sequential_test(found, rule.decision) if rule.decision else _by_all_samples(found, terms)
    return _costed(dataclasses.replace(found, used=len(used), of=len(order)), order, verdicts, record, item.plan)


def _by_sequential_test(item: Item, decision: Decision) -> Item:
    conclusion = Conclusion.WORSE if decision is Decision.WORSE else Conclusion.NOT_WORSE
    return dataclasses.replace(
        item, conclusion=conclusion, decided_by=SEQUENTIAL_TEST, p=None, p_adjusted=None, samples_to_decide=None
    )


def _by_all_samples(item: Item, terms: Terms) -> Item:
    """The item as `rbvit compare` judges it; the level of 'worse' allows for the other entries (Bonferroni)."""
    adjusted = min(1.0, terms.entries * (1.0 if item.p is None else item.p))
    conclusion = conclude(item.flips, adjusted, terms.max_drop, terms.alpha)
    undecided = conclusion is Conclusion.UNDECIDED
    more = samples_needed(item.flips, Levels(terms.max_drop, terms.alpha, terms.entries)) if undecided else None
    return dataclasses.replace(item, conclusion=conclusion, p_adjusted=adjusted, samples_to_decide=more)


def _costed(item: Item, order: Sequence[str], verdicts: Verdicts, record: Record, plan: Plan) -> Gated:
    decided, begun = verdicts.all(), verdicts.outcomes(verdicts.begun())
    left = [sample for sample in order if sample not in decided]
    saved = passes(ranked(record, plan, left).outcomes) if left else 0
    saved -= passes([outcome for outcome in begun if outcome.sample not in decided])
    return Gated(item, len(decided), passes(begun), max(saved, 0))


def as_it_was(name: str, record: Record, plan: Plan, terms: Terms) -> Gated:
    """An entry that is the baseline itself, so that nothing need be evaluated."""
    kept = ranked(record, plan, plan.samples)
    (item,) = judge([Pair(name, name, kept, kept)], terms.max_drop, terms.alpha)
    same = dataclasses.replace(
        item, conclusion=Conclusion.NOT_WORSE, decided_by=EQUAL_WEIGHTS, equal_weights=True, drop_interval=(0.0, 0.0),
        p=None, p_adjusted=None, samples_to_decide=None, notes=(), used=0, of=len(plan.samples),
    )  # fmt: skip
    return Gated(same, 0, 0, passes(kept.outcomes))
