"""What came of the prompts: masks, label maps, uncertainty, measurements, and labels saved beside the studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response
from numpy.typing import NDArray

import volsam
from volsam.data.dicom_seg import Segment, write_dicom_seg
from volsam.data.files import replacing
from volsam.data.io import write_volume
from volsam.data.studies import record_of, versions
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.inference.uncertainty import Uncertainty
from volsam.server import wire
from volsam.server.api import schemas
from volsam.server.api.answers import Token, answer, mask_of
from volsam.server.api.files import sent_segments, sent_volume
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.device import Clock
from volsam.server.measure import measured
from volsam.server.ownership import window_of
from volsam.server.problems import Problem
from volsam.server.things import Thing
from volsam.server.volumes import label_place, place_of

Ending = Literal["nii.gz", "nii", "nrrd", "mha"]
Numbers = Annotated[str | None, Query(pattern=r"^[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*$", description="Such as 1,2.")]
MapKind = Literal["bands", "probability", "spread"]


def router(core: Core) -> APIRouter:
    """`/session/objects/{id}/...`, `/session/labels...`, `/session/save`."""
    routes = APIRouter(prefix="/session", tags=["results"])

    @routes.get("/objects/{number}/mask")
    def mask(number: int, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock):
            thing = talk.thing(number)
            body = {"object": number, "changed": thing.changed, "mask": mask_of(talk, number)}
            return answer(core, clock, body)

    @routes.get("/objects/{number}/mask.{ending}", response_class=FileResponse)
    def mask_file(number: int, ending: Ending, token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.held() as session:
                thing = talk.thing(number)
                values = labelled(talk, session, [thing]) > 0
            return sent_volume(session.volume.with_data(values[None], thing.name), f"{thing.name}.{ending}")

    @routes.get("/labels.dcm", response_class=FileResponse)
    def segments(objects: Numbers = None, token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk:
            series = series_of(core, talk)
            with talk.held() as session:
                drawn = segmented(talk, session, chosen(talk, objects))
                name = f"{session.volume.name}_seg"
            return sent_segments(drawn, series, session.model.name, name)

    @routes.get("/labels.{ending}", response_class=FileResponse)
    def labels(ending: Ending, objects: Numbers = None, token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.held() as session:
                values = labelled(talk, session, chosen(talk, objects))
            name = f"{session.volume.name}_labels.{ending}"
            return sent_volume(session.volume.with_data(values[None]), name)

    @routes.get("/objects/{number}/uncertainty")
    def uncertainty(number: int, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.about(number, clock) as (session, thing):
            with clock("paint"):
                doubt = talk.doubt(session, thing)
                body = {"object": number, "changed": thing.changed, "quality": session.quality}
                body |= in_numbers(doubt, session.volume.grid)
            return answer(core, clock, body)

    @routes.get("/objects/{number}/uncertainty.{ending}", response_class=FileResponse)
    def uncertainty_file(number: int, ending: Ending, what: MapKind = "bands", token: Token = None) -> Response:
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.about(number) as (session, thing):
                doubt = talk.doubt(session, thing)
            volume = session.volume.with_data(mapped(doubt, session.volume.grid, what)[None])
            return sent_volume(volume, f"{thing.name}_{what}.{ending}")

    @routes.get("/objects/{number}/measurements")
    def measurements(number: int, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.held(clock) as session:
                thing = talk.thing(number)
                box = talk.bounds(number) or ((0, 0, 0), (1, 1, 1))
                mask = talk.mask(number, box)
            with clock("measure"):
                values = session.volume.data[0][window_of(box)]
                found = measured(mask, values, session.volume.grid.crop(*box), box[0])
            return answer(core, clock, {"object": number, "changed": thing.changed, **found})

    @routes.post("/save")
    def save(asked: schemas.Saving, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk:
            with talk.held(clock) as session:
                things = chosen(talk, None if asked.objects is None else ",".join(map(str, asked.objects)))
                write = _writer(core, talk, session, things, asked)
                record = {**talk.record(), "volsam": volsam.__version__, "labels": [vars(thing) for thing in things]}
            with clock("save"):
                written = _written(core, talk, write, record, asked)
            return answer(core, clock, written)

    return routes


# --- labels ----------------------------------------------------------------------------------------------------------


def chosen(talk: Conversation, numbers: str | None) -> list[Thing]:
    """The objects that are named, or all; 404 for one that is not there."""
    if numbers is None:
        return talk.things
    return [talk.thing(int(number)) for number in numbers.split(",")]


def labelled(talk: Conversation, session: Session, things: list[Thing]) -> NDArray[np.unsignedinteger]:
    """The numbers of objects on the volume's grid; where they share voxels, that of the one made later."""
    highest = max((thing.number for thing in things), default=0)
    values = np.zeros(session.volume.grid.shape, np.min_scalar_type(highest), order="F")
    for thing in sorted(things, key=lambda one: one.number):
        box = talk.bounds(thing.number)
        if box is not None:
            values[window_of(box)][talk.mask(thing.number, box)] = thing.number
    return values


def segmented(talk: Conversation, session: Session, things: list[Thing]) -> list[Segment]:
    """Objects with masks of their own on the whole grid, for a format in which they may share voxels."""
    return [Segment(thing.name, talk.whole(thing.number), thing.colour) for thing in things]


def series_of(core: Core, talk: Conversation) -> Path:
    """The DICOM series behind a session; 409 if there is none."""
    origin = talk.origin
    if not origin.is_series:
        raise Problem(
            409, "DICOM-SEG refers to the slices of a DICOM series, and this volume is none: take another format"
        )
    return place_of(origin, core.settings.studies, core.store.place(talk.identity), core.settings.linked)


def _writer(
    core: Core, talk: Conversation, session: Session, things: list[Thing], asked: schemas.Saving
) -> Callable[[Path], None]:
    """What writes the labels, as they are now, to a file."""
    if asked.format == "dicom_seg":
        series, drawn = series_of(core, talk), segmented(talk, session, things)
        maker, name = (session.model.name, volsam.__version__), session.volume.name
        return lambda path: write_dicom_seg(drawn, series, path, maker=maker, name=name)
    volume = session.volume.with_data(labelled(talk, session, things)[None])
    return lambda path: write_volume(volume, path)


def _written(
    core: Core, talk: Conversation, write: Callable[[Path], None], record: dict[str, Any], asked: schemas.Saving
) -> dict[str, Any]:
    studies = core.settings.studies
    if talk.origin.kind != "study" or studies is None:
        raise Problem(409, "the volume was uploaded, so its labels have no place here: download them instead")
    ending = "dcm" if asked.format == "dicom_seg" else asked.format
    target = label_place(studies, talk.origin.path, asked.tag, f".{ending}")
    root, beside = studies.resolve(), record_of(target)
    older = versions(target) if ending != "dcm" else []
    there = [file for file in (target, *older) if file.exists()]
    if there and not asked.replace:
        name = there[0].relative_to(root).as_posix()
        raise Problem(409, f'{name} is there already: replace it with "replace", or give another "tag"', code="exists")
    write(target)
    with replacing(beside) as unfinished:
        unfinished.write_text(json.dumps(record), encoding="utf-8")
    for file in older:  # one tag has one label
        file.unlink(missing_ok=True)
    return {
        "path": target.relative_to(root).as_posix(),
        "record": beside.relative_to(root).as_posix(),
        "bytes": target.stat().st_size,
        "replaced": bool(there),
    }


# --- uncertainty -----------------------------------------------------------------------------------------------------


def in_numbers(doubt: Uncertainty, grid: Grid) -> dict[str, Any]:
    """The overlay of bands, and what it comes to."""
    low, high = grid.overlap(doubt.grid)
    window = grid.crop(low, high)
    probability, spread = doubt.on(window)
    doubtful = 4 * probability * (1 - probability) + 2 * spread
    axis = int(np.argmax(grid.spacing))
    per_slice = doubtful.sum(axis=tuple(other for other in range(3) if other != axis))
    place = doubt.least_certain(grid)
    inside = doubt.probability > 0.5
    return {
        "spread": float(doubt.spread[inside].mean()) if inside.any() else 0.0,
        "next_click": None if place is None else {"position": list(place), "voxel": grid.to_voxels(place).tolist()},
        "bands": wire.packed((low, high), in_bands(probability)),
        "worst_slice": {"axis": axis, "index": int(per_slice.argmax() + low[axis])},
    }


def in_bands(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0 where the probability is at most 0.1, then 1 for (0.1, 0.2] up to 9 for (0.9, 1.0]."""
    return np.ceil(probability * 10 - 1e-6).clip(1, 10).astype(np.uint8) - 1


def mapped(doubt: Uncertainty, grid: Grid, what: MapKind) -> NDArray[Any]:
    """A map on the whole grid, 0 outside the region."""
    low, high = grid.overlap(doubt.grid)
    probability, spread = doubt.on(grid.crop(low, high))
    parts: dict[str, NDArray[Any]] = {"bands": in_bands(probability), "probability": probability, "spread": spread}
    part = parts[what]
    whole = np.zeros(grid.shape, part.dtype, order="F")
    whole[window_of((low, high))] = part
    return whole
