"""Continuous batching: every row's result is that of running it alone."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from robustbench_vit.attacks import algorithms
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.cards import AlgorithmCard, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.engine.verify import BATCH
from robustbench_vit.engine.waiting import turns_of
from robustbench_vit.records.rows import LaneSpec, RowResult, credited

EPS = {"linf": 0.06, "l2": 0.25, "l1": 1.0}
SHORT = {"steps": 12, "queries": 60, "targets": 3, "restarts": 2, "draws": 2}
SETTINGS = [
    (loaded.name, norm, {k: v for k, v in SHORT.items() if loaded.card.settings.get(k, 0) > v})
    for loaded in Workspace((builtin_layer(),)).load_all("attack")[0]
    if isinstance(loaded.card, AlgorithmCard) and algorithms.get(loaded.card.algorithm).lane == "rows"
    for norm in algorithms.get(loaded.card.algorithm).norms
]
attacks = pytest.mark.parametrize(("name", "norm", "changes"), SETTINGS)


def run(pool: Any) -> dict[tuple[str, int], RowResult]:
    """Every retired row; a row retires once."""
    found: dict[tuple[str, int], RowResult] = {}
    for results in pool.run():
        for result in results:
            place = (result.key.sample, result.key.turn)
            assert place not in found, "a row retired twice"
            found[place] = result
    return found


def counted(results: dict[tuple[str, int], RowResult], ids: Any, turns: int) -> dict[str, tuple]:
    """By sample: the rows that count, in full, and whether they break it."""
    rows = {result.key: result for result in results.values()}
    eps = next(iter(rows)).eps
    return {i: credited(LaneSpec("lane", "lane", turns), eps, i, rows) for i in ids}


def one_by_one(pool: Any, attack: Any, samples: Any, eps: float) -> dict[str, tuple]:
    turns, alone = turns_of(attack, 5), {}
    for i, sample in enumerate(samples.ids):
        alone[sample] = counted(run(pool(attack, samples.take([i]), eps, width=1)), [sample], turns)[sample]
    return alone


@attacks
def test_a_pool_gives_what_one_row_at_a_time_gives(build, pool, samples, name, norm, changes):
    attack = build(name, norm, **changes)
    turns, few = turns_of(attack, 5), samples.take(range(10))
    expected = one_by_one(pool, attack, few, EPS[norm])
    verdicts = [broken for _, broken in expected.values()]
    assert None not in verdicts
    for width, speculate_to in ((1, 0), (3, 0), (5, 5), (64, 64)):
        results = run(pool(attack, few, EPS[norm], width, speculate_to))
        assert counted(results, few.ids, turns) == expected, (width, speculate_to)
    order = list(range(10))
    random.Random(1).shuffle(order)
    shuffled = run(pool(attack, few.take(order), EPS[norm], 4, 4))
    assert counted(shuffled, few.ids, turns) == expected


def test_the_comparison_holds_samples_that_fall_at_once_that_fall_late_and_that_stay(build, pool, samples):
    results = run(pool(build("apgd-t", steps=12, targets=3), samples, EPS["linf"]))
    by = [credited(LaneSpec("lane", "lane", 3), 0.06, i, {r.key: r for r in results.values()}) for i in samples.ids]
    fell = [len(rows) for rows, broken in by if broken]
    assert 1 in fell
    assert max(fell) > 1
    assert False in [broken for _, broken in by]


@attacks
def test_a_result_says_what_the_row_did(build, pool, samples, name, norm, changes):
    attack = build(name, norm, **changes)
    for (sample, turn), result in run(pool(attack, samples, EPS[norm])).items():
        i = samples.ids.index(sample)
        assert result.restart == turn % attack.restarts()
        if attack.targets(5):
            assert result.target == int(samples.ranking[i, turn // attack.restarts() + 1])
        else:
            assert result.target is None
        assert result.forwards > 0
        if not result.found:
            assert result.image is None
            assert result.distance is None
            continue
        image = torch.frombuffer(bytearray(result.image), dtype=torch.float32).view(samples.x[i].shape)
        size = float(NORMS[norm].size((image - samples.x[i]).unsqueeze(0)))
        assert size == pytest.approx(result.distance, abs=1e-6)
        assert 0 < size <= EPS[norm] + 1e-6


@pytest.mark.parametrize("stop", [1, 5, 14, 20])
@pytest.mark.parametrize(("name", "changes"), [("apgd-t", {"steps": 8, "targets": 3}), ("pgd-20", {"restarts": 3})])
def test_an_interrupted_pool_goes_on_where_it_was(build, pool, samples, name, changes, stop):
    attack = build(name, **changes)
    turns = turns_of(attack, 5)
    whole = run(pool(attack, samples, 0.06, 16, 16))
    kept: dict[tuple[str, int], RowResult] = {}
    for step, results in enumerate(pool(attack, samples, 0.06, 16, 16).run()):
        kept.update({(r.key.sample, r.key.turn): r for r in results})
        if step == stop:
            break
    known = [(samples.ids.index(sample), turn, result.found) for (sample, turn), result in kept.items()]
    rest = run(pool(attack, samples, 0.06, 7, 7, known))
    assert not rest.keys() & kept.keys(), "a retired row ran again"
    assert counted({**kept, **rest}, samples.ids, turns) == counted(whole, samples.ids, turns)


def test_nothing_runs_when_everything_is_known(build, pool, samples):
    attack = build("apgd-t", steps=8, targets=3)
    whole = run(pool(attack, samples, 0.06, 32, 32))
    known = [(samples.ids.index(sample), turn, result.found) for (sample, turn), result in whole.items()]
    assert list(pool(attack, samples, 0.06, 32, 32, known).run()) == []


def test_cancelled_rows_and_padding_are_wasted_and_only_they(build, pool, samples):
    attack = build("apgd-t", steps=8, targets=3)
    patient = pool(attack, samples.take(range(8)), 0.06, 8)
    spent = _spent(run(patient))
    eager = pool(attack, samples.take(range(8)), 0.06, 24, 24)
    passes = _count(eager)
    results = run(eager)
    retired = _spent(results)
    assert retired >= spent, "speculation may retire rows that don't count"
    assert eager.wasted > 0
    assert eager.wasted == passes["padding"] + passes["rows"] + passes["verified"] - retired


def test_turns_start_early_only_where_they_cost_nothing_or_are_likely_to_count(build, pool, samples):
    """Nearly all turns succeed here: the later ones would be cancelled, so nothing but padding gives them room."""
    attack, few = build("apgd-t", steps=8, targets=4), samples.take(range(9))
    eager, careful = pool(attack, few, 0.5, 64, 64), pool(attack, few, 0.5, 64, 64)
    careful._waiting._settings = dataclasses.replace(careful._waiting._settings, speculate_below=0.02)
    rows = []
    for one in (eager, careful):
        counting = _count(one)
        expected = counted(run(one), few.ids, 4)
        rows.append(counting["rows"])
    assert expected == counted(run(pool(attack, few, 0.5, 64)), few.ids, 4)
    assert rows[1] < rows[0] / 1.5


def test_claims_are_rechecked_together(build, pool, samples):
    """The verifier's batch is fixed and padded; one by one the claims of twenty rows would fill it twenty times."""
    one = pool(build("apgd-ce", steps=40), samples, 0.1, 20)
    checks, check = [], one._verifier.check

    def counting_check(x: Any, *arguments: Any) -> Any:
        checks.append(len(x))
        return check(x, *arguments)

    one._verifier.check = counting_check
    found = [row for row in run(one).values() if row.found]
    assert sum(checks) == len(found) > 8
    assert len(checks) <= 4


def _spent(results: dict[tuple[str, int], RowResult]) -> int:
    return sum(result.forwards + result.backwards for result in results.values())


def _count(pool: Any) -> dict[str, int]:
    """Counts what a pool asks of its oracle and its verifier, row by row."""
    total = {"padding": 0, "rows": 0, "verified": 0}
    step, check = pool._attack.step, pool._verifier.check

    class Counting:
        """The attack, with the passes of every step noted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(attack, name)

        def step(self, *arguments: Any) -> Any:
            state = step(*arguments)
            passes = pool._oracle.passes
            total["padding"] += passes.padding
            total["rows"] += int(passes.forwards.sum() + passes.backwards.sum())
            return state

    def counting_check(x: Any, *arguments: Any) -> Any:
        total["verified"] += len(x) + -len(x) % BATCH
        return check(x, *arguments)

    attack = pool._attack
    pool._attack, pool._verifier.check = Counting(), counting_check
    return total


def test_all_rows_of_a_step_may_leave_at_once(build, pool, samples):
    """Turns that succeed in the same step: the first counts, and the others' passes are not lost from the books."""
    attack = build("apgd-t", steps=4, targets=4)
    eager = pool(attack, samples.take(range(6)), 0.5, 24, 24)
    passes = _count(eager)
    results = run(eager)
    assert all(broken for _, broken in counted(results, samples.ids[:6], 4).values())
    assert eager.wasted == passes["padding"] + passes["rows"] + passes["verified"] - _spent(results)
    assert eager.wasted > passes["padding"]
