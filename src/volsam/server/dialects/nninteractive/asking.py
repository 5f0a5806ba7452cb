"""What clients of nnInteractive send: settings in JSON or in a header, masks packed in the body."""

from __future__ import annotations

import json
import os
from math import prod
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.objects import Changed
from volsam.server.dialects.nninteractive import nnia
from volsam.server.volumes import MASKS, as_volume, require_room
from volsam.volume import Volume

LEASE, META = "X-Lease-Token", "X-Meta"


def token_of(request: Request) -> str | None:
    """The lease of a request."""
    return request.headers.get(LEASE)


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON of a body; none is an empty object."""
    body = await request.body()
    return _object(body.decode("utf-8", "replace") or "{}", "the body")


def meta_of(request: Request) -> dict[str, Any]:
    """The JSON of the header beside a packed body."""
    return _object(request.headers.get(META, "{}"), f"the header {META}")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{what} is not a JSON object")
    return found


def is_inside(asked: dict[str, Any]) -> bool:
    """Whether an interaction says what is in the object."""
    value = asked.get("include_interaction", True)
    if not isinstance(value, bool):
        raise BadInput(f'"include_interaction" is true or false, got {value!r}')
    return value


def is_run(asked: dict[str, Any], default: bool = True) -> bool:
    """Whether a prediction is wanted with it."""
    return bool(asked.get("run_prediction", default))


def numbers_of(values: Any, what: str) -> NDArray[np.float64]:
    """Three numbers, or a refusal."""
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
        raise BadInput(f'"{what}" is three numbers')
    return numbers


def sizes(values: Any) -> tuple[int, ...]:
    """Three numbers of voxels."""
    numbers = numbers_of(values, "shape")
    return tuple(int(number) for number in numbers)


def image_of(values: NDArray[Any], meta: dict[str, Any]) -> Volume:
    """An image, channels first, of which one is looked at."""
    if values.ndim != 4:
        raise BadInput(f"an image has four axes, channels first; this one has {values.ndim}")
    if not values.any():
        raise BadInput("the image is zero everywhere: check which one was sent")
    properties = meta.get("image_properties") or {}
    if not isinstance(properties, dict):
        raise BadInput('"image_properties" is an object, such as {"spacing": [1, 1, 1]}')
    spacing = properties.get("spacing")
    steps = np.ones(3) if spacing is None else np.abs(numbers_of(spacing, "spacing"))
    if steps.min() <= 0:
        raise BadInput(f"spacings are above 0, got {spacing}")
    shape = (values.shape[1], values.shape[2], values.shape[3])
    require_room(values.nbytes + prod(shape) * MASKS, "the image")
    image = values.astype(np.uint8) if values.dtype == bool else values
    return as_volume(image, Grid.at(shape, steps.tolist()), "image")


def box_of(values: Any, grid: Grid) -> Changed:
    """A half-open box of whole voxels, clipped to the image; one without a voxel is refused."""
    try:
        bounds = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        bounds = np.zeros(0)
    if bounds.shape != (3, 2) or not np.isfinite(bounds).all():
        raise BadInput("a box is [[x1, x2], [y1, y2], [z1, z2]]")
    low = np.floor(bounds.min(axis=1)).clip(0, grid.shape).astype(int)
    high = np.ceil(bounds.max(axis=1)).clip(0, grid.shape).astype(int)
    if (high <= low).any():
        raise BadInput(f"the box {np.asarray(values).tolist()} holds no voxel of the image: an end is not part of it")
    (a, b, c), (d, e, f) = low.tolist(), high.tolist()
    return (a, b, c), (d, e, f)


def drawn(body: bytearray, bounds: Any, grid: Grid) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """A painted mask and where its first voxel lies: the whole volume, or the part that `bounds` says."""
    mask = nnia.unpack(body, lambda size: require_room(2 * size, "the mask"))
    box = ((0, 0, 0), grid.shape) if bounds is None else box_of(bounds, grid)
    shape = tuple(high - low for low, high in zip(*box, strict=True))
    if mask.shape != shape:
        raise BadInput(f"a mask of {list(mask.shape)} does not fit its place of {list(shape)} voxels")
    return box[0], mask > 0


def quarter_of_memory() -> float:
    """Bytes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    except (AttributeError, ValueError, OSError):
        return float("inf")
