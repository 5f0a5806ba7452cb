"""A picture of a mask beside the truth: three planes through the worst error; right, missed and wrong in colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from volsam.data.preprocess import eight_bit_window, to_eight_bit
from volsam.data.simulate import Mask, bounding_box, next_click
from volsam.geometry import Grid
from volsam.volume import Volume

# Pixels along the sides of a plane; what is shown spans object and mask so many times.
EDGE = 280
ROOM = 1.6
# How much of the colour covers the grey.
COVER = 0.45
RIGHT, MISSED, WRONG = (46, 160, 67), (56, 139, 253), (248, 81, 73)


def draw(volume: Volume, target: Mask, mask: Mask, path: Path) -> None:
    """Write a PNG: axial, coronal and sagittal plane of the scan, side by side.

    Args:
        volume: the image; its first channel is shown.
        target: the object (i, j, k), on the volume's grid.
        mask: what was found, same shape.
        path: of the file; the format is PNG whatever its ending.
    """
    frame = volume.grid.reoriented("LPI")
    grey, object_, found = (_turned(each, volume.grid, frame) for each in (volume.data[0], target, mask))
    middle = _middle(object_, found, frame)
    window = eight_bit_window(volume)
    planes = [
        _plane(grey, object_, found, axis, middle, frame.spacing, window) for axis in (2, 1, 0) if grey.shape[axis]
    ]
    sheet = Image.new("RGB", (sum(plane.width for plane in planes) + 8 * (len(planes) - 1), EDGE), (15, 17, 20))
    left = 0
    for plane in planes:
        sheet.paste(plane, (left, (EDGE - plane.height) // 2))
        left += plane.width + 8
    sheet.save(path, format="PNG")


def _turned(values: NDArray[np.generic], grid: Grid, frame: Grid) -> NDArray[np.generic]:
    """An array with its axes in the order and the directions of `frame`, which holds the same voxels."""
    order = grid.to_voxels(frame.to_world(np.vstack([np.zeros(3), np.eye(3)])))
    steps = order[1:] - order[0]
    axes = np.abs(steps).argmax(axis=1)
    turned = np.transpose(values, axes)
    return turned[tuple(slice(None, None, 1 if steps[new, old] > 0 else -1) for new, old in enumerate(axes))]


def _middle(target: NDArray[np.generic], mask: NDArray[np.generic], frame: Grid) -> NDArray[np.int64]:
    """The voxel that all planes go through: where a click would correct most, else the middle of the object."""
    click = next_click(target.astype(bool), mask.astype(bool), frame)
    if click is not None:
        return np.rint(frame.to_voxels(click.position)).astype(int)
    box = bounding_box(target.astype(bool)) or tuple(slice(0, size) for size in target.shape)
    return np.array([(side.start + side.stop - 1) // 2 for side in box])


def _plane(
    grey: NDArray[np.generic],
    target: NDArray[np.generic],
    mask: NDArray[np.generic],
    axis: int,
    middle: NDArray[np.int64],
    spacing: NDArray[np.float64],
    window: tuple[float, float],
) -> Image.Image:
    across = [other for other in range(3) if other != axis]
    box = bounding_box(np.asarray(target, bool) | np.asarray(mask, bool))
    extent = [(box[other].stop - box[other].start) * spacing[other] for other in across] if box else [0.0, 0.0]
    room = max(ROOM * max(extent), 24 * float(spacing[across].min()))
    place: list[slice] = [slice(0, 0)] * 3
    place[axis] = slice(int(middle[axis]), int(middle[axis]) + 1)
    for other in across:
        half = int(np.ceil(room / spacing[other] / 2))
        place[other] = slice(max(0, int(middle[other]) - half), int(middle[other]) + half + 1)
    cut = tuple(place)
    # Rows run downwards, the second axis of the frame before the third.
    flat, truth, found = (np.squeeze(each[cut], axis=axis).T for each in (grey, target, mask))
    colours = np.repeat(to_eight_bit(flat, window)[..., None], 3, axis=2)
    for region, colour in ((truth & found, RIGHT), (truth & ~found, MISSED), (found & ~truth, WRONG)):
        chosen = np.asarray(region, dtype=bool)
        colours[chosen] = (1 - COVER) * colours[chosen] + COVER * np.array(colour)
    height, width = (size * spacing[other] for size, other in zip(flat.shape, across[::-1], strict=True))
    scale = EDGE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
