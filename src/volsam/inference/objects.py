"""One object of a session: its log, the answers to its prompts so far, and its mask."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, Shape
from volsam.inference.log import PromptLog
from volsam.inference.painting import Answer, Patch

# For ready masks in the answers kept of one object.
MOST_BYTES = 256 << 20

Changed = tuple[Shape, Shape]
"""A box of voxels, its lowest corner and its highest (excluded)."""


def around(boxes: Sequence[Changed]) -> Changed | None:
    """The smallest box that holds several; None for none."""
    if not boxes:
        return None
    low = np.min([low for low, _ in boxes], axis=0)
    high = np.max([high for _, high in boxes], axis=0)
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


class ObjectState:
    """One object: its log, the answer to every prefix of prompts seen so far, and its mask."""

    def __init__(self, grid: Grid) -> None:
        self.log = PromptLog()
        self.answers: dict[tuple[int, ...], Answer | None] = {}
        # First axis fastest, as the formats write it: saving then copies nothing.
        self.canvas: NDArray[np.uint8] = np.zeros(grid.shape, np.uint8, order="F")
        self.patch = Patch((0, 0, 0), (0, 0, 0), np.zeros((0, 0, 0), bool))

    def known(self, key: tuple[int, ...]) -> Answer | None:
        """An answer, if it is there, which is then the last to be given away."""
        if key in self.answers:
            self.answers[key] = self.answers.pop(key)
        return self.answers.get(key)

    def keep(self, most: int) -> None:
        """Drop the least recently used answers; of those with masks of their own as many as there is room for."""
        for key in list(self.answers)[:-most]:
            del self.answers[key]
        room = MOST_BYTES
        newest = next(reversed(self.answers), None)
        for key, answer in list(self.answers.items())[::-1]:
            room -= 0 if answer is None or answer.ready is None else answer.ready.mask.nbytes
            if room < 0 and key != newest:
                del self.answers[key]

    def show(self, patch: Patch) -> Changed | None:
        """Paint `patch` in place of the last one; returns the box that holds both."""
        # Somebody who asked for the mask still holds the canvas (its base is shared by every view): leave it to them
        # and take a new one. Nothing lies outside the patch, so nothing is copied; fresh zeros cost next to nothing.
        # The two references counted are this object's and the argument's.
        if sys.getrefcount(self.canvas) > 2:
            self.canvas = np.zeros(self.canvas.shape, np.uint8, order="F")
        else:
            self.canvas[self.patch.window] = 0
        self.canvas[patch.window] = patch.mask
        boxes = [(p.low, p.high) for p in (self.patch, patch) if p.mask.size]
        self.patch = patch
        return around(boxes)
