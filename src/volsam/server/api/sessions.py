"""Opening a volume, the state of a session, and the volume itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import ValidationError

from volsam.data.files import GZIP
from volsam.data.io import read_header
from volsam.errors import BadInput
from volsam.server import wire
from volsam.server.api import schemas
from volsam.server.api.answers import Token, acted, answer, state
from volsam.server.api.files import disposition, sent_file, sent_volume
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.device import Clock
from volsam.server.store import UNFINISHED
from volsam.server.uploads import ArrayBytes, into_file, upload_limit
from volsam.server.volumes import array_plan, place_of, volume_of, warned

Frame = Annotated[int | None, Query(ge=0)]
Channel = Annotated[int, Query(ge=0)]
OptionalName = Annotated[str | None, Query(min_length=1, max_length=200, pattern=r"\S")]
ObjectName = Annotated[str, Query(alias="object", min_length=1, max_length=200, pattern=r"\S")]
BINARY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def router(core: Core) -> APIRouter:
    """`/session` and the ways to open one."""
    routes = APIRouter(prefix="/session", tags=["session"])

    @routes.post("", status_code=201)
    def open_session(asked: schemas.Opening, token: Token = None) -> Response:
        clock = Clock()
        if (asked.study is None) == (asked.resume is None):
            raise BadInput('give either "study", a path that /api/v1/studies lists, or "resume", the id of a session')
        if asked.labels is not None and asked.study is None:
            raise BadInput('"labels" are those of a "study": a saved session has its objects already')
        with core.using(token) as lease, clock("open"), core.device.timed(clock):
            if asked.resume is not None:
                talk = core.resume(lease, asked.resume, take=asked.take, model=asked.model)
            else:
                talk = core.open_study(
                    lease,
                    str(asked.study),
                    frame=asked.frame,
                    channel=asked.channel,
                    model=asked.model,
                    name=asked.object,
                    annotator=asked.annotator,
                    labels=asked.labels,
                )
        return _opened(core, talk, clock)

    @routes.post("/file", status_code=201, openapi_extra=BINARY)
    async def open_file(
        request: Request,
        name: Annotated[str, Query(min_length=1, max_length=1000)],
        token: Token = None,
        frame: Frame = None,
        channel: Channel = 0,
        model: str | None = None,
        object_name: ObjectName = "object",
        annotator: OptionalName = None,
    ) -> Response:
        clock = Clock()
        with (
            core.using(token) as lease,
            tempfile.TemporaryDirectory(dir=core.store.folder, prefix=UNFINISHED) as folder,
        ):
            upload = Path(folder) / "upload"
            with clock("upload"):
                await into_file(request, upload, upload_limit(core.settings))

            def start() -> Conversation:
                return core.open_file(
                    lease,
                    upload,
                    name,
                    frame=frame,
                    channel=channel,
                    model=model,
                    name=object_name,
                    annotator=annotator,
                )

            with clock("open"):
                talk = await run_in_threadpool(start)
            return await run_in_threadpool(_opened, core, talk, clock)

    @routes.post("/array", status_code=201, openapi_extra=BINARY)
    async def open_array(
        request: Request,
        meta: Annotated[str, Header(alias="X-Meta", description="JSON, see the reference.")],
        token: Token = None,
    ) -> Response:
        clock = Clock()
        with core.using(token) as lease:
            head = _head(meta)
            plan = array_plan(head.shape, head.dtype, head.order, head.affine, head.name)
            with clock("upload"):
                received = ArrayBytes(plan.size, packed=head.compression != "none")
                await received.take(request)

            def start() -> Conversation:
                with warned() as notes:
                    volume = volume_of(plan, received.whole(), head.channel)
                return core.open_volume(
                    lease, volume, model=head.model, name=head.object, annotator=head.annotator, notes=notes
                )

            with clock("open"):
                talk = await run_in_threadpool(start)
            return await run_in_threadpool(_opened, core, talk, clock)

    @routes.get("")
    def look(token: Token = None, masks: bool = False) -> Response:
        return _about(core, token, lambda talk, clock: _state(core, talk, clock, masks=masks))

    @routes.patch("")
    def alter(asked: schemas.Altering, token: Token = None) -> Response:
        def act(talk: Conversation, clock: Clock) -> Response:
            outcome = talk.settle(policy=asked.policy, neighbours=asked.neighbours, annotator=asked.annotator)
            changes = [{"object": one.number, **wire.packed(one.box, one.mask)} for one in outcome.changes]
            return _state(core, talk, clock, changes=changes)

        return _about(core, token, act)

    @routes.put("/model")
    def exchange(asked: schemas.OtherModel, token: Token = None) -> Response:
        def act(talk: Conversation, clock: Clock) -> Response:
            model = core.models[asked.model]
            with talk.held(clock):
                outcome = talk.exchange(asked.model, model, clock)
                return acted(core, talk, talk.session, outcome, clock)

        return _about(core, token, act)

    @routes.delete("")
    def close(token: Token = None, forget: bool = False) -> dict[str, Any]:
        with core.using(token) as lease, core.talk(lease):
            return {"closed": True, "id": core.close(lease, forget=forget)}

    @routes.get("/image.{ending}", response_class=FileResponse)
    def image(ending: Literal["nii.gz", "nii"], token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.held() as session:
                volume = session.volume
            original = _original(core, talk)
            if ending == "nii.gz" and original is not None:
                return sent_file(original, f"{volume.name}.nii.gz")
            return sent_volume(volume, f"{volume.name}.{ending}")

    @routes.get("/log.json")
    def log(token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk, talk.held():
            name = f"{talk.session.volume.name}.session.json"
            return JSONResponse(talk.record(), headers={"Content-Disposition": disposition(name)})

    return routes


def _about(core: Core, token: str | None, act: Callable[[Conversation, Clock], Response]) -> Response:
    clock = Clock()
    with core.using(token) as lease, core.talk(lease) as talk:
        return act(talk, clock)


def _state(core: Core, talk: Conversation, clock: Clock, *, masks: bool = False, **more: Any) -> Response:
    with talk.held(clock) as session:
        return answer(core, clock, {**state(talk, session, masks=masks), **more})


def _opened(core: Core, talk: Conversation, clock: Clock) -> Response:
    with talk.held(clock) as session:
        return answer(core, clock, state(talk, session), 201)


def _head(meta: str) -> schemas.ArrayHead:
    try:
        return schemas.ArrayHead.model_validate_json(meta)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise BadInput(f"the header X-Meta: {place}: {first['msg']}") from None


def _original(core: Core, talk: Conversation) -> Path | None:
    """The file behind a session if a viewer can have it as it is: a gzipped NIfTI of one value in a voxel."""
    origin = talk.origin
    if origin.kind in ("array", "series") or not origin.path.lower().endswith(".nii.gz"):
        return None
    path = place_of(origin, core.settings.studies, core.store.place(talk.identity), core.settings.linked)
    header = read_header(path)
    with path.open("rb") as file:
        gzipped = file.read(2) == GZIP
    return path if gzipped and header.frames == header.values == 1 else None
