"""The protocol of nnInteractive 2: its extensions for 3D Slicer and napari, its Python client.

An image has a spacing there and no orientation: voxels are the array's own, and the grid is made of them. A reset
starts the next object, so that what was made before stays in the saved session.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.objects import Changed, around
from volsam.prompts import Click, MaskHint, Prompt
from volsam.server.conversation import Conversation, Outcome
from volsam.server.core import Core
from volsam.server.dialects import nnia
from volsam.server.dialects.seat import start_next
from volsam.server.leases import Lease
from volsam.server.problems import Problem
from volsam.server.strokes import boxed, hint, painted
from volsam.server.uploads import upload_limit, whole_body
from volsam.server.volumes import MASKS, as_volume, require_room

OPEN = ("/healthz",)
LEASE, META = "X-Lease-Token", "X-Meta"
# What the extensions look for: 2.5.1 or later, below 3.
VERSION = "2.6.0"
UNKNOWN_LICENCE = "!!MISSING!!"
# Where the original keeps each kind of interaction, inside and outside; clients only show them.
CHANNELS = {"bbox2d": [1, 2], "bbox3d": [1, 2], "lasso": [1, 2], "points": [3, 4], "scribble": [5, 6]}


@dataclass
class Desk:
    """What the protocol keeps for a lease: the client's buffer, and prompts that wait for a prediction.

    shown: the box of a starting mask that the client has painted by itself.
    """

    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    waiting: list[Prompt] = field(default_factory=list)
    shown: Changed | None = None
    autozoom: bool = True


class _WithLease(APIRoute):
    """Leaves requests without a lease to the older protocol, which has the same paths; alone, it is not spoken here."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if LEASE not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


def router(core: Core) -> APIRouter:
    """All calls."""
    routes = APIRouter()
    shared = APIRouter(route_class=_WithLease)
    desks: WeakKeyDictionary[Lease, Desk] = WeakKeyDictionary()

    def desk(lease: Lease) -> Desk:
        return desks.setdefault(lease, Desk())

    # --- leases --------------------------------------------------------------------------------------------------

    @routes.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": not core.closing}

    @routes.post("/claim")
    def claim() -> dict[str, Any]:
        return {
            "lease_token": core.claim().token,
            "idle_timeout_seconds": core.leases.idle,
            "liveness_timeout_seconds": core.leases.liveness,
            "max_sessions": core.leases.most,
        }

    @routes.get("/capabilities")
    def capabilities() -> dict[str, Any]:
        model = core.models[None]
        kinds = model.takes
        licence = core.models.spine(core.models.default).licence
        click, box = "click" in kinds, "box" in kinds
        return {
            "supported_interactions": {
                "points": click,
                "bbox2d": "flat box" in kinds,
                "bbox3d": box,
                "scribble": click,
                "lasso": click,
            },
            "channel_mapping": CHANNELS,
            "num_interaction_channels": 7,
            "supports_initial_label": "mask" in kinds,
            "supports_zero_shot_label_refinement": "mask" in kinds,
            "preferred_scribble_thickness": [2, 2, 2],
            "interaction_decay": 0.9,
            "patch_size": [model.edge] * 3,
            "do_autozoom": True,
            "inference_session_version": VERSION,
            "license": UNKNOWN_LICENCE if licence == "unknown" else licence,
            "supports_undo": True,
        }

    @routes.post("/heartbeat")
    def heartbeat(request: Request) -> dict[str, float]:
        return {"remaining_seconds": core.leases.look(_token(request), beat=True)[1]}

    @routes.get("/lease_status")
    def lease_status(request: Request) -> dict[str, float]:
        remaining = core.leases.look(_token(request))[1]
        return {"remaining_seconds": remaining, "idle_timeout_seconds": core.leases.idle}

    @routes.post("/release")
    def release(request: Request) -> dict[str, bool]:
        core.release(_token(request))
        return {"released": True}

    # --- the image and the buffer --------------------------------------------------------------------------------

    @routes.post("/set_image")
    async def set_image(request: Request) -> dict[str, Any]:
        with core.using(_token(request)) as lease:
            meta, body = _meta(request), await whole_body(request, upload_limit(core.settings))

            def start() -> list[int]:
                values = nnia.unpack(body, lambda size: require_room(2 * size, "the image"))
                core.open_volume(lease, _volume(values, meta))
                desks[lease] = Desk(autozoom=desk(lease).autozoom)
                return list(values.shape)

            return {"original_image_shape": await run_in_threadpool(start)}

    @routes.post("/set_target_buffer")
    async def set_target_buffer(request: Request) -> dict[str, Any]:
        asked = await _json(request)
        with core.using(_token(request)) as lease, core.talk(lease) as talk:
            shape, dtype = _sizes(asked.get("shape")), str(asked.get("dtype"))
            if shape != talk.session.volume.grid.shape:
                raise BadInput(
                    f"a buffer of {list(shape)} does not fit an image of {list(talk.session.volume.grid.shape)}"
                )
            if dtype not in nnia.NUMBERS:
                raise BadInput(f"a buffer of {dtype!r} cannot be used: integers, floats or booleans")
            size = prod(shape) * np.dtype(dtype).itemsize
            if size > _quarter_of_memory():
                raise Problem(413, f"a buffer of {size / 1e9:.1f} GB is more than a quarter of this machine's memory")
            desk(lease).shape, desk(lease).dtype = shape, np.dtype(dtype)
        return {}

    @routes.post("/set_do_autozoom")
    async def set_do_autozoom(request: Request) -> dict[str, Any]:
        asked = await _json(request)
        with core.using(_token(request)) as lease:
            desk(lease).autozoom = bool(asked.get("do_autozoom", True))
        return {}

    # --- interactions --------------------------------------------------------------------------------------------

    def answered(lease: Lease, prompts: Sequence[Prompt], run: bool, shown: Changed | None = None) -> Response:
        """Add prompts and predict, or keep them until a prediction is wanted."""
        mine = desk(lease)
        with core.talk(lease) as talk, talk.held() as session:
            if not run:
                for prompt in prompts:  # a bad one would be refused again with every good one after it
                    session.require(prompt)
                mine.waiting += prompts
                mine.shown = shown or mine.shown
                return _nothing()
            given = [*mine.waiting, *prompts]
            if not given:
                return _nothing()
            outcome = talk.add(given)
            mine.waiting = []
            return _prediction(talk, mine, outcome)

    @routes.post("/predict")
    async def predict(request: Request) -> Response:
        await _json(request)

        def act() -> Response:
            with core.using(_token(request)) as lease:
                return answered(lease, [], True)

        return await run_in_threadpool(act)

    @routes.post("/reset_interactions")
    def reset_interactions(request: Request) -> dict[str, Any]:
        with core.using(_token(request)) as lease, core.talk(lease) as talk, talk.held():
            mine = desk(lease)
            mine.waiting, mine.shown = [], None
            start_next(talk)
        return {}

    @routes.post("/undo")
    def undo(request: Request) -> Response:
        with core.using(_token(request)) as lease, core.talk(lease) as talk, talk.held():
            mine = desk(lease)
            if mine.waiting:
                gone = mine.waiting.pop()
                # A starting mask is on the client's screen already, and leaves it again.
                return _prediction(talk, mine, Outcome(talk.current)) if isinstance(gone, MaskHint) else _unseen()
            outcome = talk.undo()
            return _prediction(talk, mine, outcome) if outcome.done else _nothing()

    @shared.post("/add_point_interaction")
    async def add_point(request: Request) -> Response:
        asked = await _json(request)

        def act() -> Response:
            with core.using(_token(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                place = grid.to_world(_numbers(asked.get("coordinates"), "coordinates"))
                click = Click((place[0], place[1], place[2]), _inside(asked))
                return answered(lease, [click], _run(asked))

        return await run_in_threadpool(act)

    @shared.post("/add_bbox_interaction")
    async def add_bbox(request: Request) -> Response:
        asked = await _json(request)

        def act() -> Response:
            with core.using(_token(request)) as lease, core.talk(lease) as talk:
                box = _boxed(asked.get("bbox_coords"), talk.session.volume.grid)
                return answered(lease, [boxed(box, _inside(asked), talk.session.volume.grid)], _run(asked))

        return await run_in_threadpool(act)

    async def stroke(request: Request) -> Response:
        meta, body = _meta(request), await whole_body(request, upload_limit(core.settings))

        def act() -> Response:
            with core.using(_token(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                low, mask = _drawn(body, meta.get("interaction_bbox"), grid)
                return answered(lease, [painted(mask, low, _inside(meta), grid)], _run(meta))

        return await run_in_threadpool(act)

    shared.post("/add_scribble_interaction")(stroke)
    shared.post("/add_lasso_interaction")(stroke)

    @routes.post("/add_initial_seg_interaction")
    async def add_initial_seg(request: Request) -> Response:
        meta, body = _meta(request), await whole_body(request, upload_limit(core.settings))

        def act() -> Response:
            with core.using(_token(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                _, mask = _drawn(body, None, grid)
                start, box = hint(mask, grid)
                return answered(lease, [start], _run(meta, default=False), box)

        return await run_in_threadpool(act)

    routes.include_router(shared)
    return routes


# --- what comes ------------------------------------------------------------------------------------------------------


def _token(request: Request) -> str | None:
    return request.headers.get(LEASE)


async def _json(request: Request) -> dict[str, Any]:
    body = await request.body()
    return _object(body.decode("utf-8", "replace") or "{}", "the body")


def _meta(request: Request) -> dict[str, Any]:
    return _object(request.headers.get(META, "{}"), f"the header {META}")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{what} is not a JSON object")
    return found


def _inside(asked: dict[str, Any]) -> bool:
    value = asked.get("include_interaction", True)
    if not isinstance(value, bool):
        raise BadInput(f'"include_interaction" is true or false, got {value!r}')
    return value


def _run(asked: dict[str, Any], default: bool = True) -> bool:
    return bool(asked.get("run_prediction", default))


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
        raise BadInput(f'"{what}" is three numbers')
    return numbers


def _sizes(values: Any) -> tuple[int, ...]:
    numbers = _numbers(values, "shape")
    return tuple(int(number) for number in numbers)


def _volume(values: NDArray[Any], meta: dict[str, Any]) -> Any:
    if values.ndim != 4:
        raise BadInput(f"an image has four axes, channels first; this one has {values.ndim}")
    if not values.any():
        raise BadInput("the image is zero everywhere: check which one was sent")
    properties = meta.get("image_properties") or {}
    if not isinstance(properties, dict):
        raise BadInput('"image_properties" is an object, such as {"spacing": [1, 1, 1]}')
    spacing = properties.get("spacing")
    steps = np.ones(3) if spacing is None else np.abs(_numbers(spacing, "spacing"))
    if steps.min() <= 0:
        raise BadInput(f"spacings are above 0, got {spacing}")
    shape = (values.shape[1], values.shape[2], values.shape[3])
    require_room(values.nbytes + prod(shape) * MASKS, "the image")
    image = values.astype(np.uint8) if values.dtype == bool else values
    return as_volume(image, Grid.at(shape, steps.tolist()), "image")


def _boxed(values: Any, grid: Grid) -> Changed:
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


def _drawn(body: bytearray, bounds: Any, grid: Grid) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """A painted mask and where its first voxel lies: the whole volume, or the part that `bounds` says."""
    mask = nnia.unpack(body, lambda size: require_room(2 * size, "the mask"))
    box = ((0, 0, 0), grid.shape) if bounds is None else _boxed(bounds, grid)
    shape = tuple(high - low for low, high in zip(*box, strict=True))
    if mask.shape != shape:
        raise BadInput(f"a mask of {list(mask.shape)} does not fit its place of {list(shape)} voxels")
    return box[0], mask > 0


def _quarter_of_memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    except (AttributeError, ValueError, OSError):
        return float("inf")


# --- what goes -------------------------------------------------------------------------------------------------------


def _nothing() -> Response:
    return _response({"ran_prediction": False, "bbox": None, "dtype": None, "shape": None}, b"")


def _unseen() -> Response:
    return _response({"ran_prediction": True, "bbox": None, "dtype": None, "shape": None}, b"")


def _prediction(talk: Conversation, mine: Desk, outcome: Outcome) -> Response:
    """The voxels of the object in the box in which they changed, or in which the client has painted by itself."""
    boxes = [change.box for change in outcome.changes if change.number == outcome.number]
    boxes += [] if mine.shown is None else [mine.shown]
    mine.shown = None
    box = around(boxes)
    if box is None:
        return _unseen()
    values = talk.mask(outcome.number, box).astype(mine.dtype)
    meta = {
        "ran_prediction": True,
        "bbox": [list(pair) for pair in zip(*box, strict=True)],
        "dtype": values.dtype.name,
        "shape": list(values.shape),
    }
    return _response(meta, nnia.pack(values))


def _response(meta: dict[str, Any], body: bytes) -> Response:
    return Response(body, media_type="application/octet-stream", headers={META: json.dumps(meta)})
