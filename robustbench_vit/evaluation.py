"""Plan + model + data + engine -> record: the one module that joins them.

It isn't called `evaluate`, because importing a submodule of that name would hide the function
`robustbench_vit.evaluate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_vit.attacks import NORM_NAMES, algorithms
from robustbench_vit.cards import AlgorithmCard, AttackCard, Loaded, Workspace, open_workspace, parse_number
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.data.dataset import content_ids
from robustbench_vit.engine.cascade import Cascade, build_stages
from robustbench_vit.engine.intake import check_samples, intake
from robustbench_vit.engine.lanes import Bench
from robustbench_vit.engine.pool import PoolSettings
from robustbench_vit.engine.stock import Progress
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.plan import Plan, make_plan
from robustbench_vit.provenance import provenance
from robustbench_vit.records import Finding, Outcome, Record, Status
from robustbench_vit.records.journal import Batch, Known, open_journal
from robustbench_vit.records.record import canonical
from robustbench_vit.records.rows import breaking_row, outcome

Watcher = Callable[[Batch, Progress | None], None]
"""Told of every batch as it is decided."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, and what a record says of it."""

    model: Any
    entry: Mapping[str, Any]
    fingerprint: str  # of architecture and weights


def make_subject(model: Any, entry: Mapping[str, Any] | None = None) -> Subject:
    """The model with its number of parameters and a fingerprint of its weights."""
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else None
    named = {"name": type(model).__name__, **(entry or {})}
    return Subject(model, {**named, "parameters": parameters}, fingerprint(model))


def fingerprint(model: Any) -> str:
    """A sha256 of a module's structure, state and buffers; of a plain callable only its name is known."""
    digest = hashlib.sha256()
    if not isinstance(model, nn.Module):
        digest.update(f"callable {getattr(model, '__qualname__', type(model).__qualname__)}".encode())
        return digest.hexdigest()
    digest.update(repr(model).encode())
    # Buffers that no checkpoint holds decide answers too: a normalisation's mean and std, for one.
    for name, value in {**dict(model.named_buffers()), **model.state_dict()}.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def algorithm_versions(workspace: Workspace, attacks: Sequence[str], where: str | None = None) -> dict[str, int]:
    """The version of every algorithm that the attack cards use; raises UnknownNameError for unknown ones.

    `where` is the card that names the attacks, if one does.
    """
    lanes = [lane for name in attacks for lane in workspace.lanes(name, where)]
    return {lane.card.algorithm: algorithms.get(lane.card.algorithm, lane.shown).algorithm_version for lane in lanes}


def run_key(subject: Subject, plan: Plan) -> str:
    """Identifies the rows that may be reused: same weights, samples, verification, precision and seed."""
    data = {k: v for k, v in plan.protocol["data"].items() if k not in ("n", "sample_ids_sha256")}
    shared = {k: plan.protocol[k] for k in ("schema", "norm", "precision", "verification", "criterion")}
    return hashlib.sha256(
        canonical({"model": subject.fingerprint, "data": data, "seed": plan.seed, **shared}).encode()
    ).hexdigest()


def default_width(pixels: int, device: torch.device) -> int:
    """Rows at a time: about a million pixel values on a CPU, sixteen times that on an accelerator."""
    room = 2**20 * (1 if device.type == "cpu" else 16) // max(pixels, 1)
    return min(max(2 ** (room.bit_length() - 1) if room else 8, 8), 256 if device.type == "cpu" else 1024)


def make_bench(model: Any, device: torch.device, width: int | None, seed: int, pixels: int) -> Bench:
    """How the engine may use the model; `width` None chooses one."""
    if width is not None and width < 1:
        raise InputError(f"width must be at least 1, got {width}")
    width = width or default_width(pixels, device)
    # Below a physical batch of 64 a CPU's passes get slower per row; an accelerator wants all its slots filled.
    speculate_to = min(width, 64) if device.type == "cpu" else width
    return Bench(model, device, width, PoolSettings(width, speculate_to), seed)


def find_device(device: str | torch.device | None, model: Any) -> torch.device:
    """The device asked for, else the model's own; raises InputError for one that doesn't exist."""
    if device is None:
        first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
        return first.device if first is not None else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    return found


@contextmanager
def placed(model: Any, device: torch.device) -> Iterator[None]:
    """While open, the module is on `device`; afterwards it is back where it was."""
    if not isinstance(model, nn.Module):
        yield
        return
    home = find_device(None, model)
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


def examine(subject: Subject, data: Dataset, device: torch.device) -> list[Finding]:
    """The findings of intake; raises InputError and ModelError for samples and models that cannot be evaluated."""
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    check_samples(x, y)
    with placed(subject.model, device):
        return intake(subject.model, x.to(device), y.to(device))


def run_plan(plan: Plan, subject: Subject, data: Dataset, bench: Bench, known: Known, watch: Watcher) -> None:
    """Computes what `known` doesn't hold yet, telling `watch` of every batch; for models that passed `examine`."""
    x = torch.from_numpy(data.x).to(bench.device)
    y = torch.from_numpy(data.y).to(bench.device)
    with placed(subject.model, bench.device):
        cascade = Cascade(plan, bench, x, y, known)
        with closing(cascade.run()) as batches:  # an error in `watch` must not leave the model frozen
            for batch in batches:
                watch(batch, cascade.progress)


def outcomes_of(plan: Plan, known: Known) -> tuple[Outcome, ...]:
    """The outcomes that retired rows amount to; what hasn't run yet is 'not_run'."""
    if not all(sample in known.clean for sample in plan.samples):
        return tuple(
            Outcome(sample, attack.name, plan.norm, eps, "untargeted", Status.NOT_RUN)
            for eps in plan.eps
            for attack in plan.attacks
            for sample in plan.samples
        )
    classes = len(next(iter(known.clean.values())).logits) // 4
    return tuple(
        outcome(stage.plan.name, plan.norm, specs, eps, known.clean[sample], known.rows)
        for eps in plan.eps
        for stage in build_stages(plan)
        for specs in [stage.specs(classes)]
        for sample in plan.samples
    )


def complete(plan: Plan, known: Known) -> bool:
    """Whether nothing is left to compute."""
    return all(o.status is not Status.NOT_RUN for o in outcomes_of(plan, known))


def make_record(
    plan: Plan,
    subject_entry: Mapping[str, Any],
    data: Dataset,
    known: Known,
    findings: Sequence[Finding],
    run: Mapping[str, Any],
    images: bool,
) -> Record:
    """The record of a finished run; `run` adds to its provenance (device, width, workers, …)."""
    return Record(
        entry=subject_entry,
        protocol=plan.protocol,
        outcomes=outcomes_of(plan, known),
        findings=tuple(findings),
        provenance={
            **provenance(),
            **run,
            "seed": plan.seed,
            "seconds": {name: round(seconds, 2) for name, seconds in known.seconds.items()},
            "wasted_passes": dict(known.wasted),
        },
        images=_images(plan, data, known) if images else None,
    )


def _images(plan: Plan, data: Dataset, known: Known) -> np.ndarray:
    """(n, c, h, w): adversarial images under the last attack and the first eps, clean ones where there is none."""
    classes = len(next(iter(known.clean.values())).logits) // 4
    specs = build_stages(plan)[-1].specs(classes)
    images = data.x.copy()
    for i, sample in enumerate(plan.samples):
        row = breaking_row(specs, plan.eps[0], sample, known.rows) if known.clean[sample].correct else None
        if row is not None and row.image is not None:
            images[i] = np.frombuffer(row.image, np.float32).reshape(images[i].shape)
    return images


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
) -> Record:
    """The record of `model` under an attack card: who falls, to what, at what cost.

    Args:
        model: an nn.Module in eval mode (or a callable) from images (n, c, h, w) in [0, 1] to logits (n, classes);
            outputs with `.logits` are unwrapped. It is left as it was: mode, device and requires_grad.
        x: float images (n, c, h, w) in [0, 1]; or a Dataset, or a dataset's name (its test split), which bring y along.
        y: int64 labels (n,).
        attack: an attack card's name in the workspace, or a card.
        norm: 'linf' or 'l2'.
        eps: radius of the budget, or several for a curve; '8/255' is legal.
        seed: of the keyed noise; equal seeds give equal results whatever the width or order of samples.
        device: where to run; default: where the model is.
        width: rows in the pool at a time; default: chosen from the images' size.
        adversarials: keep the images of the first eps.
        progress: show a progress bar.
        out: a folder for the journal; the same call again resumes.
        workspace: where cards are looked up; default: the built-in ones and the current folder's.

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
    plan = make_plan(workspace, [name], norm, radii, data, seed, algorithm_versions(workspace, [name]), smoke=smoke)
    build_stages(plan)
    where = find_device(device, model)
    bench = make_bench(model, where, width, seed, data.x[0].size)
    subject = make_subject(model, entry)
    if out is not None and not isinstance(model, nn.Module):
        raise InputError("a run that can be resumed needs an nn.Module: a plain callable has no weights to know it by")
    findings = examine(subject, data, where)
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
        run_plan(plan, subject, data, bench, known, keep)
    ran = {"device": str(where), "width": bench.pool.width, "threads": torch.get_num_threads(), "workers": 0}
    return make_record(plan, subject.entry, data, known, findings, ran, adversarials)


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
