"""Published data files: where they are looked for, and the check that they are the right ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path

from robustbench_vit.data.download import DownloadError, download, is_web_page
from robustbench_vit.errors import InputError

VARIABLE = "ROBUSTBENCH_VIT_DATA"


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    dataset: str
    name: str
    sha256: str  # of the published bytes
    folder: str  # torchvision's place for it, below a data folder
    urls: Callable[[], Sequence[str]]  # torchvision's mirrors, in the order to try; asked only for a download
    unpacked_sha256: str | None = None  # of what a .gz file holds, when known: then that file will do too
    namesakes: frozenset[str] = frozenset()  # sha256 of other datasets' files of the same name

    @property
    def hashes(self) -> dict[str, str]:
        """File name -> sha256, for every form in which the file may be there; the published one first."""
        unpacked = {self.name.removesuffix(".gz"): self.unpacked_sha256} if self.unpacked_sha256 else {}
        return {self.name: self.sha256, **unpacked}


def data_folders() -> list[Path]:
    """Where data is looked for, in this order; downloads go to the last.

    Only the folder that ROBUSTBENCH_VIT_DATA names, when it is set; else ./data and ~/.cache/robustbench_vit/data.
    """
    if chosen := os.environ.get(VARIABLE):
        folder = Path(chosen).expanduser()
        if os.path.isfile(folder):
            raise InputError(f"{VARIABLE}={chosen} is a file; name the folder that holds the data")
        return [folder]
    return [Path("data"), Path.home() / ".cache" / "robustbench_vit" / "data"]


def places(dataset: str, folder: str) -> list[Path]:
    """Folders that may hold a dataset's files: torchvision's place, one called like the dataset, the data folder."""
    return list(dict.fromkeys(root / below for root in data_folders() for below in (folder, dataset, "")))


@contextmanager
def opened(file: Published) -> Iterator[BufferedReader]:
    """The file at its start, found or downloaded, its sha256 checked.

    Raises InputError when it is neither there nor to be had, or not the published one; StorageError when a download
    cannot be written.
    """
    path = _found(file) or _downloaded(file)
    try:
        with path.open("rb") as handle:
            check_hash(handle, path, "sha256", file.hashes[path.name])
            yield handle
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def check_hash(handle: BufferedReader | BytesIO, path: Path, algorithm: str, expected: str) -> None:
    """Raises InputError unless the file has this hash; leaves `handle` at its start."""
    found = _digest(handle, algorithm)
    if found == expected:
        return
    seen = "it is a web page (HTML)" if is_web_page(handle.read(64)) else f"{algorithm} {found}, expected {expected}"
    raise InputError(
        f"{path} is not the published file, or damaged: {seen}, {path.stat().st_size} bytes;\n"
        "remove it (and what was unpacked from it), then the same command downloads it again"
    )


def source_sha256(files: Sequence[Published]) -> str:
    """The published file's sha256; for several files, the sha256 of what the program `sha256sum` prints for them."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in files).encode()).hexdigest()


def _found(file: Published) -> Path | None:
    candidates = (place / name for place in places(file.dataset, file.folder) for name in file.hashes)
    return next((path for path in candidates if os.path.isfile(path) and not _is_namesake(path, file)), None)


def _is_namesake(path: Path, file: Published) -> bool:
    if not file.namesakes:
        return False
    try:
        with path.open("rb") as handle:
            return _digest(handle, "sha256") in file.namesakes
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _digest(handle: BufferedReader | BytesIO, algorithm: str) -> str:
    found = hashlib.file_digest(handle, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    handle.seek(0)
    return found


def _downloaded(file: Published) -> Path:
    folder = data_folders()[-1]
    target = folder / file.folder / file.name
    try:
        download(file.urls(), target, file.sha256)
    except DownloadError as error:
        looked = ", ".join(str(root) for root in data_folders())
        raise InputError(
            f"{file.dataset}: no {file.name} in {looked}, and it cannot be downloaded:\n{error}\n"
            f"get it elsewhere and put it at {target}; or set {VARIABLE} to the folder that has it"
        ) from error
    return target
