"""A record's contact sheet: chosen samples under each other, as one PNG file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustbench_vit.data import Dataset
from robustbench_vit.errors import InputError, StorageError
from robustbench_vit.pictures import drawing
from robustbench_vit.pictures.attention import NoAttention
from robustbench_vit.pictures.columns import amplification, image_columns
from robustbench_vit.pictures.layout import TITLE, Line, laid_out
from robustbench_vit.pictures.looks import look, look_columns, look_notes
from robustbench_vit.pictures.shown import Held, Shown, held_images, shown
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.storage import write_atomic

MOST = 64
"""Samples on one sheet at most."""


def save_pictures(
    record: Record, model: Any, data: Dataset, path: str | os.PathLike[str], n: int = 8, attention: bool = True
) -> Path:
    """Writes the contact sheet to `path`, a PNG file; returns it. Raises what `contact_sheet` raises, StorageError."""
    path = Path(path)
    write_atomic(path, contact_sheet(record, model, data, n, attention))
    return path


def contact_sheet(record: Record, model: Any, data: Dataset, n: int = 8, attention: bool = True) -> bytes:
    """A PNG picture of at most n samples of a record with images: broken ones first, then robust ones.

    Each with its clean image, the adversarial one and their amplified difference, the model's answers, the lane that
    broke it and the size of the perturbation; of a Vision Transformer also its attention before and after, unless
    `attention` is False. `model` is the record's, from images in [0, 1]; it is left as it was. Equal arguments give
    equal bytes on one machine.

    Raises InputError for a record without images, for other data, and for a model whose answers contradict the record;
    ModelError when attention should be readable and isn't.
    """
    if not 1 <= n <= MOST:
        raise InputError(f"a sheet shows 1 to {MOST} samples, not {n}")
    held = held_images(record, data)
    check_drawable(data)
    samples = shown(held, model, data, n)
    factor = amplification(samples)
    columns, notes = list(image_columns(samples, held.norm, factor)), list(_image_notes(held, samples, factor))
    if attention:
        looks = look(model, samples)
        if isinstance(looks, NoAttention):
            notes.append(f"No attention is shown: {looks.reason}.")
        else:
            columns += look_columns(samples, looks)
            notes += look_notes(looks)
    return drawing.png(
        laid_out(list(_title(record, held, samples, data)), [_heading(s) for s in samples], columns, notes)
    )


def check_drawable(data: Dataset) -> None:
    """Raises InputError unless the images are grey or colour."""
    if (channels := data.x.shape[1]) not in (1, 3):
        raise InputError(f"pictures need grey or colour images (1 or 3 channels); these have {channels} channels")


def ready(folder: Path) -> Path:
    """The folder, made if need be; raises InputError for a file, StorageError where nothing can be written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the pictures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write into {folder}: no permission")
    return folder


def _title(record: Record, held: Held, samples: Sequence[Shown], data: Dataset) -> Iterator[Line]:
    entry, at = record.entry, record.at(held.attack, held.eps, record.protocol["criterion"])
    made = [str(entry[key]) for key in ("model", "defense") if entry.get(key) and entry[key] != entry["name"]]
    yield Line(str(entry["name"]) + (f" ({', '.join(made)})" if made else ""), TITLE)
    where = "/".join(part for part in (data.name, data.split) if part)
    yield Line(f"{held.attack}, {held.norm}, eps {_eps(held.norm, held.eps)}; {len(held.outcomes)} samples of {where}")
    if record.protocol.get("profile") == "smoke":
        yield Line("Smoke profile: shortened attacks; what survived them means nothing.", colour=drawing.BAD)
    else:
        yield Line(f"clean accuracy {100 * at.clean_accuracy:.1f} %, robust accuracy {100 * at.robust_accuracy:.1f} %")
    counts = [
        f"{sum(test(s.outcome) for s in samples)} of {sum(test(o) for o in held.outcomes)} {name}"
        for name, test in (("broken", _broken), ("robust", _robust), ("misclassified", _misclassified))
    ]
    yield Line(f"shown: {', '.join(counts)}", colour=drawing.PALE)


def _broken(outcome: Outcome) -> bool:
    return outcome.status is Status.BROKEN


def _robust(outcome: Outcome) -> bool:
    return outcome.robust


def _misclassified(outcome: Outcome) -> bool:
    return outcome.status is Status.MISCLASSIFIED


def _eps(norm: str, eps: float) -> str:
    """'0.1' where that is all of it, '8/255' for whole grey levels, else four digits."""
    levels, short = round(eps * 255), f"{eps:.4g}"
    whole = norm == "linf" and levels > 0 and abs(eps * 255 - levels) < 1e-6
    return f"{levels}/255" if whole and float(short) != eps else short


def _heading(sample: Shown) -> str:
    outcome = sample.outcome
    aim = "" if outcome.target is None else f", aimed at class {outcome.target}"
    words = {
        Status.BROKEN: f"broken by {outcome.by}{aim}",
        Status.MISCLASSIFIED: "misclassified without an attack",
        Status.SURVIVED: "robust: no lane broke it",
    }
    return f"{outcome.sample}: true class {sample.true}, {words.get(outcome.status, outcome.status.value)}"


def _image_notes(held: Held, samples: Sequence[Shown], factor: float) -> Iterator[str]:
    yield "Below an image: the class the model names and its softmax confidence, green if right, red if wrong."
    if any(s.adversarial is not None for s in samples):
        yield f"Difference: adversarial less clean, times {factor:g}, around middle grey; larger values are cut off."
    if held.random:
        yield "The model answers at random: each answer is that of one draw."
