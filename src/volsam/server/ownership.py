"""Whose voxel is it, where the masks of several objects meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Shape
from volsam.inference.objects import Changed

Policy = Literal["overlap", "keep", "overwrite"]
Window = tuple[slice, slice, slice]
Mask = NDArray[np.bool_]


class Ownership:
    """The owner of each voxel, by the number of an object; every claimed voxel has one, and it is one that claims it.

    What an object claims is its mask in the session. How a claim is settled depends on the policy at that moment.
    """

    def __init__(self, shape: Shape) -> None:
        self._owner: NDArray[np.unsignedinteger] = np.zeros(shape, np.uint8, order="F")

    def part(self, number: int, window: Window) -> Mask:
        """Where in a window an object is the owner."""
        return np.asarray(self._owner[window] == number)

    def settle(
        self, number: int, window: Window, claims: Mapping[int, Mask], locked: set[int], policy: Policy
    ) -> set[int]:
        """An object's mask has changed in a window; returns the other objects that lost or got back voxels there.

        claims: the masks of all objects in the window, in the order in which they were made.
        """
        if number > np.iinfo(self._owner.dtype).max:
            self._owner = self._owner.astype(np.uint32, order="F")
        now = self._owner[window]
        before = now.copy(order="F")
        mine = claims.get(number, np.zeros(now.shape, bool))
        given_up = (now == number) & ~mine
        now[given_up] = 0
        for other, claim in claims.items():
            if other != number:
                now[given_up & claim & (now == 0)] = other
        free = now == 0
        if policy == "overwrite":
            held = list(locked - {number})
            free |= ~np.isin(now, held) if held else True
        now[mine & free] = number
        moved = before != now
        touched = set(np.unique(before[moved]).tolist()) | set(np.unique(now[moved]).tolist())
        return {int(other) for other in touched} - {0, number}

    def give(self, number: int, window: Window, mask: Mask) -> None:
        """Make an object the owner, whatever was before."""
        if number > np.iinfo(self._owner.dtype).max:
            self._owner = self._owner.astype(np.uint32, order="F")
        self._owner[window][mask] = number


def window_of(box: Changed) -> Window:
    """A box of voxels as an index."""
    low, high = box
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
