"""Objects of a session: making, altering, forgetting them."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from volsam.server.api import schemas
from volsam.server.api.answers import Token, acted, answer, described
from volsam.server.core import Core
from volsam.server.device import Clock


def router(core: Core) -> APIRouter:
    """`/session/objects`."""
    routes = APIRouter(prefix="/session/objects", tags=["objects"])

    @routes.get("")
    def listed(token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock) as session:
            things = [described(talk, session, thing) for thing in talk.things]
            return answer(core, clock, {"objects": things, "current": talk.current})

    @routes.post("", status_code=201)
    def make(asked: schemas.NewObject, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock) as session:
            thing = talk.new(asked.name, asked.colour, select=asked.select)
            return answer(core, clock, described(talk, session, thing), 201)

    @routes.patch("/{number}")
    def alter(number: int, asked: schemas.AlteredObject, token: Token = None) -> Response:
        clock = Clock()
        values = asked.model_dump(exclude={"select"}, exclude_none=True)
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock) as session:
            thing = talk.alter(number, select=asked.select, **values)
            return answer(core, clock, described(talk, session, thing))

    @routes.delete("/{number}")
    def delete(number: int, token: Token = None) -> Response:
        clock = Clock()
        with core.using(token) as lease, core.talk(lease) as talk, talk.held(clock):
            outcome = talk.delete(number, clock)
            return acted(core, talk, talk.session, outcome, clock)

    return routes
