"""SlicerNNInteractive 0.x: one session for all, volumes as .npy files, every answer the whole mask as packed bits.

Voxels are those of the array that was sent, whose axes Slicer calls k, j, i; a spacing is not told. The protocol of
nnInteractive 2 has some of the paths too: a request with a lease, or with its fields, is meant for that one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import Click, Prompt
from volsam.server import dialects
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.dialects.arrays import read_npy
from volsam.server.dialects.seat import Seat, start_next
from volsam.server.problems import Problem
from volsam.server.strokes import boxed, hint, painted
from volsam.server.volumes import MASKS, as_volume, require_room

LEASE, META = "X-Lease-Token", "X-Meta"
YES = ("true", "1", "yes")
# Clients send the image again when they read exactly this.
NO_IMAGE = {"status": "error", "message": "No image uploaded"}
OK = {"status": "ok"}

Upload = Annotated[UploadFile, File()]


def router(core: Core) -> APIRouter:
    """All calls."""
    routes = APIRouter()
    seat = Seat(core)
    # A starting mask, which is answered with the first prompt after it.
    waiting: list[Prompt] = []

    def answered(prompts: Sequence[Prompt], talk: Conversation) -> Response:
        with talk.held():
            talk.add([*waiting, *prompts])
            waiting.clear()
            return _whole(talk)

    @routes.post("/upload_image")
    def upload_image(file: Upload) -> dict[str, str]:
        values = read_npy(file.file, lambda size: require_room(2 * size, "the image"), packed=False)
        if values.ndim != 3:
            raise BadInput(f"an image has three axes, this one has {values.ndim}")
        require_room(values.nbytes + values.size * MASKS, "the image")
        image = values.astype(np.uint8) if values.dtype == bool else values
        volume = as_volume(image, Grid.at((image.shape[0], image.shape[1], image.shape[2])), "image")
        seat.open(lambda lease: core.open_volume(lease, volume))
        waiting.clear()
        return OK

    @routes.post("/upload_segment")
    def upload_segment(file: Upload) -> dict[str, str]:
        if not seat.taken:
            return NO_IMAGE
        with seat.talk() as talk:
            mask = _mask(file, talk)
            start_next(talk)
            waiting.clear()
            if mask.any():
                waiting.append(hint(mask, talk.session.volume.grid)[0])
        return OK

    @routes.post("/add_point_interaction")
    async def add_point(request: Request) -> Response:
        asked = await _fields(core, request, "voxel_coord")

        def act() -> Response:
            if not seat.taken:
                return JSONResponse(NO_IMAGE)
            with seat.talk() as talk:
                x, y, z = talk.session.volume.grid.to_world(_voxel(asked, "voxel_coord"))
                return answered([Click((x, y, z), _positive(asked))], talk)

        return await run_in_threadpool(act)

    @routes.post("/add_bbox_interaction")
    async def add_bbox(request: Request) -> Response:
        asked = await _fields(core, request, "outer_point_one")

        def act() -> Response:
            if not seat.taken:
                return JSONResponse(NO_IMAGE)
            with seat.talk() as talk:
                grid = talk.session.volume.grid
                corners = np.array([_voxel(asked, name) for name in ("outer_point_one", "outer_point_two")])
                corners = np.rint(corners).clip(0, np.array(grid.shape) - 1).astype(int)
                (a, b, c), (d, e, f) = corners.min(axis=0).tolist(), (corners.max(axis=0) + 1).tolist()
                return answered([boxed(((a, b, c), (d, e, f)), _positive(asked), grid)], talk)

        return await run_in_threadpool(act)

    def stroke(request: Request, file: Upload, positive_click: Annotated[str, Form()]) -> Response:
        _require_meant(core, request)
        if not seat.taken:
            return JSONResponse(NO_IMAGE)
        with seat.talk() as talk:
            mask = _mask(file, talk)
            positive = positive_click.lower() in YES
            return answered([painted(mask, (0, 0, 0), positive, talk.session.volume.grid)], talk)

    routes.post("/add_lasso_interaction")(stroke)
    routes.post("/add_scribble_interaction")(stroke)
    return routes


# --- what comes ------------------------------------------------------------------------------------------------------


def _require_meant(core: Core, request: Request, asked: dict[str, Any] | None = None) -> None:
    """A request of nnInteractive 2 is told what is missing, or that nobody here speaks it."""
    newer = LEASE in request.headers or META in request.headers
    if not newer and not {"coordinates", "bbox_coords"} & set(asked or ()):
        return
    spoken = dialects.chosen(core.settings.dialects)
    if "nninteractive" in spoken:
        raise Problem(410, f"the lease is missing (header {LEASE}): claim one")
    raise Problem(404, f"this is a call of nnInteractive 2, which is not spoken here; spoken are: {', '.join(spoken)}")


async def _fields(core: Core, request: Request, needed: str) -> dict[str, Any]:
    try:
        asked = json.loads(await request.body())
    except (ValueError, RecursionError):
        asked = None
    asked = asked if isinstance(asked, dict) else {}
    _require_meant(core, request, asked)
    if needed not in asked:
        raise BadInput(f'the body is JSON with "{needed}" and "positive_click"')
    return asked


def _voxel(asked: dict[str, Any], name: str) -> NDArray[np.float64]:
    try:
        voxel = np.array(asked.get(name), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        voxel = np.zeros(0)
    if voxel.shape != (3,) or not np.isfinite(voxel).all() or np.abs(voxel).max() > 1e6:
        raise BadInput(f'"{name}" is three numbers, voxels of the image')
    return voxel


def _positive(asked: dict[str, Any]) -> bool:
    value = asked.get("positive_click", True)
    if not isinstance(value, bool):
        raise BadInput(f'"positive_click" is true or false, got {value!r}')
    return value


def _mask(file: UploadFile, talk: Conversation) -> NDArray[np.bool_]:
    """A mask of the whole volume."""
    shape = talk.session.volume.grid.shape
    mask = read_npy(file.file, lambda size: require_room(2 * size, "the mask"), packed=True)
    if mask.shape != shape:
        raise BadInput(f"a mask of {list(mask.shape)} does not fit an image of {list(shape)}")
    found: NDArray[np.bool_] = mask > 0
    return found


# --- what goes -------------------------------------------------------------------------------------------------------


def _whole(talk: Conversation) -> Response:
    """The current object: a bit for each voxel, the last axis fastest, the highest bit of a byte first."""
    packed = gzip.compress(np.packbits(talk.whole(talk.current)).tobytes(), 1, mtime=0)
    return Response(packed, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"})
