"""What goes wrong, as a client sees it: a status, a code for programs, and one line for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from volsam.errors import MissingExtra, NotSupported, VolsamError, is_out_of_memory

log = logging.getLogger(__name__)

CODES = {
    400: "bad_input",
    401: "key",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "timeout",
    409: "conflict",
    410: "lease",
    413: "too_large",
    422: "schema",
    429: "busy",
    500: "internal",
    501: "extra",
    503: "full",
    507: "storage",
}


class Problem(VolsamError):
    """An error with the HTTP status that says it best.

    code: a word for programs where that of the status is too wide; facts: what else the body of the answer holds.
    """

    def __init__(
        self, status: int, detail: str, *, code: str = "", facts: Mapping[str, Any] | None = None, **headers: str
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.more = {**({"code": code} if code else {}), **(facts or {})}
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def status_of(error: Exception) -> tuple[int, str]:
    """The status of any error, and the line for the client; what nobody foresaw is logged and not told."""
    if isinstance(error, Problem):
        return error.status, str(error)
    if isinstance(error, (MissingExtra, NotSupported)):
        return (501 if isinstance(error, MissingExtra) else 400), str(error)
    if isinstance(error, VolsamError):
        return 400, " ".join(str(error).split())
    if is_out_of_memory(error):
        return 413, "memory ran out: close other sessions, or crop or resample the volume"
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return 500, f"unexpected {type(error).__name__}; the server's log has more"


def body_of(status: int, detail: str) -> dict[str, str]:
    """The JSON of an error."""
    return {"detail": detail, "code": CODES.get(status, "error")}
