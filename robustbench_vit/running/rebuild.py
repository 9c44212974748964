"""What a stored record was made from, found again: its samples, its weights, its model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_vit.cards import Workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.recipe import apply_architecture
from robustbench_vit.errors import CardError, InputError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.normalise import normalised
from robustbench_vit.models.weights import load_weights
from robustbench_vit.plan import data_protocol
from robustbench_vit.records import Record


def recorded_data(record: Record, name: str | None) -> Dataset:
    """The record's samples, from its dataset or from `name` (a dataset or the path of an .npz file).

    Raises InputError for data that cannot be found by name, and for other data.
    """
    asked = record.protocol["data"]
    if name is None and asked["name"] in ("npz", "arrays"):
        where = f"the file {asked['split']}: give it as --data" if asked["name"] == "npz" else "arrays in Python"
        raise InputError(f"the record was made on {where}" + ("" if "file" in where else "; recheck it there"))
    data = load_dataset(name or asked["name"], asked["split"])
    if data.source_sha256 == asked["source_sha256"]:
        data = data.first(asked["n"])
    check_data(record, data)
    return data


def check_data(record: Record, data: Dataset) -> None:
    """Raises InputError unless `data` are the record's samples, from the same bytes."""
    asked, given = record.protocol["data"], data_protocol(data)
    if given["source_sha256"] != asked["source_sha256"]:
        raise InputError(
            f"other data than the record's: {data.name}/{data.split} has the sha256 {given['source_sha256'][:16]}…,"
            f" the record was made on {asked['name']}/{asked['split']} with {asked['source_sha256'][:16]}…"
        )
    if given["sample_ids_sha256"] != asked["sample_ids_sha256"]:
        renamed = given["split"] != asked["split"]
        raise InputError(
            f"other sample ids than the record's, from the same source {data.name}/{data.split}"
            + (f"; ids may come from a file's name: it was called {asked['split']}" if renamed else "")
        )


def rebuilt(record: Record, weights: Path, data: Dataset, workspace: Workspace) -> nn.Module:
    """The record's model with these weights, as `find_weights` found them, in eval mode.

    Raises InputError for records that don't name a model, and the errors of building one.
    """
    entry = record.entry
    model = build_model(entry["model"], **_arguments(entry, data))
    if entry.get("defense") is not None:
        model = apply_architecture(workspace.defense(entry["defense"]).card, model)
    load_weights(model, weights)
    if (norm := entry.get("normalise")) is not None:
        model = normalised(model, norm["mean"], norm["std"])
    return model.eval()


def _arguments(entry: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """The builder's arguments; records that don't hold them used those that follow from the data."""
    if (held := entry.get("model_args")) is not None:
        return dict(held)
    return {"in_chans": data.x.shape[1], **({} if data.name == "npz" else {"num_classes": data.num_classes})}


def find_weights(record: Record, path: Path, given: Path | None, workspace: Workspace, board: str | None) -> Path:
    """The file with the record's weights: `given`, else the first of the places where they may lie that has them.

    Those are the folder of the record (`path`), the name in the record from the current folder, and the folder of
    `board`, or of every board when None. Raises InputError for a record that names no weights, and WeightsError where
    only other ones, or none, are found.
    """
    entry = record.entry
    if not all(entry.get(key) for key in ("model", "weights", "weights_sha256")):
        raise InputError(
            f"{path}: names no model and weights to build from (it was made in Python?);"
            " recheck it there, with robustbench_vit.running.recheck.recheck(record, model, data, device)"
        )
    places = [given] if given is not None else list(_places(Path(entry["weights"]), path, workspace, board))
    files = [place for place in places if place.is_file()]
    for file in files:
        if _sha256(file) == entry["weights_sha256"]:
            return file
    wanted = f"{entry['weights']} with the sha256 {entry['weights_sha256'][:16]}…"
    if files:
        seen = "; ".join(f"{file} has {_sha256(file)[:16]}…" for file in files)
        raise WeightsError(f"other weights than the record's, which are {wanted}: {seen}")
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise WeightsError(f"no weights file {wanted} (looked at {looked}); give it as --weights FILE")


def _places(name: Path, record: Path, workspace: Workspace, board: str | None) -> Iterator[Path]:
    yield record.parent / name.name
    yield name
    if board is not None:
        loaded = workspace.board(board)
        yield loaded.path.parent / loaded.name / name
        return
    try:
        files = workspace.files("board")
    except CardError:  # a duplicate board is no reason not to look elsewhere
        return
    for each, file in files.items():
        yield file.parent / each / name


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
