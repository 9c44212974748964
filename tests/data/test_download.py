"""Downloads: whole and checked, or nothing and the reason."""

from __future__ import annotations

import hashlib
import http.client
import threading
import urllib.request
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from robustbench_vit.cli import main
from robustbench_vit.data import download as module
from robustbench_vit.data import load_dataset
from robustbench_vit.data.download import DownloadError, download
from robustbench_vit.data.mnist import files_of
from robustbench_vit.errors import InputError, StorageError

from .conftest import Answers

CONTENT = b"the published bytes"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FIRST, SECOND = "http://first.example/file", "http://second.example/file"


def test_the_first_mirror_that_has_it(tmp_path: Path, network: Answers) -> None:
    network.update({FIRST: CONTENT, SECOND: b"never asked"})
    download([FIRST, SECOND], tmp_path / "new" / "file", SHA256)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"<html>sign in</html>", f"sent a web page, not the file with sha256 {SHA256}"),
        (
            CONTENT[:-1],
            f"sent 18 bytes with sha256 {hashlib.sha256(CONTENT[:-1]).hexdigest()}, not the file with sha256 {SHA256}",
        ),
        (b"", f"sent 0 bytes with sha256 {hashlib.sha256(b'').hexdigest()}, not the file with sha256 {SHA256}"),
        (URLError(OSError("no network")), "no network"),
        (HTTPError(FIRST, 404, "Not Found", None, None), "HTTP Error 404: Not Found"),  # type: ignore[arg-type]
        (http.client.IncompleteRead(b""), "IncompleteRead(0 bytes read)"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_mirror_that_does_not_have_it(tmp_path: Path, network: Answers, answer: bytes, reason: str) -> None:
    network[FIRST] = answer
    with pytest.raises(DownloadError) as caught:
        download([FIRST, SECOND], tmp_path / "file", SHA256)
    assert str(caught.value) == f"{FIRST}: {reason}\n{SECOND}: no network"
    assert list(tmp_path.iterdir()) == []
    network[SECOND] = CONTENT
    download([FIRST, SECOND], tmp_path / "file", SHA256)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [CONTENT]


def test_a_connection_that_breaks_off(tmp_path: Path, network: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, _: int) -> bytes:
            if self.sent:
                raise ConnectionResetError(104, "Connection reset by peer")
            self.sent = True
            return CONTENT[:4]

        sent = False

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Broken())
    with pytest.raises(DownloadError, match="Connection reset by peer"):
        download([FIRST], tmp_path / "file", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: end.wait())
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    with pytest.raises(DownloadError, match=r"first\.example/file: no answer within 0\.05 seconds"):
        download([FIRST], tmp_path / "file", SHA256)
    end.set()
    assert list(tmp_path.iterdir()) == []


def test_without_an_answer_no_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        download([FIRST], tmp_path / "new" / "file", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, network: Answers) -> None:
    network[FIRST] = CONTENT
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^cannot write {tmp_path}/taken/file: "):
        download([FIRST], tmp_path / "taken" / "file", SHA256)


def test_an_old_file_is_kept_until_the_new_one_is_whole(tmp_path: Path, network: Answers) -> None:
    (tmp_path / "file").write_bytes(b"old")
    network[FIRST] = CONTENT[:3]
    with pytest.raises(DownloadError):
        download([FIRST], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_a_network_the_error_says_what_to_put_where(root: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name, "train")
    first, *mirrors, last = str(caught.value).splitlines()
    file = first.split()[2]
    assert first == f"{name}: no {file} in {root}, and it cannot be downloaded:"
    assert mirrors
    assert all(line.startswith("http") and line.endswith(f"{file}: no network") for line in mirrors)
    assert last.startswith(f"get it elsewhere and put it at {root}/")
    assert last.endswith(f"{file}; or set ROBUSTBENCH_VIT_DATA to the folder that has it")


def rbvit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "content", "said"),
    [
        ("test", None, "error: mnist: no t10k-images-idx3-ubyte.gz in "),
        ("test", b"<html></html>", "t10k-images-idx3-ubyte.gz is not the published file, or damaged: it is a web page"),
        ("test", b"\x1f\x8b", "t10k-images-idx3-ubyte.gz is not the published file, or damaged: sha256 "),
        ("val", None, "error: mnist has the splits 'train' and 'test', not 'val'\n"),
    ],
)
def test_the_command_line_exits_with_2(
    root: Path, capsys: pytest.CaptureFixture[str], split: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (root / files_of("mnist", "test")[0].name).write_bytes(content)
    code, err = rbvit(capsys, "attack", "digits_cnn", "--data", "mnist", "--split", split, "--weights", "none.pt")
    assert code == 2
    assert said in err
    assert "Traceback" not in err
