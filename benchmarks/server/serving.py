"""A server in a process of its own, and what both scripts of this folder share."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from measure import VOLSAM  # noqa: E402


class Serving:
    """`volsam serve` on a free port of this machine."""

    def __init__(self, folder: Path, *options: str) -> None:
        words = ["serve", "--port", "0", "--studies", str(folder), "--sessions", str(folder / "sessions"), *options]
        self.process = subprocess.Popen([*VOLSAM, *words], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            sys.exit(f"the server did not start: {said}{self.process.stderr.read()}")
        self.address = found[0]

    def memory(self, field: str = "VmRSS") -> float:
        """MiB that the server takes now; VmHWM for the most that it ever took."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{field}:\s+(\d+)", text)[0]) / 1024

    def kill(self) -> None:
        """As if the power failed."""
        self.end(signal.SIGKILL)

    def end(self, how: int = signal.SIGTERM) -> None:
        """Stop it."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.communicate(timeout=60)

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def ball(shape: Sequence[int], radius: int, seed: int = 0) -> NDArray[np.int16]:
    """Soft tissue with noise, and a brighter ball in the middle, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(40, 15, (64, 64, 64)).astype(np.int16)
    values = np.tile(noise, [-(-size // 64) for size in shape])[: shape[0], : shape[1], : shape[2]]
    values = np.asarray(values, order="F")
    first = [size // 2 - radius - 1 for size in shape]
    part = values[tuple(slice(low, low + 2 * radius + 2) for low in first)]
    places = np.indices(part.shape) - (radius + 0.5)
    part[np.linalg.norm(places, axis=0) < radius] += 80
    return values


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def beside(path: Path, report: str) -> str:
    """The results file with this section in place of the old one."""
    old = path.read_text(encoding="utf-8") if path.is_file() else "# The server\n\n"
    head = report.splitlines()[0]
    parts = old.split("\n## ")
    kept = [parts[0].rstrip(), *(f"## {part}".rstrip() for part in parts[1:] if f"## {part}".splitlines()[0] != head)]
    return "\n\n".join([*kept, report.rstrip()]) + "\n"
