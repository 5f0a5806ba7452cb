"""A server, and a place on it."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volsam_client.errors import Full, LeaseEnded, Refused, Unreachable
from volsam_client.http import Answer, Http
from volsam_client.session import Session

API = "/api/v1"
# Of the liveness timeout, so often is a sign of life given.
BEATS = 3
ANSWER, UPLOAD = 120.0, 900.0  # seconds


class Server:
    """A volsam server. A place on it is claimed when the first volume is opened, and kept until `close`.

    Args:
        address: such as "http://127.0.0.1:1527".
        key: if the server needs one.
        http: a client in place of its own, such as httpx has, for a proxy or a test; it stays open.
    """

    def __init__(self, address: str = "http://127.0.0.1:1527", key: str | None = None, http: Any = None) -> None:
        self._http: Any = http or Http(address, ANSWER)
        self._own = http is None
        self.address = address
        self._key = key
        self._lease: str | None = None
        self.opened: str | None = None
        """The session that is open; opening another one closes it, and its next action resumes it."""
        self._claiming = threading.Lock()
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    # --- about it ------------------------------------------------------------------------------------------------

    def version(self) -> dict[str, Any]:
        """What the server is; also the way to test a connection."""
        return self.json("GET", "/version")

    def models(self) -> list[dict[str, Any]]:
        """The models that it offers."""
        return list(self.json("GET", "/models")["models"])

    def studies(self, query: str = "") -> list[dict[str, Any]]:
        """Volumes that it holds."""
        return list(self.json("GET", "/studies", params={"query": query})["studies"])

    def sessions(self, study: str) -> list[dict[str, Any]]:
        """Saved sessions about a study, newest first."""
        return list(self.json("GET", "/sessions", params={"study": study})["sessions"])

    # --- volumes -------------------------------------------------------------------------------------------------

    def open(self, study: str, **more: Any) -> Session:
        """Open a study of the server; more: model, frame, channel, object, annotator."""
        return self._opened("/session", json={"study": study, **more})

    def upload(self, path: str | Path, **more: Any) -> Session:
        """Send a file in any format that volsam reads, or a folder that holds one DICOM series."""
        path = Path(path)
        name, content = (f"{path.name}.tar", _tar_of(path)) if path.is_dir() else (path.name, path.read_bytes())
        return self._opened("/session/file", content=content, params={"name": name, **more}, timeout=UPLOAD)

    def send(self, values: NDArray[Any], affine: ArrayLike, name: str = "volume", **more: Any) -> Session:
        """Send an array (i, j, k) or (c, i, j, k); `affine` maps voxel indices to mm RAS+."""
        values = np.asarray(values)
        plain = values.astype(np.float32) if values.dtype.kind == "f" and values.dtype.itemsize > 8 else values
        plain = plain.astype(np.uint8) if plain.dtype == bool else plain
        head = {
            "shape": list(plain.shape),
            "dtype": plain.dtype.name,
            "affine": np.asarray(affine, dtype=float).tolist(),
            "order": "C",
            "compression": "deflate",
            "name": name,
            **more,
        }
        little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
        body = zlib.compress(np.ascontiguousarray(little).data, 1)
        headers = {"X-Meta": json.dumps(head)}
        return self._opened("/session/array", content=body, headers=headers, timeout=UPLOAD)

    def resume(self, identity: str, *, take: bool = False, model: str | None = None) -> Session:
        """Go on with a saved session; with `take`, even if someone else has it open.

        model: makes all masks anew with another model; without it a session whose model the server lacks is refused.
        """
        other = {} if model is None else {"model": model}
        return self._opened("/session", json={"resume": identity, "take": take, **other})

    def _opened(self, path: str, **options: Any) -> Session:
        self.claim()
        self.opened = None  # where no answer comes, nobody knows
        try:
            state = self.json("POST", path, **options)
        except LeaseEnded:
            self._lease = None
            self.claim()
            state = self.json("POST", path, **options)
        self.opened = str(state["id"])
        return Session(self, state)

    # --- the place -----------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Take a place, unless there is one."""
        with self._claiming:
            if self._lease is not None:
                return
            claimed = self.json("POST", "/lease")
            self._lease = str(claimed["lease"])
            if self._beating is None:
                every = float(claimed["liveness_timeout_seconds"]) / BEATS
                self._beating = threading.Thread(target=self._beat, args=(every,), daemon=True, name="volsam-heartbeat")
                self._beating.start()

    def lost(self) -> None:
        """Forget a place that has ended."""
        self._lease = None

    def close(self) -> None:
        """Give the place back; what was done stays saved on the server."""
        self._end.set()
        if self._beating is not None:
            self._beating.join(timeout=5)
        with suppress(Exception):
            if self._lease is not None:
                self.json("DELETE", "/lease", timeout=5)
        self._lease = None
        if self._own:
            self._http.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beat(self, every: float) -> None:
        while not self._end.wait(every):
            with suppress(Exception):
                if self._lease is not None:
                    self.json("POST", "/lease/heartbeat", timeout=every)

    # --- requests ------------------------------------------------------------------------------------------------

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer; what went wrong is raised."""
        return self.request(method, path, **options).json()

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Answer:
        """A request under /api/v1."""
        sent = dict(headers or {})
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        if self._lease:
            sent["X-Lease-Token"] = self._lease
        if "content" in options:
            sent.setdefault("Content-Type", "application/octet-stream")
        if not self._own:
            options.pop("timeout", None)
        try:
            answer = self._http.request(method, API + path, headers=sent, **options)
        except Unreachable as error:
            raise Unreachable(f"{self.address} does not answer: {error}") from error
        if answer.is_success:
            return answer
        raise _refusal(answer)


def _refusal(answer: Answer) -> Refused:
    try:
        body = answer.json()
        detail, code = str(body["detail"]), str(body["code"])
    except (ValueError, LookupError, TypeError):
        detail, code = f"the server answered {answer.status_code}: is it a volsam server?", "unknown"
    if answer.status_code == 410:
        return LeaseEnded(detail, 410, code)
    if answer.status_code == 503:
        return Full(detail, 503, code, float(answer.headers.get("Retry-After", 10)))
    return Refused(detail, answer.status_code, code)


def _tar_of(folder: Path) -> bytes:
    """The files of a folder, and of those in it, as one archive; hidden ones are left out."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
        for number, file in enumerate(files):
            archive.add(file, f"{number:06d}_{file.name[-60:]}", recursive=False)
    return packed.getvalue()
