"""`volsam serve` before it serves: what it refuses, in one line."""

import socket
import sys

import pytest

from .conftest import error_of


def test_another_address_needs_a_key(type_):
    assert "--api-key-file" in error_of(type_("serve", "--host", "0.0.0.0"))


def test_a_port_that_is_taken_is_named(type_, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_of(type_("serve", "--port", port, "--sessions", tmp_path / "sessions"))
    assert f"127.0.0.1 port {port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--studies", "nowhere"), "--studies nowhere is not a folder"),
        (("--api-key-file", "nowhere"), "cannot read the key"),
        (("--dialects", "klingon", "--port", "0"), "no dialect is called 'klingon'"),
        (("--log-level", "loud"), "--log-level is debug"),
    ],
)
def test_bad_options_are_refused(type_, words, said, tmp_path):
    assert said in error_of(type_("serve", *words, "--sessions", tmp_path / "sessions"))


def test_a_missing_extra_is_named(type_, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install "volsam[serve]"' in error_of(type_("serve"))
