"""HTTP by the standard library, so that the client runs wherever Python and numpy are."""

from __future__ import annotations

import http.client
import json
import select
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from volsam_client.errors import Unreachable

CONNECT = 10.0  # seconds


@dataclass(frozen=True)
class Answer:
    """What came back, whole."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the request was granted."""
        return 200 <= self.status_code < 300

    def json(self) -> Any:
        """The content as JSON; ValueError if it is something else."""
        return json.loads(self.content)


class Http:
    """Requests to one address. Connections are kept, one for each thread; proxies of the environment are not used.

    A request is sent once: one that may have reached the server is never repeated. `request` raises `Unreachable`.
    """

    def __init__(self, address: str, timeout: float) -> None:
        place = urlsplit(address.strip())
        try:
            self._host, self._port = place.hostname, place.port
        except ValueError:
            self._host = None
        if place.scheme not in ("http", "https") or not self._host:
            raise Unreachable(f"{address!r} is not the address of a server: write it like http://127.0.0.1:1527")
        self._secure = place.scheme == "https"
        self._prefix = place.path.rstrip("/")
        self._timeout = timeout
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask, and wait for the whole answer; `timeout` in seconds is for each step of it."""
        sent = dict(headers)
        body = content
        if json is not None:
            body = _packed(json)
            sent["Content-Type"] = "application/json"
        if body is None and method != "GET":
            body = b""
        query = f"?{urlencode(params)}" if params else ""
        connection = self._connection()
        try:
            self._ready(connection, timeout or self._timeout)
            connection.request(method, f"{self._prefix}{path}{query}", body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()  # an answer half read must not be taken for the next one
            raise

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is None:
            if self._secure:
                context = ssl.create_default_context()
                found = http.client.HTTPSConnection(str(self._host), self._port, timeout=CONNECT, context=context)
            else:
                found = http.client.HTTPConnection(str(self._host), self._port, timeout=CONNECT)
            self._own.connection = found
            self._all.append(found)
        return found

    @staticmethod
    def _ready(connection: http.client.HTTPConnection, timeout: float) -> None:
        """Connected; a kept connection that the server has closed meanwhile can be read from, and is made anew."""
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(timeout)


def _packed(value: Any) -> bytes:
    return json.dumps(value).encode()
