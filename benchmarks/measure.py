"""What the timing scripts share: run a process and measure it, name the machine, put numbers into a table.

Standard library only: the process that starts the others must be small, or its own memory would count as theirs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "volsam" / "weights" / "volsam-s.safetensors"
# What `volsam` runs, without a search for the script that the installation made.
VOLSAM = (sys.executable, "-c", "from volsam.cli import main; main()")


@dataclass(frozen=True)
class Run:
    """A finished process: seconds of wall and CPU time, peak memory in MiB, and what it wrote to its output."""

    wall: float
    cpu: float
    peak: float
    output: str


def run(command: Sequence[str]) -> Run:
    """Run a command from start to end; it ends the script if it fails."""
    before = time.perf_counter()
    with tempfile.TemporaryFile("w+") as complaint:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaint, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            complaint.seek(0)
            sys.exit(f"failed: {' '.join(command)}\n{output}{complaint.read()}")
    per_mebibyte = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / per_mebibyte, output)


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Median and quartiles, as a cell of a table."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}{unit}" if values else "-"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(values: Sequence[float], against: Sequence[float]) -> list[float]:
    """Round by round; both were measured in the same minute, so what else the machine did falls out."""
    return [value / other for value, other in zip(values, against, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Processor, cores, system, versions, the weights, and how busy the machine is."""
    packages = ", ".join(f"{name} {_version(name)}" for name in ("volsam", "torch", "numpy"))
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12] if WEIGHTS.is_file() else "none"
    return (
        f"{_processor()}, {_cores()} cores{_memory()}, {platform.system()}, Python {platform.python_version()}, "
        f"{packages}, weights {weights}{load}"
    )


def busy() -> str:
    """A sentence for the results when others were using the cores as well, else nothing."""
    if not hasattr(os, "getloadavg") or os.getloadavg()[0] < _cores() + 0.5:
        return ""
    return (
        f"The machine was busy (load {os.getloadavg()[0]:.1f} on {_cores()} cores): read the ratios, not the seconds."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    rows = path.read_text().splitlines() if path.is_file() else []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> str:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return ""
    return f", {int(path.read_text().split(maxsplit=2)[1]) / 2**20:.0f} GiB"
