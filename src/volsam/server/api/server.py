"""About the server: version, models, studies, saved sessions."""

from __future__ import annotations

from itertools import islice
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import volsam
from volsam.server.core import Core
from volsam.server.problems import Problem
from volsam.server.volumes import all_studies

Limit = Annotated[int, Query(ge=1, le=10_000)]
Offset = Annotated[int, Query(ge=0)]
API = 1


def router(core: Core) -> APIRouter:
    """`/version`, `/models`, `/studies`, `/sessions`."""
    routes = APIRouter(tags=["server"])
    settings = core.settings

    @routes.get("/health")
    async def health() -> Response:
        return healthy(core)

    @routes.get("/version")
    def version() -> dict[str, Any]:
        from volsam.server.dialects import chosen

        return {
            "name": "volsam",
            "version": volsam.__version__,
            "api": API,
            "dialects": list(chosen(settings.dialects)),
            "key_needed": settings.key is not None,
            "studies": settings.studies is not None,
        }

    @routes.get("/models")
    def models() -> dict[str, Any]:
        listed = [
            {**vars(core.models.spine(name)), "prompts": list(core.models.spine(name).prompts)}
            | {"loaded": core.models.is_loaded(name)}
            for name in core.models.names
        ]
        return {"default": core.models.default, "models": listed}

    @routes.get("/studies")
    def studies(
        query: Annotated[str, Query(max_length=1000)] = "", offset: Offset = 0, limit: Limit = 1000
    ) -> dict[str, Any]:
        if settings.studies is None:
            raise Problem(404, "this server has no folder of studies (--studies): upload the volume instead")
        found = [study for study in all_studies(settings.studies) if query.lower() in study["path"].lower()]
        return {"studies": found[offset : offset + limit], "total": len(found)}

    @routes.get("/sessions")
    def sessions(
        study: Annotated[str | None, Query(min_length=1, max_length=4096)] = None, limit: Limit = 100
    ) -> dict[str, Any]:
        return {"sessions": list(islice(core.saved(study), limit))}

    return routes


def healthy(core: Core) -> Response:
    """Whether the server takes requests."""
    body = {
        "ok": not core.closing,
        "status": "shutting down" if core.closing else "ready",
        "version": volsam.__version__,
        "leases": len(core.leases),
        "max_leases": core.leases.most,
        "uptime_seconds": round(monotonic() - core.began, 3),
    }
    return JSONResponse(body, 503 if core.closing else 200)


def watched(core: Core) -> Response:
    """What Prometheus reads."""
    return PlainTextResponse(core.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
