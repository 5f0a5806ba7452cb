"""What machine a figure was taken on, and what it can do at most: a short probe of its arithmetic and its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SHOWN_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instruction sets that decide how fast such networks can be on a CPU."""


@dataclass(frozen=True)
class Probe:
    """Rates that were reached: matrix products in float32 and int8 (10⁹ operations a second, None where there is no
    such product), and copied memory (10⁹ bytes a second, read and written)."""

    threads: int
    fp32: float
    int8: float | None
    copy: float


def probe(threads: int = 1, device: str = "cpu", seconds: float = 0.33) -> Probe:
    """About a second in all, on matrices of the sizes that these networks multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows, inner, columns = 512, 768, 3072
        operations = 2 * rows * inner * columns
        a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
        c, d = (torch.randint(-127, 127, matrix.shape, dtype=torch.int8, device=device) for matrix in (a, b))
        source = torch.empty(64 << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        try:
            torch._int_mm(c, d)
            int8: float | None = _rate(lambda: torch._int_mm(c, d), operations, seconds, device)
        except (RuntimeError, AttributeError):
            int8 = None
        return Probe(
            threads,
            _rate(lambda: a @ b, operations, seconds, device),
            int8,
            _rate(lambda: target.copy_(source), 2 * source.numel(), seconds, device),
        )
    finally:
        torch.set_num_threads(before)


def _rate(call: Callable[[], object], units: int, seconds: float, device: str) -> float:
    """10⁹ units a second; of processor time on one thread, which neighbours do not change, else of the wall."""
    on_device = device.startswith("cuda")
    clock = time.process_time if torch.get_num_threads() == 1 and not on_device else time.perf_counter
    call()
    if on_device:
        torch.cuda.synchronize()
    begin, count = clock(), 0
    while clock() - begin < seconds:
        call()
        count += 1
        if on_device:
            torch.cuda.synchronize()
    return count * units / (clock() - begin) / 1e9


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, instruction sets, cores, load, versions and commit, as plain data."""
    found: dict[str, Any] = {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in SHOWN_FLAGS if flag in _cpuinfo("flags").split()],
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("volsam", "torch", "openvino", "numpy")},
        "commit": _commit(),
    }
    if device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(device)
    return found


def headline(machine: dict[str, Any], probes: list[Probe]) -> str:
    """The lines above a table."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine.get('device') or machine['processor']}, {machine['cores']} cores, load {machine['load']}",
        f"flags {' '.join(machine['flags']) or 'none known'}; {versions}, Python {machine['python']}, "
        f"commit {machine['commit'] or 'unknown'}",
    ]
    for rate in probes:
        int8 = "no int8 product" if rate.int8 is None else f"int8 {rate.int8:.0f} GOP/s"
        lines.append(
            f"{rate.threads} thread{'s' if rate.threads > 1 else ''}: fp32 {rate.fp32:.0f} GFLOP/s, {int8}, "
            f"copy {rate.copy:.1f} GB/s"
        )
    return "\n".join(lines)


def as_data(probes: list[Probe]) -> list[dict[str, Any]]:
    """Probes for a JSON file."""
    return [asdict(rate) for rate in probes]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((row.split(":", 1)[1].strip() for row in rows if row.startswith(key)), "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _commit() -> str:
    """Of the checkout this package lies in, with a plus for changes; empty in an installation."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return ""
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
