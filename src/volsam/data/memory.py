"""Whether a volume fits into memory, found out before it is read."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.geometry import Grid

# The least that a voxel takes: two bytes of each intensity, as in most scans, and one of mask.
INTENSITY, MASK = 2, 1
CONTROL_GROUP = Path("/sys/fs/cgroup")


def require_room(grid: Grid, name: str, *, channels: int = 1, beside: int = 0) -> None:
    """Refuse a volume that cannot fit, with the numbers.

    channels: that are read; beside: bytes that a model takes for what it makes of them.
    """
    needed, free = prod(grid.shape) * (INTENSITY * channels + MASK) + beside, available_memory()
    if free is not None and needed > free:
        size = " × ".join(map(str, grid.shape))
        raise BadInput(
            f"{name} has {size} voxels, which take at least {gigabytes(needed)} of memory; {gigabytes(free)} are "
            "free: crop or resample it first"
        )


def available_memory() -> int | None:
    """Bytes that a new process may take, or None where the system does not tell."""
    known = [amount for amount in (_free_of_machine(), _free_of_group()) if amount is not None]
    return min(known, default=None)


def give_back() -> None:
    """Hand memory that is free to the system. glibc keeps it otherwise, some for each thread that ever had any."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _free_of_machine() -> int | None:
    """What Linux says it could free; elsewhere all memory there is."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_of_group() -> int | None:
    """What is left of the limit of a container."""
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        reclaimable = (CONTROL_GROUP / "memory.stat").read_text().partition("inactive_file ")[2].split()
        return max(0, limit - used + int(reclaimable[0]))
    except (OSError, ValueError, IndexError):
        return None


def gigabytes(count: float) -> str:
    """For a message."""
    return f"{count / 1e9:,.1f} GB"
