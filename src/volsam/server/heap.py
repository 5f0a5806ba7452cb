"""How the process keeps its memory: for a process that does nothing but serve, for days."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

# M_ARENA_MAX of <malloc.h> of the GNU C library.
ARENA_MAX = -8
# What the libraries below torch keep for the next call, with no end that matters for one command. MKL keeps the work
# space of every matrix product; oneDNN keeps 1024 programs, one for each number of prompts that was ever seen.
KEPT = {"MKL_DISABLE_FAST_MM": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


def forget() -> None:
    """Let libraries hand back what they would keep, unless the environment says otherwise; before torch is imported."""
    for name, value in KEPT.items():
        os.environ.setdefault(name, value)


def share() -> None:
    """Let all threads take memory from one heap. Other C libraries than that of GNU are left alone.

    It gives each thread an arena of its own otherwise, up to eight for a core. Requests are answered by any of forty
    threads, so what one arena holds free another asks the system for; and the end of an arena is never handed back.
    Steps of the network run one at a time, and what they take is large: nobody waits long for the one heap.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
