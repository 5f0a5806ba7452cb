"""What clients of MONAI Label ask, as prompts: points, a region, strokes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.objects import Changed
from volsam.prompts import Box, Click, MaskHint, Prompt
from volsam.server.dialects.monai_label.datastore import named_values
from volsam.server.ownership import window_of
from volsam.server.strokes import hint, painted

MOST_POINTS = 1000
FOREGROUND, BACKGROUND = "foreground_scribbles", "background_scribbles"
Asked = Mapping[str, Any]


def read_params(text: str, what: str = "params") -> dict[str, Any]:
    """The JSON of a field of a form."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f'the field "{what}" is not a JSON object')
    return found


def clicks(asked: Asked, name: str, positive: bool, grid: Grid) -> list[Prompt]:
    """The points under a name, voxels [i, j, k] of the image."""
    points = asked.get(name) or []
    try:
        voxels = np.array(points, dtype=np.float64).reshape(-1, 3) if points else np.zeros((0, 3))
        if len(voxels) != len(points):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f'"{name[:100]}" is a list of points [i, j, k], voxels of the image') from None
    if len(voxels) > MOST_POINTS:
        raise BadInput(f'"{name[:100]}" holds {len(voxels)} points, at most {MOST_POINTS} are taken')
    on_slice = asked.get("slice")
    if isinstance(on_slice, int) and not isinstance(on_slice, bool):
        voxels = voxels[voxels[:, 2] == on_slice]
    return [Click((x, y, z), positive) for x, y, z in grid.to_world(voxels).tolist()]


def region(asked: Asked, grid: Grid) -> Changed | None:
    """The box of voxels that "roi" says, None without one; the pairs may be the wrong way round."""
    roi = asked.get("roi")
    if not roi:
        return None
    try:
        pairs = np.array(roi, dtype=np.float64).reshape(3, 2)
        bounds = np.sort(np.rint(pairs), axis=1)
        if np.abs(bounds).max() > 1e6 or not np.isfinite(bounds).all():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadInput('"roi" is six numbers, [i0, i1, j0, j1, k0, k1], voxels of the image') from None
    low = bounds[:, 0].clip(min=0).astype(int)
    high = (bounds[:, 1] + 1).clip(max=grid.shape).astype(int)
    if (high <= low).any():
        raise BadInput(f'"roi" {list(roi)} lies outside the image of {list(grid.shape)} voxels')
    (a, b, c), (d, e, f) = low.tolist(), high.tolist()
    return (a, b, c), (d, e, f)


def box(bounds: Changed, grid: Grid) -> Prompt:
    """A region as a box around the object."""
    first, last = grid.to_world([bounds[0], [index - 1 for index in bounds[1]]]).tolist()
    return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def one_object(asked: Asked, grid: Grid) -> list[Prompt]:
    """A box, then points in the object, then points beside it."""
    bounds = region(asked, grid)
    boxes = [] if bounds is None else [box(bounds, grid)]
    found = [*boxes, *clicks(asked, "foreground", True, grid), *clicks(asked, "background", False, grid)]
    if not found:
        raise BadInput('this model needs points: give "foreground": [[i, j, k], ...], voxels of the image')
    return found


def many_objects(asked: Asked, names: list[str], grid: Grid) -> dict[str, list[Prompt]]:
    """By label, points in it, and the points of the background as points beside it."""
    beside = clicks(asked, "background", False, grid)
    found = {name: own for name in names if (own := clicks(asked, name, True, grid))}
    if not found:
        raise BadInput(f"this model needs points in one of its labels: {', '.join(names)}")
    return {name: [*own, *beside] for name, own in found.items()}


def strokes(
    asked: Asked, drawn: NDArray[np.integer[Any]], takes_masks: bool, grid: Grid
) -> tuple[list[Prompt], NDArray[np.bool_]]:
    """A label so far, as a mask to start from, and strokes in it and beside it; also that label alone.

    drawn: (i j k) the values that "label_info" names; strokes are those of two values of their own.
    """
    values = named_values(asked)
    name = str(asked.get("selected_label_name", ""))
    if not {FOREGROUND, BACKGROUND} & set(values):
        raise BadInput(f'"label_info" must name the strokes: {FOREGROUND}, {BACKGROUND} or both, and their values')
    bounds = region(asked, grid)
    within = drawn if bounds is None else np.zeros_like(drawn)
    if bounds is not None:
        within[window_of(bounds)] = drawn[window_of(bounds)]
    so_far = drawn == values[name] if name in values else np.zeros(drawn.shape, bool)
    found: list[Prompt] = []
    if takes_masks and so_far.any():
        found.append(hint(so_far, grid)[0])
    for stroke, positive in ((FOREGROUND, True), (BACKGROUND, False)):
        mask = within == values[stroke] if stroke in values else np.zeros(0, bool)
        if mask.any():
            found.append(painted(mask, (0, 0, 0), positive, grid))
    if not any(not isinstance(prompt, MaskHint) for prompt in found):
        raise BadInput("no stroke was drawn, or none within the region: paint some first")
    return found, so_far
