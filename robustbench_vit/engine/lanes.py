"""Lanes: how one attack card runs on the samples that are still undecided.

The kind of an algorithm (its `lane` attribute) says how. `rows` runs in the pool, `batch` hands fixed
chunks to somebody else's attack. `fitted` (an artefact fitted on many samples) and `certify` (bounds) will join here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Access
from robustbench_vit.engine.bench import Bench
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.engine.pool import Pool, image_bytes
from robustbench_vit.engine.verify import Checked, Verifier
from robustbench_vit.engine.waiting import Samples, turns_of
from robustbench_vit.errors import AttackError, InputError
from robustbench_vit.plan import LanePlan
from robustbench_vit.records.rows import LaneSpec, RowKey, RowResult


@dataclass(frozen=True)
class Lane:
    """A planned lane with the attack built from its card."""

    plan: LanePlan
    attack: Any

    @property
    def access(self) -> Access:
        """What it sees of the model; a foreign whole-batch attack is given all of it."""
        return getattr(self.attack, "access", Access.GRADIENT)

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The models made from the target's weights that it asks too."""
        return getattr(self.attack, "surrogates", ())

    def spec(self, num_classes: int) -> LaneSpec:
        """What outcomes need to know of it."""
        turns = turns_of(self.attack, num_classes) if self.attack.lane == "rows" else 1
        return LaneSpec(self.plan.name, self.plan.key, turns)


@dataclass(frozen=True)
class Retired:
    """Rows that retired together, and the passes wasted on the way."""

    rows: tuple[RowResult, ...]
    wasted: int
    work: float  # forward equivalents spent since the last one


LaneRunner = Callable[[Lane, Samples, float, Bench, Mapping[RowKey, RowResult]], Iterator[Retired]]


def run_lane(
    lane: Lane, samples: Samples, eps: float, bench: Bench, known: Mapping[RowKey, RowResult]
) -> Iterator[Retired]:
    """The rows of a lane as they retire, on undecided samples at one eps; rows in `known` don't run again."""
    if lane.attack.lane not in LANE_KINDS:
        raise AttackError(
            f"{lane.plan.loaded.shown}: algorithm '{lane.plan.loaded.card.algorithm}' needs a lane of kind"
            f" '{lane.attack.lane}', which this version doesn't run; it runs: {', '.join(LANE_KINDS)}"
        )
    yield from LANE_KINDS[lane.attack.lane](lane, samples, eps, bench, known)


def _rows(
    lane: Lane, samples: Samples, eps: float, bench: Bench, known: Mapping[RowKey, RowResult]
) -> Iterator[Retired]:
    oracle = bench.oracle(lane.access)
    surrogates = {name: oracle.beside(bench.surrogate(name)).view(Access.GRADIENT) for name in lane.surrogates}
    pool = Pool(
        lane.attack,
        lane.plan.loaded.card.algorithm,
        lane.plan.key,
        samples,
        eps,
        bench.seed,
        oracle,
        Verifier(bench.model, NORMS[lane.plan.norm], bench.draws),
        bench.pool,
        _known_turns(lane, samples, eps, known),
        surrogates,
    )
    wasted = work = 0
    for rows in pool.run():
        yield Retired(tuple(rows), pool.wasted - wasted, oracle.work - work)
        wasted, work = pool.wasted, oracle.work


def _known_turns(
    lane: Lane, samples: Samples, eps: float, known: Mapping[RowKey, RowResult]
) -> list[tuple[int, int, bool]]:
    turns = turns_of(lane.attack, samples.ranking.shape[1])
    found = []
    for position, sample in enumerate(samples.ids):
        for turn in range(turns):
            row = known.get(RowKey(lane.plan.key, eps, sample, turn))
            if row is not None:
                found.append((position, turn, row.found))
    return found


def _batch(
    lane: Lane, samples: Samples, eps: float, bench: Bench, known: Mapping[RowKey, RowResult]
) -> Iterator[Retired]:
    """Fixed chunks in sample order. The outcome may depend on the chunk; the card's algorithm says so in the table."""
    verifier = Verifier(bench.model, NORMS[lane.plan.norm], bench.draws)
    for begin in range(0, len(samples), lane.attack.chunk):
        chunk = samples.take(range(begin, min(begin + lane.attack.chunk, len(samples))))
        keys = [RowKey(lane.plan.key, eps, sample, 0) for sample in chunk.ids]
        if all(key in known for key in keys):
            continue
        # A run on other samples may have cut other chunks and left some of this one's results behind.
        rows = [row for row in _attack_chunk(lane, chunk, keys, eps, bench, verifier) if row.key not in known]
        yield Retired(tuple(rows), 0, sum(row.forwards + 2 * row.backwards for row in rows))


def _attack_chunk(
    lane: Lane, chunk: Samples, keys: Sequence[RowKey], eps: float, bench: Bench, verifier: Verifier
) -> list[RowResult]:
    counted = CountedModel(bench.searched)
    x = lane.attack.run(counted, chunk.x, chunk.y, eps, bench.seed)
    if not isinstance(x, Tensor) or x.shape != chunk.x.shape:
        raise AttackError(
            f"{lane.plan.loaded.shown}: the attack returned {getattr(x, 'shape', type(x))}, not {chunk.x.shape}"
        )
    checked = verifier.check(x.detach(), chunk.x, chunk.y, torch.full((len(chunk),), eps, device=chunk.x.device))
    share = [round(passes / len(chunk)) for passes in (counted.forwards, counted.backwards)]
    return [
        _batch_result(key, x[i], checked, i, share[0] + verifier.draws, share[1], verifier.draws > 1)
        for i, key in enumerate(keys)
    ]


def _batch_result(
    key: RowKey, image: Tensor, checked: Checked, i: int, forwards: int, backwards: int, random: bool
) -> RowResult:
    holds, wrong = bool(checked.holds[i]), int(checked.wrong_draws[i])
    shown = holds or (random and bool(checked.inside[i]) and wrong > 0)
    distance = float(checked.distance[i]) if shown else None
    stored = image_bytes(image) if shown else None
    return RowResult(key, 0, None, holds, distance, forwards, backwards, stored, wrong if shown and random else None)


class CountedModel(torch.nn.Module):
    """The model as a foreign attack sees it: logits, with passes counted per image from outside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = [model]  # a list keeps the user's module out of this one's parameters and modes
        self.forwards = 0
        self.backwards = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = unwrap(self._model[0](x))
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


LANE_KINDS: dict[str, LaneRunner] = {"rows": _rows, "batch": _batch}


def check_lane_kinds(lanes: Sequence[Lane]) -> None:
    """Raises InputError before any work when a lane's kind cannot run."""
    for lane in lanes:
        if lane.attack.lane not in LANE_KINDS:
            raise InputError(f"{lane.plan.loaded.shown}: lanes of kind '{lane.attack.lane}' don't run yet")
