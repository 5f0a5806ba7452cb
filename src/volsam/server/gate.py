"""What every request passes before it reaches a route: where it comes from, its key, and how long it is."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from volsam.server.problems import Problem, body_of, status_of
from volsam.server.settings import LOOPBACK, Settings
from volsam.server.uploads import too_large, upload_limit

log = logging.getLogger(__name__)

LARGEST_JSON = 64 << 20

# Paths that need no key.
OPEN = ("/health", "/api/v1/health", "/api/v1/version")


class Gate:
    """An ASGI layer. `seen(scope, status)` is called when an answer begins."""

    def __init__(
        self, app: ASGIApp, settings: Settings, open_paths: frozenset[str], seen: Callable[[Scope, int], None]
    ) -> None:
        self.app = app
        self.settings = settings
        self.open_paths = open_paths | set(OPEN)
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Browsers keep some answers forever if nobody objects, 410 among them.
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
                self.seen(scope, message["status"])
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._require_place(headers)
            self._require_key(scope, headers)
            await self.app(scope, self._counted(headers, receive), noted)
        except Exception as error:
            status, detail = status_of(error)
            if started:  # too late to say anything
                raise
            more = error.headers if isinstance(error, Problem) else {}
            # What was not read of the body would be taken for the next request.
            await JSONResponse(body_of(status, detail), status, {**more, "Connection": "close"})(scope, receive, noted)

    def _require_place(self, headers: Headers) -> None:
        """Scripts of other web sites run in the user's own browser: they may not use the user's own server."""
        host = headers.get("host", "")
        name = _parts(f"//{host}").hostname if host else None
        if self.settings.key is None and name is not None and name not in (*LOOPBACK, self.settings.host):
            raise Problem(403, f"this server has no key and is for this machine only; it was asked for as {host[:100]}")
        origin = headers.get("origin")
        if origin is None or origin in self.settings.origins or "*" in self.settings.origins:
            return
        if _parts(origin).netloc != host:
            raise Problem(403, f"scripts of {origin[:100]} may not use this server: allow it with --allow-origin")

    def _require_key(self, scope: Scope, headers: Headers) -> None:
        key = self.settings.key
        # What a browser asks before it sends a key has none.
        if key is None or scope["method"] == "OPTIONS" or scope["path"] in self.open_paths:
            return
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            sent.strip().encode(), key.get_secret_value().encode()
        ):
            raise Problem(
                401,
                "this server needs a key: send it as Authorization: Bearer KEY" if not sent else "this is not the key",
                WWW_Authenticate="Bearer",
            )

    def _counted(self, headers: Headers, receive: Receive) -> Receive:
        """Bodies of no more than what is allowed; of JSON, less."""
        json = "json" in headers.get("content-type", "json")
        limit = LARGEST_JSON if json else upload_limit(self.settings)
        promised = headers.get("content-length", "")
        if promised.isdigit() and int(promised) > limit:
            raise too_large(limit)
        count = 0

        async def counting() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > limit:
                # As FastAPI's own, so that it is not taken for a mistake in the JSON.
                raise HTTPException(413, str(too_large(limit)))
            return message

        return counting


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        raise Problem(400, f"{address[:100]!r} is not the address of a server") from None
