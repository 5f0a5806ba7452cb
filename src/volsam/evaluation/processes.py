"""Run a command and see what it took: seconds of wall and processor, and its peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from volsam.errors import BadInput, NotSupported

MEASURABLE = hasattr(os, "wait4")
"""Whether this system tells what a process took."""


@dataclass(frozen=True)
class Run:
    """A finished process: seconds, peak resident memory in MiB, and what it wrote to its output."""

    wall: float
    cpu: float
    peak: float
    output: str


def run(command: Sequence[str], threads: int = 1) -> Run:
    """From start to end; refused with its last line if it fails. The process computes on so many threads."""
    if not MEASURABLE:
        raise NotSupported("this system does not tell what a process took: run this part of the benchmark on Unix")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as complaint:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaint, text=True, env=environment)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode != 0:
            complaint.seek(0)
            last = (complaint.read().strip() or f"exit status {process.returncode}").splitlines()[-1]
            raise BadInput(f"a process of the benchmark failed: {last}")
    per_mebibyte = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / per_mebibyte, output)
