"""Answers of a model, and their masks on the scan's own voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, Shape, resample
from volsam.inference.model import Decoded
from volsam.prompts import PromptSet

# A logit that no threshold reaches.
OUTSIDE = -20.0
# Voxels painted at once; bounds the memory for very large objects.
SLAB = 1 << 24


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask on the scan's voxels from `low` to `high` (excluded); nothing outside."""

    low: Shape
    high: Shape
    mask: NDArray[np.bool_]

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The patch as an index into the scan."""
        return (slice(self.low[0], self.high[0]), slice(self.low[1], self.high[1]), slice(self.low[2], self.high[2]))

    def within(self, low: Shape, high: Shape) -> NDArray[np.bool_]:
        """The mask in another box of the scan, which holds the patch."""
        wide = np.zeros(tuple(b - a for a, b in zip(low, high, strict=True)), bool)
        if self.mask.size:
            wide[tuple(slice(a - o, b - o) for a, b, o in zip(self.low, self.high, low, strict=True))] = self.mask
        return wide


@dataclass(frozen=True, eq=False)
class Answer:
    """A mask where it was made: logits in `part` of the region `roi`, whole-region logits to feed back, and how good
    the model expects the mask to be (Dice, 0 to 1).

    ready: of an object that began with a ready mask, that mask as clicks have changed it so far, which is then what is
    painted; the rest is what the model was shown, or said, of it. boxes: how many since then are in it.
    """

    roi: Grid
    decoded: Decoded
    ready: Patch | None = None
    boxes: int = 0

    @property
    def quality(self) -> float | None:
        """Expected Dice with the object; None for a ready mask, of which the model knows only what clicks changed."""
        return None if self.ready is not None else self.decoded.quality

    @property
    def part_grid(self) -> Grid:
        """Where `decoded.logits` lie."""
        bounds = self.decoded.part
        return self.roi.crop([low for low, _ in bounds], [high for _, high in bounds])

    @property
    def low_res_grid(self) -> Grid:
        """Where `decoded.low_res` lies."""
        return self.roi.coarsened(self.roi.shape[0] // self.decoded.low_res.shape[0])


def paint(answer: Answer | None, prompts: PromptSet, grid: Grid) -> Patch:
    """The mask on the scan's voxels. Clicked voxels always carry their click's label."""
    _, prompts = prompts.ready()
    voxels = clicked(prompts, grid)
    signs = prompts.on(grid).labels
    own = Patch((0, 0, 0), (0, 0, 0), np.zeros((0, 0, 0), bool)) if answer is None else unclicked(answer, grid)
    low, high = own.low, own.high
    forced = voxels[signs]
    if len(forced):
        corners = np.concatenate([forced, [low, np.array(high) - 1]]) if own.mask.size else forced
        low, high = corner(corners.min(axis=0)), corner(corners.max(axis=0) + 1)
    mask = own.within(low, high)
    for voxel, sign in zip(voxels - np.array(low), signs, strict=True):
        if ((voxel >= 0) & (voxel < mask.shape)).all():
            mask[tuple(voxel)] = sign
    return Patch(low, high, mask)


def unclicked(answer: Answer, grid: Grid) -> Patch:
    """The mask of an answer on the scan's voxels, whatever was clicked."""
    if answer.ready is not None:
        return answer.ready
    low, high = grid.overlap(answer.part_grid)
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return Patch(low, low, np.zeros((0, 0, 0), bool))
    window = grid.crop(low, high)
    mask = np.zeros(window.shape, bool)
    planes = max(1, SLAB // (window.shape[1] * window.shape[2]))
    for start in range(0, window.shape[0], planes):
        stop = min(start + planes, window.shape[0])
        slab = window.crop((start, 0, 0), (stop, *window.shape[1:]))
        logits = resample(answer.decoded.logits, answer.part_grid, slab, fill=OUTSIDE)
        mask[start:stop] = np.asarray(logits, dtype=np.float32) > 0
    return Patch(low, high, mask)


def clicked(prompts: PromptSet, grid: Grid) -> NDArray[np.int64]:
    """The scan's voxels (n, 3) of clicks and scribble points."""
    return np.round(grid.to_voxels(prompts.points())).astype(np.int64).clip(0, np.array(grid.shape) - 1)


def corner(values: NDArray[np.int64]) -> Shape:
    """Three numbers of voxels as a tuple."""
    return (int(values[0]), int(values[1]), int(values[2]))
