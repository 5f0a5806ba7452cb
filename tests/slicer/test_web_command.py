"""What the command that opens the module in a browser says before it opens anything."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).resolve().parents[2] / "slicer" / "VolSamWeb"


def said(*words: str) -> str:
    """The one line of a refusal."""
    done = subprocess.run(
        [sys.executable, "-S", str(COMMAND), *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert said(str(tmp_path / "ct.nii.gz")).startswith(f"error: there is no file {tmp_path / 'ct.nii.gz'}: give the")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert said("--port", port).startswith(f"error: port {port} cannot be had")
    assert said("--port", "70000").startswith("error: port 70000 cannot be had")


def test_without_the_libraries_of_slicer_it_says_how_to_get_them() -> None:
    assert "make slicer-env" in said("--port", "0")
