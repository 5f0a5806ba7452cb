"""Run a command and see what it took, and see from within what a process has needed of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volsam.errors import BadInput, NotSupported

MEASURABLE = hasattr(os, "wait4")
"""Whether this system tells what a process took."""


@dataclass(frozen=True)
class Run:
    """A finished process: seconds of wall and processor, and what it wrote to its output."""

    wall: float
    cpu: float
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
    return Run(wall, used.ru_utime + used.ru_stime, output)


def own_peak() -> float:
    """The most memory that this process has held, MiB.

    Asked from within: what Linux tells a parent of its child counts the parent's own size at the fork.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(row for row in status.read_text(encoding="ascii").splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, others kibibytes
