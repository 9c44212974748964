"""One file from the network, whole and checked, or an error that says why not."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any
from urllib.error import URLError

from robustbench_vit.errors import StorageError

TIMEOUT = 10.0
"""Seconds that a mirror has for its answer, and later for each further piece of the file."""

CHUNK = 1 << 20


class DownloadError(Exception):
    """No mirror sent the file; a line per mirror says why."""


def download(urls: Sequence[str], target: Path, sha256: str) -> None:
    """Writes to `target` what the first mirror sends that has this sha256; nothing else is ever left there.

    torchvision's own download is not used: it has no timeout, leaves partial files behind and prints.
    Raises DownloadError when no mirror sends the file, StorageError when it cannot be written.
    """
    failures = []
    for url in urls:
        try:
            return _fetch(url, target, sha256)
        except DownloadError as error:
            failures.append(f"{url}: {error}")
    raise DownloadError("\n".join(failures))


def is_web_page(start: bytes) -> bool:
    """Whether these first bytes are HTML: an error page under a data file's name."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _fetch(url: str, target: Path, sha256: str) -> None:
    chunks = _chunks(url)
    first = next(chunks, b"")  # no folder is made before the mirror has answered
    digest, size = hashlib.sha256(), 0
    with _replacing(target) as handle:
        for chunk in chain([first], chunks):
            digest.update(chunk)
            size += len(chunk)
            handle.write(chunk)
        if digest.hexdigest() != sha256:
            what = "a web page" if is_web_page(first) else f"{size} bytes with sha256 {digest.hexdigest()}"
            raise DownloadError(f"sent {what}, not the file with sha256 {sha256}")


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with _answer(url) as response:
            while chunk := response.read(CHUNK):
                yield chunk
    except (OSError, HTTPException) as error:
        raise DownloadError(_words(error)) from error


def _answer(url: str) -> Any:
    """The mirror's response. It is waited for in another thread: looking up a host's name knows no timeout, and a
    connection tries every address of the host in turn, so that many silent ones would take minutes."""
    request = urllib.request.Request(url, headers={"User-Agent": "robustbench_vit"})
    answers: SimpleQueue[Any] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=TIMEOUT))
        except (OSError, HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except Empty:
        raise DownloadError(f"no answer within {TIMEOUT:g} seconds") from None
    if isinstance(answer, Exception):
        raise DownloadError(_words(answer)) from answer
    return answer


def _words(error: Exception) -> str:
    """What went wrong, without urllib's wrapping."""
    inner = error.reason if type(error) is URLError else error
    return str(inner) or type(inner).__name__


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `target` at the end, unless an error comes first. Raises StorageError."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            yield handle
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
