"""A file is fetched whole and as expected, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request

import pytest

from volsam.errors import BadFile, BadInput
from volsam.recipes import download, store
from volsam.recipes.download import fetch, file_name, without_secrets

CONTENT = bytes(range(256)) * 10_000  # 2.56 MB, so three pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    def do_GET(self) -> None:
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/weights.pt" if self.path == "/moved" else "ftp://elsewhere/weights.pt")
            self.end_headers()
            return
        self.send_response(200)
        if not self.path.startswith("/unknown"):
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have heard enough
            self.wfile.write(CONTENT[:1_500_000] if self.path.startswith("/broken") else CONTENT)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def a_server() -> Iterator[str]:
    """Addresses of this machine; plain http is allowed for the time being."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SCHEMES", ("http", "file"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def quietly(items: Sequence[int], _: str) -> Iterable[int]:
    return items


@pytest.fixture
def a_file(tmp_path: Path) -> str:
    (tmp_path / "weights.pt").write_bytes(CONTENT)
    return (tmp_path / "weights.pt").as_uri()


@pytest.fixture
def a_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "fetched"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("given", [SHA256, SHA256.upper(), f" {SHA256}\n", None])
def test_a_file_comes_whole_with_its_checksum(given: str | None, a_file: str, a_folder: Path) -> None:
    path, found = fetch(a_file, a_folder, given, quietly)
    assert path == a_folder / "weights.pt"
    assert path.read_bytes() == CONTENT
    assert found == SHA256


def test_progress_is_told_in_megabytes(a_file: str, a_folder: Path) -> None:
    told: list[tuple[int, str]] = []

    def tell(items: Sequence[int], what: str) -> Iterable[int]:
        told.append((len(items), what))
        return items

    fetch(a_file, a_folder, None, tell)
    assert told == [(3, "fetching weights.pt (MB)")]


def test_another_file_than_expected_does_not_stay(a_file: str, a_folder: Path) -> None:
    other = "0" * 64
    with pytest.raises(BadFile, match=f"has the SHA-256 {SHA256}, and {other} was expected"):
        fetch(a_file, a_folder, other, quietly)
    assert list(a_folder.iterdir()) == []


@pytest.mark.parametrize("given", ["", "abc", "z" * 64, SHA256[:-1], SHA256 + "0"])
def test_what_is_no_checksum_is_refused(given: str, a_file: str, a_folder: Path) -> None:
    with pytest.raises(BadInput, match="64 hexadecimal digits"):
        fetch(a_file, a_folder, given, quietly)


@pytest.mark.parametrize("address", ["http://host/a.pt", "ftp://host/a.pt", "/etc/passwd", "a.pt", "data:,x", ""])
def test_only_safe_addresses_are_fetched(address: str, a_folder: Path) -> None:
    with pytest.raises(BadInput, match="begins with none of https://, file://"):
        fetch(address, a_folder, None, quietly)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host/folder/sam_vit_b.pth?download=true", "sam_vit_b.pth"),
        ("https://host/a%20b%2f..%2fc.pt", "c.pt"),
        ("https://host/", "download"),
        ("https://host/..", "download"),
        ("https://host/.hidden.pt", "hidden.pt"),
    ],
)
def test_the_name_is_the_last_part_of_the_address(address: str, name: str) -> None:
    assert file_name(address) == name


def test_a_card_keeps_no_secrets_of_an_address() -> None:
    assert without_secrets("https://me:secret@host:8/a/b.pt?token=1#x") == "https://host:8/a/b.pt"


def test_a_file_that_is_not_there_cannot_be_reached(a_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"cannot be reached .*volsam models import"):
        fetch((tmp_path / "gone.pt").as_uri(), a_folder, None, quietly)
    assert list(a_folder.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_it_fills(
    a_file: str, a_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = store.shutil.disk_usage(a_folder)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    with pytest.raises(BadInput, match="takes 5 MB, and 3 MB are free"):
        fetch(a_file, a_folder, None, quietly)
    assert list(a_folder.iterdir()) == []


def test_a_fetch_that_is_stopped_leaves_nothing(a_file: str, a_folder: Path) -> None:
    def stop(items: Sequence[int], _: str) -> Iterator[int]:
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(a_file, a_folder, None, stop)
    assert list(a_folder.iterdir()) == []


# --- by a server -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("http_allowed")
@pytest.mark.parametrize("path", ["weights.pt", "unknown.pt", "moved"])
def test_a_server_is_asked(path: str, a_server: str, a_folder: Path) -> None:
    fetched, found = fetch(f"{a_server}/{path}", a_folder, SHA256, quietly)
    assert (fetched.read_bytes(), found) == (CONTENT, SHA256)


@pytest.mark.usefixtures("http_allowed")
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone.pt", "answers 404 Not Found"),
        ("broken.pt", "the connection broke after 1,[0-9,]+ "),
        ("moved-away", "leads on to ftp://elsewhere/weights.pt, which is not https"),
    ],
)
def test_a_server_that_does_not_give_it_is_named(path: str, says: str, a_server: str, a_folder: Path) -> None:
    with pytest.raises(BadFile, match=says):
        fetch(f"{a_server}/{path}", a_folder, None, quietly)
    assert list(a_folder.iterdir()) == []


@pytest.mark.usefixtures("http_allowed")
def test_a_file_of_unknown_length_stops_where_the_disk_is_full(
    a_server: str, a_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = store.shutil.disk_usage(a_folder)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    with pytest.raises(BadInput, match="3 MB are free"):
        fetch(f"{a_server}/unknown.pt", a_folder, None, quietly)


@pytest.mark.usefixtures("http_allowed")
def test_a_server_that_is_not_there_cannot_be_reached(a_folder: Path) -> None:
    with pytest.raises(BadFile, match="cannot be reached"):
        fetch("http://127.0.0.1:9/weights.pt", a_folder, None, quietly)


@pytest.mark.parametrize("target", ["http://host/a.pt", "file:///etc/passwd", "ftp://host/a"])
def test_no_redirection_leaves_https(target: str) -> None:
    follow = download._StaysSafe().redirect_request
    request = Request("https://host/a.pt")
    with pytest.raises(BadFile, match="which is not https"):
        follow(request, None, 302, "Found", Message(), target)
    assert follow(request, None, 302, "Found", Message(), "https://other/b.pt").full_url == "https://other/b.pt"
