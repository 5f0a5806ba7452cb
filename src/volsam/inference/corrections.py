"""A ready mask and clicks that correct it: what they do not mean stays as it is, voxel for voxel.

A network that is shown a mask and a click answers with a mask of its own, which differs from the one shown in many
places. Only a piece of that difference is taken: the one that was clicked in, and of it what is not much farther from
the click than the difference is thick there. So a click changes about what it means, and no mask gets worse far away
from it (`benchmarks/default_model/corrections.md`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, resample
from volsam.inference.painting import Patch, clicked, corner
from volsam.prompts import MaskHint, PromptSet

# How far a click may change things, in radii of the largest ball of the difference that holds it.
REACH = 1.5
# Half of the window, in voxels, in which the depth is looked for at first.
NEAR = 8

Mask = NDArray[np.bool_]


def given(hint: MaskHint, grid: Grid) -> Patch:
    """A mask that a user gave, on the scan's voxels."""
    low, high = grid.overlap(hint.grid)
    window = grid.crop(low, high)
    share = resample(hint.mask.astype(np.float32), hint.grid, window)
    return Patch(low, high, np.asarray(share) > 0.5)


def contradicted(ready: Patch, prompts: PromptSet, grid: Grid) -> NDArray[np.int64]:
    """Which points of clicks and scribbles, by their numbers, say something else than the mask."""
    voxels, signs = clicked(prompts, grid), prompts.on(grid).labels
    low, high = np.array(ready.low), np.array(ready.high)
    inside = ((voxels >= low) & (voxels < high)).all(axis=1)
    told = np.zeros(len(voxels), bool)
    told[inside] = ready.mask[tuple((voxels[inside] - low).T)]
    return np.flatnonzero(told != signs)


def corrected(ready: Patch, answered: Patch, prompts: PromptSet, grid: Grid) -> Patch:
    """The mask with the pieces that clicks mean changed to what the network answered.

    Args:
        ready: the mask so far.
        answered: the network's own mask.
        prompts: what was said since the mask was given; clicks that agree with it change nothing.
        grid: the scan's.
    """
    numbers = contradicted(ready, prompts, grid)
    if len(numbers) == 0:
        return ready
    patches = [patch for patch in (ready, answered) if patch.mask.size]
    low = corner(np.min([patch.low for patch in patches], axis=0))
    high = corner(np.max([patch.high for patch in patches], axis=0))
    before, after = ready.within(low, high), answered.within(low, high)
    voxels, signs = clicked(prompts, grid)[numbers] - np.array(low), prompts.on(grid).labels[numbers]
    for voxel, sign in zip(voxels, signs, strict=True):
        if ((voxel < 0) | (voxel >= before.shape)).any() or before[tuple(voxel)] == sign:
            continue  # where the network saw nothing, or another click has changed it already
        if after[tuple(voxel)] == sign:
            window, piece = _piece(before, after, voxel, bool(sign), grid.spacing)
            before[window][piece] = sign
    return Patch(low, high, before)


def _piece(
    before: Mask, after: Mask, voxel: NDArray[np.int64], sign: bool, spacing: NDArray[np.float64]
) -> tuple[tuple[slice, ...], Mask]:
    """A window around a click, and in it what the network would change to its sign, connected with the click."""
    from scipy import ndimage  # takes long to load, and most sessions begin with a click

    half = NEAR
    while True:
        low = np.maximum(voxel - half, 0)
        window = tuple(slice(int(a), int(b) + half + 1) for a, b in zip(low, voxel, strict=True))
        one, other = before[window], after[window]
        differs = (other & ~one) if sign else (one & ~other)
        away = _distances(differs.shape, voxel - low, spacing)
        depths = ndimage.distance_transform_edt(np.pad(differs, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        reach = REACH * float(depths[away <= depths].max())
        # What goes on beyond the window looks shallow at its border.
        if differs.shape == before.shape or reach < (half - 1) * float(spacing.min()):
            break
        half *= 2
    parts, _ = ndimage.label(differs & (away <= reach))
    return window, parts == parts[tuple(voxel - low)]


def _distances(shape: tuple[int, ...], middle: NDArray[np.int64], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """From one voxel to all, in mm."""
    steps = np.ogrid[tuple(slice(0, size) for size in shape)]
    squares = [((step - at) * size) ** 2 for step, at, size in zip(steps, middle, spacing, strict=True)]
    return np.asarray(np.sqrt(squares[0] + squares[1] + squares[2]), dtype=np.float64)
