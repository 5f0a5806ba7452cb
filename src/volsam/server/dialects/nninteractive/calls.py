"""The calls of nnInteractive 2: leases, the image, interactions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from volsam.errors import BadInput
from volsam.inference.objects import Changed
from volsam.prompts import Click, MaskHint, Prompt
from volsam.server.conversation import Outcome
from volsam.server.core import Core
from volsam.server.dialects.nninteractive import nnia
from volsam.server.dialects.nninteractive.answering import Desk, nothing, prediction, unseen
from volsam.server.dialects.nninteractive.asking import (
    LEASE,
    box_of,
    drawn,
    image_of,
    is_inside,
    is_run,
    json_of,
    meta_of,
    numbers_of,
    quarter_of_memory,
    sizes,
    token_of,
)
from volsam.server.dialects.seat import start_next
from volsam.server.leases import Lease
from volsam.server.problems import Problem
from volsam.server.strokes import boxed, hint, painted
from volsam.server.uploads import upload_limit, whole_body
from volsam.server.volumes import require_room

OPEN = ("/healthz",)
# What the extensions look for: 2.5.1 or later, below 3.
VERSION = "2.6.0"
UNKNOWN_LICENCE = "!!MISSING!!"
# Where the original keeps each kind of interaction, inside and outside; clients only show them.
CHANNELS = {"bbox2d": [1, 2], "bbox3d": [1, 2], "lasso": [1, 2], "points": [3, 4], "scribble": [5, 6]}


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
            "supports_zero_shot_label_refinement": False,  # a label stays as it is but for what is clicked
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
        return {"remaining_seconds": core.leases.look(token_of(request), beat=True)[1]}

    @routes.get("/lease_status")
    def lease_status(request: Request) -> dict[str, float]:
        remaining = core.leases.look(token_of(request))[1]
        return {"remaining_seconds": remaining, "idle_timeout_seconds": core.leases.idle}

    @routes.post("/release")
    def release(request: Request) -> dict[str, bool]:
        core.release(token_of(request))
        return {"released": True}

    # --- the image and the buffer --------------------------------------------------------------------------------

    @routes.post("/set_image")
    async def set_image(request: Request) -> dict[str, Any]:
        with core.using(token_of(request)) as lease:
            meta, body = meta_of(request), await whole_body(request, upload_limit(core.settings))

            def start() -> list[int]:
                values = nnia.unpack(body, lambda size: require_room(2 * size, "the image"))
                core.open_volume(lease, image_of(values, meta))
                desks[lease] = Desk(autozoom=desk(lease).autozoom)
                return list(values.shape)

            return {"original_image_shape": await run_in_threadpool(start)}

    @routes.post("/set_target_buffer")
    async def set_target_buffer(request: Request) -> dict[str, Any]:
        asked = await json_of(request)
        with core.using(token_of(request)) as lease, core.talk(lease) as talk:
            shape, dtype = sizes(asked.get("shape")), str(asked.get("dtype"))
            if shape != talk.session.volume.grid.shape:
                raise BadInput(
                    f"a buffer of {list(shape)} does not fit an image of {list(talk.session.volume.grid.shape)}"
                )
            if dtype not in nnia.NUMBERS:
                raise BadInput(f"a buffer of {dtype!r} cannot be used: integers, floats or booleans")
            size = prod(shape) * np.dtype(dtype).itemsize
            if size > quarter_of_memory():
                raise Problem(413, f"a buffer of {size / 1e9:.1f} GB is more than a quarter of this machine's memory")
            desk(lease).shape, desk(lease).dtype = shape, np.dtype(dtype)
        return {}

    @routes.post("/set_do_autozoom")
    async def set_do_autozoom(request: Request) -> dict[str, Any]:
        asked = await json_of(request)
        with core.using(token_of(request)) as lease:
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
                return nothing()
            given = [*mine.waiting, *prompts]
            if not given:
                return nothing()
            outcome = talk.add(given)
            mine.waiting = []
            return prediction(talk, mine, outcome)

    @routes.post("/predict")
    async def predict(request: Request) -> Response:
        await json_of(request)

        def act() -> Response:
            with core.using(token_of(request)) as lease:
                return answered(lease, [], True)

        return await run_in_threadpool(act)

    @routes.post("/reset_interactions")
    def reset_interactions(request: Request) -> dict[str, Any]:
        with core.using(token_of(request)) as lease, core.talk(lease) as talk, talk.held():
            mine = desk(lease)
            mine.waiting, mine.shown = [], None
            start_next(talk)
        return {}

    @routes.post("/undo")
    def undo(request: Request) -> Response:
        with core.using(token_of(request)) as lease, core.talk(lease) as talk, talk.held():
            mine = desk(lease)
            if mine.waiting:
                gone = mine.waiting.pop()
                # A starting mask is on the client's screen already, and leaves it again.
                return prediction(talk, mine, Outcome(talk.current)) if isinstance(gone, MaskHint) else unseen()
            outcome = talk.undo()
            return prediction(talk, mine, outcome) if outcome.done else nothing()

    @shared.post("/add_point_interaction")
    async def add_point(request: Request) -> Response:
        asked = await json_of(request)

        def act() -> Response:
            with core.using(token_of(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                place = grid.to_world(numbers_of(asked.get("coordinates"), "coordinates"))
                click = Click((place[0], place[1], place[2]), is_inside(asked))
                return answered(lease, [click], is_run(asked))

        return await run_in_threadpool(act)

    @shared.post("/add_bbox_interaction")
    async def add_bbox(request: Request) -> Response:
        asked = await json_of(request)

        def act() -> Response:
            with core.using(token_of(request)) as lease, core.talk(lease) as talk:
                box = box_of(asked.get("bbox_coords"), talk.session.volume.grid)
                return answered(lease, [boxed(box, is_inside(asked), talk.session.volume.grid)], is_run(asked))

        return await run_in_threadpool(act)

    async def stroke(request: Request) -> Response:
        meta, body = meta_of(request), await whole_body(request, upload_limit(core.settings))

        def act() -> Response:
            with core.using(token_of(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                low, mask = drawn(body, meta.get("interaction_bbox"), grid)
                return answered(lease, [painted(mask, low, is_inside(meta), grid)], is_run(meta))

        return await run_in_threadpool(act)

    shared.post("/add_scribble_interaction")(stroke)
    shared.post("/add_lasso_interaction")(stroke)

    @routes.post("/add_initial_seg_interaction")
    async def add_initial_seg(request: Request) -> Response:
        meta, body = meta_of(request), await whole_body(request, upload_limit(core.settings))

        def act() -> Response:
            with core.using(token_of(request)) as lease, core.talk(lease) as talk:
                grid = talk.session.volume.grid
                _, mask = drawn(body, None, grid)
                start, box = hint(mask, grid)
                return answered(lease, [start], is_run(meta, default=False), box)

        return await run_in_threadpool(act)

    routes.include_router(shared)
    return routes
