"""What clients get: JSON of objects and actions, with the time that each step took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import JSONResponse

from volsam.inference.session import Session
from volsam.inference.slice_predictor import SlicePredictor
from volsam.server import wire
from volsam.server.conversation import Conversation, Outcome
from volsam.server.core import Core
from volsam.server.device import Clock
from volsam.server.things import Thing

Token = Annotated[str | None, Header(alias="X-Lease-Token", description="From POST /api/v1/lease.")]


# Written out, since FastAPI makes something of every model of every answer of every route.
WRONG = {
    "type": "object",
    "title": "Wrong",
    "required": ["detail", "code"],
    "properties": {"detail": {"type": "string"}, "code": {"type": "string"}},
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": WRONG}}}
    for status, text in {
        400: "A value that cannot be used",
        401: "Missing or wrong key",
        403: "Out of the folder of studies, or from another web site",
        404: "Not there",
        409: "Not now",
        410: "No lease",
        413: "Too large",
        422: "Not what the schema asks for",
        429: "Too many at once",
        503: "Full, or shutting down",
    }.items()
}


def answer(core: Core, clock: Clock, body: Mapping[str, Any], status: int = 200) -> JSONResponse:
    """JSON with "seconds", and the same in the header Server-Timing."""
    seconds = clock.total()
    core.metrics.steps(seconds)
    rounded = {step: round(value, 6) for step, value in seconds.items()}
    return JSONResponse({**body, "seconds": rounded}, status, {"Server-Timing": timing(seconds)})


def timing(seconds: Mapping[str, float]) -> str:
    """The value of a Server-Timing header."""
    return ", ".join(f"{step};dur={1000 * value:.3f}" for step, value in seconds.items())


def described(talk: Conversation, session: Session, thing: Thing) -> dict[str, Any]:
    """An object, in full; its session is held."""
    before = session.current
    session.select(thing.name)
    found = {
        "id": thing.number,
        "name": thing.name,
        "colour": thing.colour,
        "locked": thing.locked,
        "visible": thing.visible,
        "prompts": len(session.prompts),
        "voxels": thing.voxels,
        "volume_ml": millilitres(session, thing.voxels),
        "quality": session.quality,
        "can_undo": session.can_undo,
        "can_redo": session.can_redo,
        "changed": thing.changed,
    }
    session.select(before)
    return found


def acted(core: Core, talk: Conversation, session: Session, outcome: Outcome, clock: Clock) -> JSONResponse:
    """What an action did; its session is held."""
    with clock("pack"):
        changes = [{"object": one.number, **wire.packed(one.box, one.mask)} for one in outcome.changes]
    thing = next((one for one in talk.things if one.number == outcome.number), None)
    known = described(talk, session, thing) if thing else {}
    kept = ("quality", "can_undo", "can_redo", "prompts", "voxels", "volume_ml", "changed")
    body = {
        "object": outcome.number,
        "added": list(outcome.added),
        "done": outcome.done,
        **{key: known.get(key) for key in kept},
        "changes": changes,
    }
    return answer(core, clock, body)


def state(talk: Conversation, session: Session, *, masks: bool = False) -> dict[str, Any]:
    """Everything a client needs to show a session; it is held."""
    grid = session.volume.grid
    low, high = grid.extent()
    objects = [described(talk, session, thing) for thing in talk.things]
    if masks:
        for item in objects:
            item["mask"] = mask_of(talk, item["id"])
    return {
        "id": talk.identity,
        "name": session.volume.name,
        "study": talk.origin.path if talk.origin.kind == "study" else None,
        "dicom": talk.origin.is_series,
        "annotator": talk.annotator,
        "model": talk.chosen,
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "spacing": grid.spacing.tolist(),
        "axes": grid.axes,
        "extent": {"low": low.tolist(), "high": high.tolist()},
        "intensity": talk.intensity,
        "notes": list(talk.notes),
        "takes": taken(session),
        "plane": session.predictor.plane if isinstance(session.predictor, SlicePredictor) else None,
        "policy": talk.policy,
        "neighbours": session.neighbours,
        "current": talk.current,
        "objects": objects,
    }


def mask_of(talk: Conversation, number: int) -> dict[str, Any] | None:
    """An object's voxels on the wire, None if it has none; its session is held."""
    box = talk.bounds(number)
    return None if box is None else wire.packed(box, talk.mask(number, box))


def taken(session: Session) -> list[str]:
    """The prompts that the model of a session understands, in the words of the API."""
    kinds = session.model.takes
    words = {
        "point": "click",
        "negative point": "negative click",
        "box": "box",
        "flat box": "flat box",
        "scribble": "click",
        "negative scribble": "negative click",
        "lasso": "click",
        "negative lasso": "negative click",
        "mask": "mask",
    }
    return [word for word, kind in words.items() if kind in kinds]


def millilitres(session: Session, voxels: int) -> float:
    """The volume of so many voxels."""
    return voxels * session.volume.grid.voxel_volume / 1000
