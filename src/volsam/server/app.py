"""The server put together: `create_app`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Scope

import volsam
from volsam.errors import VolsamError
from volsam.inference.session import Model
from volsam.server import api, dialects
from volsam.server.api.server import healthy, watched
from volsam.server.core import Core
from volsam.server.gate import Gate
from volsam.server.problems import Problem, body_of, status_of
from volsam.server.settings import Settings

log = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
TIDY_EVERY = 5.0  # seconds


def create_app(settings: Settings | None = None, model: Model | None = None) -> FastAPI:
    """The application for an ASGI server.

    model: stands for the first of the settings' models, already loaded; otherwise it is loaded at the start.
    """
    core = Core(settings or Settings(), model)
    spoken = [dialects.module(name) for name in dialects.chosen(core.settings.dialects)]
    app = FastAPI(
        title="volsam",
        version=volsam.__version__,
        description="Segment volumes by clicks. See docs/reference/http.md.",
        lifespan=lambda _: _alive(core),
        openapi_url=f"{api.PREFIX}/openapi.json",
        docs_url=None,  # its page would load scripts from another site
        redoc_url=None,
    )
    app.state.core = core
    app.add_exception_handler(VolsamError, _refused)
    app.add_exception_handler(RequestValidationError, _not_as_asked)
    app.add_exception_handler(HTTPException, _not_there(core))
    app.include_router(api.router(core))

    @app.get("/health", tags=["server"])
    async def health() -> Response:
        return healthy(core)

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    def metrics() -> Response:
        return watched(core)

    for dialect in spoken:
        app.include_router(dialect.router(core), include_in_schema=False)
    if STATIC.is_dir():
        app.mount("/", _Page(directory=STATIC, html=True), name="page")
    opened = {path for dialect in spoken for path in getattr(dialect, "OPEN", ())}
    app.add_middleware(Gate, settings=core.settings, open_paths=frozenset(opened | _pages()), seen=_counting(core))
    if core.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(core.settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "X-Meta", "Content-Disposition"],
        )
    return app


@asynccontextmanager
async def _alive(core: Core) -> AsyncIterator[None]:
    """Load the model before the first request, watch the leases, and end without losing anything."""
    await run_in_threadpool(lambda: core.models[None])
    removed = await run_in_threadpool(core.store.prune, core.settings.keep_days)
    if removed:
        log.info("%d old uploads were removed", removed)

    async def watch() -> None:
        while True:
            await asyncio.sleep(TIDY_EVERY)
            await run_in_threadpool(core.tidy)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await run_in_threadpool(core.shut_down)


class _Page(StaticFiles):
    """The viewer's page; scripts of other places have no business in it."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)  # a call of a protocol that is not spoken here
        return await super().get_response(path, scope)

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _pages() -> set[str]:
    """The page itself needs no key: it asks for it."""
    if not STATIC.is_dir():
        return set()
    files = [path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()]
    return {"/", *(f"/{file}" for file in files)}


# --- errors ----------------------------------------------------------------------------------------------------------


async def _refused(_: Request, error: Exception) -> Response:
    status, detail = status_of(error)
    if isinstance(error, Problem):
        return JSONResponse({**body_of(status, detail), **error.more}, status, error.headers)
    return JSONResponse(body_of(status, detail), status)


async def _not_as_asked(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    return JSONResponse(body_of(422, f"{place}: {first['msg']}"), 422)


def _not_there(core: Core) -> Any:
    """An unknown path is told what is spoken here."""

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body: dict[str, Any] = body_of(error.status_code, str(error.detail))
        if error.status_code == 404:
            spoken = dialects.chosen(core.settings.dialects)
            body["detail"] = (
                f"nobody speaks {request.url.path[:200]} here; this server speaks {api.PREFIX} and "
                f"{', '.join(spoken) or 'no other dialect'}"
            )
            body["speaks"] = {"api": api.PREFIX, "dialects": spoken}
        return JSONResponse(body, error.status_code, getattr(error, "headers", None))

    return handle


def _counting(core: Core) -> Any:
    def seen(scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        core.metrics.request(route, scope["method"], status)

    return seen
