"""Plan + model + data + engine -> record: the one module that joins them.

It isn't called `evaluate`, because importing a submodule of that name would hide the function
`robustbench_vit.evaluate`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_vit.attacks import NORM_NAMES, algorithms
from robustbench_vit.attacks.rows import Access
from robustbench_vit.cards import AlgorithmCard, AttackCard, Loaded, Workspace, open_workspace, parse_number
from robustbench_vit.cards.schema import Precision
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.data.dataset import content_ids
from robustbench_vit.engine.bench import Bench, make_bench
from robustbench_vit.engine.cascade import Cascade, build_stages
from robustbench_vit.engine.float32 import ieee_float32
from robustbench_vit.engine.intake import Declared, Intake, check_samples, intake
from robustbench_vit.engine.search import Search
from robustbench_vit.engine.stock import Progress
from robustbench_vit.errors import InputError, ModelError, UnknownNameError
from robustbench_vit.models.inside import inside_of
from robustbench_vit.plan import POLICIES, Plan, make_plan
from robustbench_vit.recording import judged_attacks, judgement_key, make_record, outcomes_of
from robustbench_vit.records import Outcome, Record
from robustbench_vit.records.journal import Batch, Known, open_journal
from robustbench_vit.records.record import canonical
from robustbench_vit.records.rows import UNTARGETED
from robustbench_vit.subject import Subject, find_device, make_subject, placed

Watcher = Callable[[Batch, Progress | None], None]
"""Told of every batch as it is decided."""


def algorithm_versions(
    workspace: Workspace, attacks: Sequence[str], norm: str, where: str | None = None
) -> dict[str, int]:
    """The version of every algorithm that the attack cards use; raises UnknownNameError for unknown ones.

    `where` is the card that names the attacks, if one does.
    """
    names = [workspace.stand_in(name, policy, where) for name in attacks for policy in POLICIES]
    lanes = [lane for name in dict.fromkeys(names) for lane in workspace.lanes(name, norm, where)]
    return {lane.card.algorithm: algorithms.get(lane.card.algorithm, lane.shown).algorithm_version for lane in lanes}


def run_key(subject: Subject, plan: Plan) -> str:
    """Identifies the rows that may be reused: same weights, samples, verification, precision and seed."""
    data = {k: v for k, v in plan.protocol["data"].items() if k not in ("n", "sample_ids_sha256")}
    shared = {k: plan.protocol[k] for k in ("schema", "norm", "precision", "verification", "criterion")}
    about = {k: subject.entry.get(k) for k in ("model", "model_args", "defense", "normalise", "randomness")}
    shared |= {"policy": plan.policy, "random": plan.random, "about": about}
    return hashlib.sha256(
        canonical({"model": subject.fingerprint, "data": data, "seed": plan.seed, **shared}).encode()
    ).hexdigest()


def examine(subject: Subject, data: Dataset, device: torch.device) -> Intake:
    """What intake found; raises InputError and ModelError for samples and models that cannot be evaluated."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    check_samples(x, y)
    with placed(subject.model, device):
        return intake(subject.model, x.to(device), y.to(device), subject.declared)


def examine_surrogate(surrogate: Any, data: Dataset, device: torch.device) -> str:
    """The fingerprint of a surrogate; raises ModelError unless its adversarial images can be made on these samples."""
    try:
        subject = make_subject(surrogate, declared=Declared("a surrogate may answer at random"))
        seen = examine(subject, data, device)
    except ModelError as error:
        raise ModelError(f"the surrogate cannot be used: {error}", error.findings) from error
    if seen.policy == "C":
        raise ModelError("the surrogate cannot be used: it has no useful gradient", seen.findings)
    return subject.fingerprint


def planned(plan: Plan, seen: Intake, subject: Subject, surrogate: str | None = None) -> Plan:
    """The plan for a model that intake let pass; raises InputError when an attack needs what the model hasn't."""
    plan = plan.under(seen.policy, random=subject.declared.randomness is not None)
    if seen.policy == "C":
        for stage in build_stages(plan):
            needing = [lane.plan.name for lane in stage.lanes if lane.access >= Access.GRADIENT]
            if needing:
                raise InputError(
                    f"the model has no useful gradient (policy C), and attack '{stage.plan.name}' needs one"
                    f" ({', '.join(needing)}); use 'black-box', or a cascade with stand_ins: {{C: black-box}}"
                )
    _require_inside(plan, subject)
    return plan if surrogate is None else dataclasses.replace(plan, surrogate=surrogate)


def _require_inside(plan: Plan, subject: Subject) -> None:
    """Raises InputError when an attack asks the model's internals, or for a surrogate made of it, and it has none."""
    inside = inside_of(subject.model)
    known = {} if inside is None else inside.surrogates
    for stage in build_stages(plan):
        for lane in stage.lanes:
            lacking = [name for name in lane.surrogates if name not in known]
            if lacking or (lane.access >= Access.INTERNALS and inside is None):
                what = f"the surrogate '{lacking[0]}'" if lacking else "to see which tokens are kept"
                raise InputError(
                    f"attack '{lane.plan.name}' needs {what}, which only a model that drops tokens offers"
                    " (EViT, with a keep rate below 1)"
                )


def run_plan(
    plan: Plan,
    subject: Subject,
    data: Dataset,
    bench: Bench,
    known: Known,
    watch: Watcher,
    surrogate: Any | None = None,
    judge: bool = True,
) -> None:
    """Computes what `known` doesn't hold yet, telling `watch` of every batch; for models that passed `examine`.

    With `judge` it also looks for masked gradients; `surrogate` is a model whose adversarial images are tried too.
    """
    x = torch.from_numpy(data.x).to(bench.device)
    y = torch.from_numpy(data.y).to(bench.device)
    with placed(subject.model, bench.device):
        cascade = Cascade(plan, dataclasses.replace(bench, inside=inside_of(subject.model)), x, y, known)
        with closing(cascade.run()) as batches:  # an error in `watch` must not leave the model frozen
            for batch in batches:
                watch(batch, cascade.progress)
        if judge and judged_attacks(plan):
            with placed(surrogate, bench.device), ieee_float32():
                for batch in _judgements(plan, subject, x, y, bench.seed, known, surrogate):
                    known.add(batch)
                    watch(batch, cascade.progress)


def judging_allowance(outcomes: Sequence[Outcome], pixels: int) -> int:
    """Forward equivalents that the verdict on these outcomes may spend, images having that many pixel values.

    A twentieth of the run, and at least what small models do in well under two seconds. It counts passes and never
    looks at the clock, so that a verdict can be repeated on another machine.
    """
    spent = sum(o.forwards + 2 * o.backwards for o in outcomes)
    return max(spent // 20, min(8000, 2**25 // max(pixels, 1)))


def _judgements(
    plan: Plan, subject: Subject, x: Tensor, y: Tensor, seed: int, known: Known, surrogate: Any | None
) -> Iterator[Batch]:
    """The reliability of every number that hasn't one yet, as notes for the journal."""
    from robustbench_vit.diagnostics.reliability import LaneAccess, assess, failed

    missing = [
        (attack, eps) for attack, eps in judged_attacks(plan) if judgement_key(plan, attack, eps) not in known.notes
    ]
    for attack, eps in missing:
        (stage,) = [stage for stage in build_stages(plan) if stage.plan.name == attack]
        asked = [o for o in outcomes_of(plan, known) if (o.attack, o.eps, o.criterion) == (attack, eps, UNTARGETED)]
        lanes = [LaneAccess(lane.plan.name, lane.access) for lane in stage.lanes]
        try:
            found = assess(
                subject.model,
                x,
                y,
                plan.norm,
                eps,
                seed,
                asked,
                lanes,
                randomness=subject.declared.randomness,
                policy=plan.policy,
                surrogate=surrogate,
                allowance_forwards=judging_allowance(asked, x[0].numel()),
            )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # the number stands, without a verdict
            found = failed(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        yield Batch(attack, notes=((judgement_key(plan, attack, eps), json.dumps(found.to_dict())),))


def arrays_dataset(x: Any, y: Any) -> Dataset:
    """A user's tensors as a dataset; raises InputError unless they are images in [0, 1] and labels."""
    check_samples(x, y)
    images = x.detach().cpu().float().numpy()
    labels = y.detach().cpu().numpy().astype(np.int64)
    return Dataset(
        name="arrays",
        split="",
        x=images,
        y=labels,
        sample_ids=content_ids(images, labels),
        source_sha256=hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        preprocessing="none",
        num_classes=int(labels.max()) + 1,
    )


def evaluate(
    model: Any,
    x: Tensor | Dataset | str,
    y: Tensor | None = None,
    attack: str | AttackCard = "autoattack",
    norm: str = "linf",
    eps: float | str | Sequence[float] = 8 / 255,
    seed: int = 0,
    device: str | torch.device | None = None,
    width: int | None = None,
    adversarials: bool = True,
    progress: bool = False,
    *,
    out: str | Path | None = None,
    workspace: Workspace | None = None,
    entry: Mapping[str, Any] | None = None,
    smoke: bool = False,
    watch: Watcher | None = None,
    randomness: str | None = None,
    clean_accuracy: float | None = None,
    surrogate: Any | None = None,
    reliability: bool = True,
    precision: Precision = "fp32",
    compiled: bool = False,
    channels_last: bool = False,
) -> Record:
    """The record of `model` under an attack card: who falls, to what, at what cost.

    Args:
        model: an nn.Module in eval mode (or a callable) from images (n, c, h, w) in [0, 1] to logits (n, classes);
            outputs with `.logits` are unwrapped. It is left as it was: mode, device and requires_grad.
        x: float images (n, c, h, w) in [0, 1]; or a Dataset, or a dataset's name (its test split), which bring y along.
        y: int64 labels (n,).
        attack: an attack card's name in the workspace, or a card.
        norm: 'linf', 'l2' or 'l1'.
        eps: radius of the budget, or several for a curve; '8/255' is legal.
        seed: of the keyed noise; equal seeds give equal results whatever the width or order of samples.
        device: where to run; default: where the model is.
        width: rows in the pool at a time; default: chosen from the images' size.
        adversarials: keep the images of the first eps.
        progress: show a progress bar.
        out: a folder for the journal; the same call again resumes.
        workspace: where cards are looked up; default: the built-in ones and the current folder's.
        entry: what the record shall say of the model (name, defense, …).
        smoke: few samples' worth of steps, to see that it runs; its numbers mean nothing.
        watch: called with every batch as it is decided.
        randomness: what in the model is random, in words; a model that answers at random without it is refused.
        clean_accuracy: what it should be on these samples, in [0, 1]; intake refuses a model that is far from it.
        surrogate: another model, whose adversarial images are tried on this one to find masked gradients.
        reliability: look for masked gradients, for at most a twentieth of the passes.
        precision: in which adversarial images are searched: 'fp32' (IEEE float32), 'tf32' (CUDA only) or 'bf16'; part
            of the protocol. Every success is rechecked in IEEE float32, and the search goes on where that fails.
        compiled: search with the model compiled by torch.compile.
        channels_last: search with a copy of the model in that memory format.

    Raises InputError, CardError, ModelError or StorageError (all RobustbenchError) before any work where it can.
    """
    data = _dataset(x, y)
    workspace = workspace or open_workspace()
    name, workspace = _named_attack(attack, workspace)
    if norm not in NORM_NAMES:
        raise UnknownNameError("norm", norm, NORM_NAMES)
    radii = tuple(_radius(value) for value in (eps if isinstance(eps, (list, tuple)) else [eps]))
    if not radii:
        raise InputError("eps is an empty list; give at least one radius")
    search, versions = Search(precision, compiled, channels_last), algorithm_versions(workspace, [name], norm)
    plan = make_plan(workspace, [name], norm, radii, data, seed, versions, smoke=smoke).in_precision(precision)
    build_stages(plan)
    where = find_device(device, model)
    search.require(where)
    subject = make_subject(model, entry, Declared(randomness, clean_accuracy))
    if out is not None and not isinstance(model, nn.Module):
        raise InputError("a run that can be resumed needs an nn.Module: a plain callable has no weights to know it by")
    seen = examine(subject, data, where)
    other = None if surrogate is None else examine_surrogate(surrogate, data, where)
    plan = planned(plan, seen, subject, other)
    with placed(model, where):
        bench = make_bench(model, torch.from_numpy(data.x[0]), where, width, plan, search)
    with ExitStack() as stack:
        known, keep = Known(), watch or (lambda batch, progress: None)
        if progress:
            from robustbench_vit.progress import bar

            keep = _both(keep, stack.enter_context(bar(subject.entry["name"], len(data))))
        if out is not None:
            journal = stack.enter_context(open_journal(Path(out)))
            run = journal.run(run_key(subject, plan), subject.entry["name"])
            known = journal.known(run)
            keep = _both(lambda batch, progress: journal.append(run, [batch]), keep)
        run_plan(plan, subject, data, bench, known, keep, surrogate, judge=reliability)
    threads = torch.get_num_threads()
    ran = {"device": str(where), "width": bench.width.rows, "threads": threads, "workers": 0, **search.ran}
    return make_record(plan, subject.entry, data, known, seen.findings, ran, adversarials)


def _both(first: Watcher, second: Watcher) -> Watcher:
    def watch(batch: Batch, progress: Progress | None) -> None:
        first(batch, progress)
        second(batch, progress)

    return watch


def _radius(value: Any) -> float:
    try:
        return parse_number(value)
    except ValueError as error:
        raise InputError(f"eps: {error}") from error


def _dataset(x: Any, y: Any) -> Dataset:
    if isinstance(x, (str, Dataset)):
        if y is not None:
            raise InputError("a dataset brings its labels; leave y out")
        return load_dataset(x) if isinstance(x, str) else x
    if y is None:
        raise InputError("y is missing: give labels (n,), or a dataset in place of x")
    return arrays_dataset(x, y)


def _named_attack(attack: str | AttackCard, workspace: Workspace) -> tuple[str, Workspace]:
    """The attack's name, in a workspace that knows it; a card given as a value is named after its algorithm."""
    if isinstance(attack, str):
        return attack, workspace
    name = attack.algorithm if isinstance(attack, AlgorithmCard) else "cascade"
    return name, workspace.with_attack(Loaded(name, Path("<card>"), "<card>", attack))
