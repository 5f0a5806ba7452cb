"""A ready mask and clicks that correct it: what they do not mean stays as it is, voxel for voxel.

A network that is shown a mask and a click answers with a mask of its own, which differs from the one shown in many
places. Only a piece of that difference is taken: the one that was clicked in, and of it what is not much farther from
the click than the difference is thick there. So a click changes about what it means, and no mask gets worse far away
from it (`benchmarks/default_model/corrections.md`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.inference.model import FLAT, is_flat
from volsam.inference.painting import Answer, Patch, clicked, corner, unclicked
from volsam.prompts import Box, MaskHint, PromptSet

# How far a click may change things, in radii of the largest ball of the difference that holds it.
REACH = 1.5
# Half of the window, in voxels, in which the depth is looked for at first.
NEAR = 8
# From this half on only some voxels are looked at for it.
MOST_HALF = 32
# Of a stroke's points about so many are looked at.
MOST_POINTS = 64

Mask = NDArray[np.bool_]


def given(hint: MaskHint, grid: Grid) -> Patch:
    """A mask that a user gave, on the scan's voxels; refused where none of them is half in it."""
    low, high = grid.overlap(hint.grid)
    window = grid.crop(low, high)
    share = resample(hint.mask.astype(np.float32), hint.grid, window, mode="area")
    patch = trimmed(Patch(low, high, np.asarray(share) > 0.5))
    if not patch.mask.size:
        raise BadInput(
            "the starting mask holds no voxel of the scan: it lies beside it, or is thinner than half a voxel"
        )
    return patch


def boxed_anew(
    ready: Patch, prompts: PromptSet, done: int, answer: Callable[[PromptSet], Answer | None], grid: Grid
) -> tuple[Patch, int]:
    """The mask after the boxes that came since the first `done` ones, each answered anew; and how many there are."""
    boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
    for box in boxes[done:]:
        found = answer(PromptSet([box]))
        if found is not None:
            ready = anew_within(ready, box, unclicked(found, grid), grid)
    return ready, len(boxes)


def anew_within(ready: Patch, box: Box, answered: Patch, grid: Grid) -> Patch:
    """The mask as the network has it in a box, and as it was outside.

    A flat box says nothing of other slices: what the network finds there, within its sides, is added.
    """
    corners = np.sort(grid.to_voxels([box.low, box.high]), axis=0)
    first = np.round(corners[0]).astype(np.int64).clip(0, np.array(grid.shape) - 1)
    last = np.round(corners[1]).astype(np.int64).clip(0, np.array(grid.shape) - 1) + 1
    patches = [patch for patch in (ready, answered) if patch.mask.size]
    low = corner(np.min([first, *(patch.low for patch in patches)], axis=0))
    high = corner(np.max([last, *(patch.high for patch in patches)], axis=0))
    before, after = ready.within(low, high), answered.within(low, high)
    inside = tuple(slice(int(a - o), int(b - o)) for a, b, o in zip(first, last, low, strict=True))
    before[inside] = after[inside]
    if is_flat(box, grid):
        beside = tuple(
            slice(None) if b - a < FLAT else side for a, b, side in zip(corners[0], corners[1], inside, strict=True)
        )
        before[beside] |= after[beside]
    return trimmed(Patch(low, high, before))


def union(one: Patch, other: Patch) -> Patch:
    """Both masks in the box that holds both, as an array of its own."""
    patches = [patch for patch in (one, other) if patch.mask.size] or [one]
    low = corner(np.min([patch.low for patch in patches], axis=0))
    high = corner(np.max([patch.high for patch in patches], axis=0))
    return Patch(low, high, one.within(low, high) | other.within(low, high))


def trimmed(patch: Patch) -> Patch:
    """The same mask in the smallest box that holds it."""
    from volsam.data.simulate import bounding_box  # brings scipy, which takes long to load

    box = bounding_box(patch.mask)
    if box is None:
        return Patch(patch.low, patch.low, np.zeros((0, 0, 0), bool))
    low = corner(np.array([a + side.start for a, side in zip(patch.low, box, strict=True)]))
    high = corner(np.array([a + side.stop for a, side in zip(patch.low, box, strict=True)]))
    return Patch(low, high, np.ascontiguousarray(patch.mask[box]))


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
    numbers = numbers[:: -(-len(numbers) // MOST_POINTS)]
    both = union(ready, answered)
    before, after = ready.within(both.low, both.high), answered.within(both.low, both.high)
    found = before.copy()
    voxels, signs = clicked(prompts, grid)[numbers] - np.array(both.low), prompts.on(grid).labels[numbers]
    for voxel, sign in zip(voxels, signs, strict=True):
        if ((voxel >= 0) & (voxel < before.shape)).all() and after[tuple(voxel)] == sign:
            window, piece = _piece(before, after, voxel, bool(sign), grid.spacing)
            found[window][piece] = sign
    return trimmed(Patch(both.low, both.high, found))


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
        radius = _thickness(differs, voxel - low, spacing, max(1, half // MOST_HALF))
        # A larger ball that holds the click would show in the window as one of half its size.
        if differs.shape == before.shape or 2 * radius < (half - 2) * float(spacing.min()):
            break
        half *= 2
    away = _distances(differs.shape, voxel - low, spacing)
    parts, _ = ndimage.label(differs & (away <= REACH * radius))
    return window, parts == parts[tuple(voxel - low)]


def _thickness(region: Mask, voxel: NDArray[np.int64], spacing: NDArray[np.float64], step: int) -> float:
    """The radius in mm of the largest ball in a region that holds one of its voxels, by every `step`th voxel."""
    from scipy import ndimage

    start = voxel % step
    seen = region[tuple(slice(int(first), None, step) for first in start)]
    depths = ndimage.distance_transform_edt(np.pad(seen, 1), sampling=spacing * step)[1:-1, 1:-1, 1:-1]
    return float(depths[_distances(seen.shape, voxel // step, spacing * step) <= depths].max())


def _distances(shape: tuple[int, ...], middle: NDArray[np.int64], spacing: NDArray[np.float64]) -> NDArray[np.float32]:
    """From one voxel to all, in mm."""
    steps = np.ogrid[tuple(slice(0, size) for size in shape)]
    squares = [
        (((step - at) * size) ** 2).astype(np.float32) for step, at, size in zip(steps, middle, spacing, strict=True)
    ]
    return np.asarray(np.sqrt(squares[0] + squares[1] + squares[2]), dtype=np.float32)
