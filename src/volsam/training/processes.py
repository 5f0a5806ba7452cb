"""Which of several processes this is, as torchrun says; one that was not started by it is alone."""

from __future__ import annotations

import os


def count() -> int:
    """All processes of a training, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """Those on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def place_here() -> int:
    """Of this one among those on this machine, from 0: the number of its graphics card."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this is the one that speaks, validates and writes."""
    return int(os.environ.get("RANK", "0")) == 0
