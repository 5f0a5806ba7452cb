"""Prompts: giving them, taking them back, reading them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from volsam.geometry import Grid
from volsam.inference.log import to_saved
from volsam.server.api import schemas
from volsam.server.api.answers import Token, acted, answer
from volsam.server.conversation import Conversation, Outcome
from volsam.server.core import Core
from volsam.server.device import Clock

ForObject = Annotated[int | None, Query(alias="object", ge=1)]


def router(core: Core) -> APIRouter:
    """`/session/prompts`, `/session/undo`, `/session/redo`, `/session/reset`."""
    routes = APIRouter(prefix="/session", tags=["prompts"])

    def act(token: str | None, action: Callable[[Conversation, Clock], Outcome]) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock) as session:
            return acted(core, talk, session, action(talk, clock), clock)

    @routes.post("/prompts")
    def add(asked: schemas.Prompts, token: Token = None) -> Response:
        return act(token, lambda talk, clock: talk.add(asked.on(talk.session.volume.grid), asked.object, clock))

    @routes.delete("/prompts/{number}")
    def remove(number: int, about: ForObject = None, token: Token = None) -> Response:
        return act(token, lambda talk, clock: talk.remove(number, about, clock))

    @routes.post("/undo")
    def undo(asked: schemas.About, token: Token = None) -> Response:
        return act(token, lambda talk, clock: talk.undo(asked.object, clock))

    @routes.post("/redo")
    def redo(asked: schemas.About, token: Token = None) -> Response:
        return act(token, lambda talk, clock: talk.redo(asked.object, clock))

    @routes.post("/reset")
    def reset(asked: schemas.About, token: Token = None) -> Response:
        return act(token, lambda talk, clock: talk.reset(asked.object, clock))

    @routes.get("/prompts")
    def standing(about: ForObject = None, space: schemas.Space = "ras", token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.about(about, clock) as (session, thing):
            grid = session.volume.grid
            prompts = [{"id": number, **in_space(to_saved(prompt), grid, space)} for number, prompt in session.prompts]
            return answer(core, clock, {"object": thing.number, "prompts": prompts, "log": session.entries})

    return routes


def in_space(record: dict[str, Any], grid: Grid, space: schemas.Space) -> dict[str, Any]:
    """A saved prompt, mm RAS+, with its places in another space; a mask has a lattice of its own."""
    if space == "ras" or record["type"] == "mask":
        return record
    there: dict[str, Any] = {
        key: _turned(np.array(record[key], dtype=np.float64), grid, space)
        for key in ("position", "low", "high", "points")
        if key in record
    }
    return {**record, **there}


def _turned(places: np.ndarray[Any, Any], grid: Grid, space: schemas.Space) -> Any:
    return (grid.to_voxels(places) if space == "voxel" else places * (-1, -1, 1)).tolist()
