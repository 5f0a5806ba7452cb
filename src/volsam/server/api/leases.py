"""Claiming, keeping and giving back a place."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from volsam.server.api.answers import Token
from volsam.server.core import Core


def router(core: Core) -> APIRouter:
    """`/lease`."""
    routes = APIRouter(prefix="/lease", tags=["lease"])
    clocks = {"idle_timeout_seconds": core.leases.idle, "liveness_timeout_seconds": core.leases.liveness}

    @routes.post("", status_code=201)
    def claim() -> dict[str, Any]:
        return {"lease": core.claim().token, **clocks, "max_leases": core.leases.most}

    @routes.get("")
    def look(token: Token = None) -> dict[str, Any]:
        lease, remaining = core.leases.look(token)
        talk = lease.conversation
        return {"remaining_seconds": remaining, **clocks, "session": None if talk is None else talk.identity}

    @routes.post("/heartbeat")
    def heartbeat(token: Token = None) -> dict[str, Any]:
        return {"remaining_seconds": core.leases.look(token, beat=True)[1]}

    @routes.delete("")
    def release(token: Token = None) -> dict[str, Any]:
        core.release(token)
        return {"released": True}

    return routes
