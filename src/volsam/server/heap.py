"""How the memory of the process is shared out among its threads: for a process that does nothing but serve."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# M_ARENA_MAX of <malloc.h> of the GNU C library.
ARENA_MAX = -8


def share() -> None:
    """Let all threads take memory from one heap. Other C libraries than that of GNU are left alone.

    It gives each thread an arena of its own otherwise, up to eight for a core. Requests are answered by any of forty
    threads, so what one arena holds free another asks the system for; and the end of an arena is never handed back.
    Steps of the network run one at a time, and what they take is large: nobody waits long for the one heap.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
