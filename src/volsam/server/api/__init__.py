"""volsam's own contract, /api/v1: see docs/reference/http.md."""

from __future__ import annotations

from fastapi import APIRouter

from volsam.server.api import leases, objects, prompts, results, server, sessions
from volsam.server.api.answers import ERRORS
from volsam.server.core import Core

PREFIX = "/api/v1"


def router(core: Core) -> APIRouter:
    """All of it."""
    whole = APIRouter(prefix=PREFIX, responses=ERRORS)
    for part in (server, leases, sessions, objects, prompts, results):
        whole.include_router(part.router(core))
    return whole
