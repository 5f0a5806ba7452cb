"""ITK-SNAP's deep learning extension: gzipped arrays with the first axis fastest, every answer the whole mask.

Both forms of its paths are served, with /v2 and without. An unknown session is answered with status 200 and "error", as
ITK-SNAP expects it; whatever else goes wrong has a status of its own, which it shows to the user. A reset starts the
next object, so that what was made before stays in the saved session.
"""

from __future__ import annotations

import base64
import gzip
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, Query, UploadFile
from numpy.typing import NDArray

import volsam
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import Click, Prompt
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.dialects.arrays import read_raw
from volsam.server.dialects.seat import Seat, start_next
from volsam.server.strokes import painted
from volsam.server.volumes import MASKS, NUMBERS, as_volume, require_room

OPEN = ("/status",)
INVALID = {"error": "Invalid session"}
# Sessions remembered; each can be resumed after a pause of any length.
MOST_SESSIONS = 200
LPS = np.diag([-1.0, -1.0, 1.0])

Upload = Annotated[UploadFile, File()]
Metadata = Annotated[str, Form()]
Answer = dict[str, Any]


class Seats:
    """The sessions by their ids, and the model of each."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._all: OrderedDict[str, tuple[Seat, str | None]] = OrderedDict()
        self._lock = threading.Lock()

    def new(self, model: str | None) -> str:
        """The id of a new session."""
        self._core.models[model]  # an unknown one is refused, others are loaded now
        identity = secrets.token_hex(16)
        with self._lock:
            self._all[identity] = (Seat(self._core), model)
            gone = self._all.popitem(last=False)[1][0] if len(self._all) > MOST_SESSIONS else None
        if gone is not None:
            gone.leave()
        return identity

    def get(self, identity: str) -> tuple[Seat, str | None] | None:
        """The place of a session and its model."""
        with self._lock:
            if identity in self._all:
                self._all.move_to_end(identity)
            return self._all.get(identity)

    def remove(self, identity: str) -> bool:
        """End a session; False if there was none."""
        with self._lock:
            found = self._all.pop(identity, None)
        if found is not None:
            found[0].leave()
        return found is not None


def router(core: Core) -> APIRouter:
    """All calls."""
    routes = APIRouter()
    seats = Seats(core)

    @routes.get("/status")
    def status() -> Answer:
        return {"status": "ok", "version": volsam.__version__}

    @routes.get("/v2/models")
    def models() -> Answer:
        return {"models": [_listed(core, name) for name in core.models.names]}

    @routes.get("/start_session")
    def start_session() -> Answer:
        return {"session_id": seats.new(None)}

    @routes.get("/v2/start_session/{model:path}")
    def start_session_with(model: str) -> Answer:
        return {"session_id": seats.new(model)}

    @routes.post("/v2/upload_raw/{session}")
    @routes.post("/upload_raw/{session}")
    def upload_raw(session: str, file: Upload, metadata: Metadata) -> Answer:
        found = seats.get(session)
        if found is None:
            return INVALID
        seat, model = found
        values, about = _array(file, metadata, "the image")
        require_room(values.nbytes + values[0].size * MASKS, "the image")
        volume = as_volume(values, _grid(values.shape[1:], about), "image")
        seat.open(lambda lease: core.open_volume(lease, volume, model=model))
        return {"message": "the image was received"}

    def answered(session: str, prompt: Callable[[Grid], Prompt]) -> Answer:
        found = seats.get(session)
        if found is None:
            return INVALID
        with found[0].talk() as talk, talk.held():
            talk.add([prompt(talk.session.volume.grid)])
            return {"status": "success", "result": _whole(talk)}

    @routes.get("/v2/process_point_interaction/{session}")
    def point(session: str, point: Annotated[list[float], Query()], foreground: bool = False) -> Answer:
        def click(grid: Grid) -> Prompt:
            if len(point) != 3:
                raise BadInput(f"a point has three coordinates, voxels of the image, got {len(point)}")
            x, y, z = grid.to_world(point)
            return Click((x, y, z), foreground)

        return answered(session, click)

    @routes.get("/process_point_interaction/{session}")
    def point_by_axis(session: str, x: float, y: float, z: float, foreground: bool = False) -> Answer:
        return point(session, [x, y, z], foreground)

    def stroke(session: str, file: Upload, metadata: Metadata, foreground: bool = False) -> Answer:
        def scribble(grid: Grid) -> Prompt:
            values, _ = _array(file, metadata, "the stroke")
            if values.shape[1:] != grid.shape:
                raise BadInput(
                    f"a stroke on {list(values.shape[1:])} voxels does not fit an image of {list(grid.shape)}"
                )
            return painted(values[0] > 0, (0, 0, 0), foreground, grid)

        return answered(session, scribble)

    for path in ("process_scribble_interaction", "process_lasso_interaction"):
        routes.post(f"/{path}/{{session}}")(stroke)
        routes.post(f"/v2/{path}/{{session}}")(stroke)

    @routes.get("/v2/reset_interactions/{session}")
    @routes.get("/reset_interactions/{session}")
    def reset_interactions(session: str) -> Answer:
        found = seats.get(session)
        if found is None:
            return INVALID
        if found[0].taken:
            with found[0].talk() as talk:
                start_next(talk)
        return {"status": "success"}

    @routes.get("/v2/end_session/{session}")
    @routes.get("/end_session/{session}")
    def end_session(session: str) -> Answer:
        return {"message": "Session ended"} if seats.remove(session) else {**INVALID, "message": "Invalid session"}

    return routes


def _listed(core: Core, name: str) -> Answer:
    known = core.models.spine(name).prompts
    marks = ["point", "scribble", "lasso"] if not known or "point" in known else []
    return {"id": name, "dimensions": 3, "channels": [1], "interactions": marks}


# --- what comes ------------------------------------------------------------------------------------------------------


def _array(file: UploadFile, metadata: str, what: str) -> tuple[NDArray[Any], Answer]:
    """Voxels (c i j k) of an upload, and what is said of them."""
    try:
        about = json.loads(metadata)
        shape = [about.get("components_per_pixel", 1), *about["dimensions"]]
        kind = str(about.get("component_type", "float32"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise BadInput('the field metadata is JSON with "dimensions": [x, y, z]') from None
    if len(shape) != 4 or not all(isinstance(size, int) and 0 < size < 1 << 20 for size in shape):
        raise BadInput(f"an array has three axes of at least one voxel and one component or more, got {shape}")
    if kind not in NUMBERS:
        raise BadInput(f'"component_type" is a type of numbers, such as float32, got {kind[:40]!r}')
    size = (shape[0], shape[1], shape[2], shape[3])
    stream, dtype = file.file, np.dtype(kind).newbyteorder("<")
    values = read_raw(stream, size, dtype, lambda count: require_room(2 * count, what), order="F", packed=True)
    return values, about


def _grid(shape: tuple[int, ...], about: Answer) -> Grid:
    """Where the voxels lie, as far as it is told; positions of ITK are LPS+."""
    size = (shape[0], shape[1], shape[2])
    if "spacing" not in about:
        return Grid.at(size)
    try:
        spacing = np.array(about["spacing"], dtype=np.float64).reshape(3)
        origin = np.array(about.get("origin", (0, 0, 0)), dtype=np.float64).reshape(3)
        direction = np.array(about.get("direction", np.eye(3)), dtype=np.float64).reshape(3, 3)
    except (TypeError, ValueError):
        raise BadInput('"spacing" and "origin" are three numbers, "direction" is nine') from None
    affine = np.eye(4)
    affine[:3, :3] = LPS @ direction @ np.diag(spacing)
    affine[:3, 3] = LPS @ origin
    return Grid(size, affine)


# --- what goes -------------------------------------------------------------------------------------------------------


def _whole(talk: Conversation) -> str:
    """The current object: a byte for each voxel, the first axis fastest, packed, in base64."""
    whole = talk.whole(talk.current).ravel(order="F")
    return base64.b64encode(gzip.compress(whole.tobytes(), 1, mtime=0)).decode("ascii")
