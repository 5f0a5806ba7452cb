"""`/session/...`: images that a client sends to work on, kept for an hour after they were last asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import weakref
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, File, Query, UploadFile
from fastapi.responses import Response

from volsam.data.io import read_header
from volsam.data.memory import gigabytes
from volsam.data.studies import clean_name
from volsam.errors import BadInput
from volsam.server.api.files import sent_file
from volsam.server.core import Core
from volsam.server.problems import Problem
from volsam.server.store import DAY
from volsam.server.uploads import PIECE, upload_limit

EXPIRY = 3600  # seconds, and no more than that
MOST_FILES = 10_000
PREFIX = "monai-label-"


@dataclass
class Uploaded:
    """An image, a file or a folder of slices, and when it was sent and last asked for, in seconds since 1970."""

    identity: str
    path: Path
    created: float
    used: float
    expiry: int

    def info(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "name": self.identity,
            "path": self.identity,
            "image": self.path.name,
            "meta": {},
            "create_ts": int(self.created),
            "last_access_ts": int(self.used),
            "expiry": self.expiry,
        }

    def linked(self, folder: Path) -> Path:
        """The image under another name, without a copy where the file system allows it."""
        target = folder / self.path.name
        if self.path.is_dir():
            shutil.copytree(self.path, target, copy_function=_link)
        else:
            _link(self.path, target)
        return target


class Uploads:
    """All of them."""

    def __init__(self, core: Core) -> None:
        self.core = core
        for left in core.store.folder.glob(f"{PREFIX}*"):  # by a server that was killed
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(dir=core.store.folder, prefix=PREFIX))
        self._all: dict[str, Uploaded] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        core.endings.append(lambda folder=self.folder: shutil.rmtree(folder, ignore_errors=True))  # type: ignore[misc]

    def add(self, files: Sequence[UploadFile], expiry: int, unpack: bool) -> Uploaded:
        """Keep one image, in one file or in many slices."""
        self._expire()
        identity = str(uuid4())
        place = self.folder / identity
        place.mkdir(parents=True)
        try:
            path = _received(files, place, upload_limit(self.core.settings), unpack)
            read_header(path)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        now = time.time()
        upload = Uploaded(identity, path, now, now, min(expiry, EXPIRY) if expiry > 0 else EXPIRY)
        with self._lock:
            self._all[identity] = upload
        return upload

    def get(self, identity: str, *, touch: bool = True) -> Uploaded:
        """One of them; 404 if there is none, or not any more."""
        self._expire()
        with self._lock:
            found = self._all.get(identity)
            if found is None:
                raise Problem(404, f"no session is called {identity[:100]!r}, or it has expired: send the image again")
            if touch:
                found.used = time.time()
        return found

    def remove(self, identity: str) -> Uploaded:
        """Forget one."""
        found = self.get(identity)
        with self._lock:
            self._all.pop(identity, None)
        shutil.rmtree(self.folder / identity, ignore_errors=True)
        return found

    def _expire(self) -> None:
        now = time.time()
        with self._lock:
            over = [one for one in self._all.values() if now > one.used + one.expiry]
            for upload in over:
                del self._all[upload.identity]
        for upload in over:
            shutil.rmtree(self.folder / upload.identity, ignore_errors=True)


def router(app: Any) -> APIRouter:
    """`/session/...`."""
    routes = APIRouter(prefix="/session")
    uploads: Uploads = app.uploads

    @routes.put("/")
    def create(
        files: Annotated[list[UploadFile], File()],
        uncompress: bool = False,
        expiry: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        upload = uploads.add(files, expiry, uncompress)
        return {"session_id": upload.identity, "session_info": upload.info()}

    @routes.get("/{session}")
    def look(session: str, update_ts: bool = False, image: bool = False) -> Any:
        upload = uploads.get(session, touch=update_ts)
        if not image:
            return upload.info()
        return _image(upload)

    @routes.delete("/{session}")
    def remove(session: str) -> dict[str, Any]:
        upload = uploads.remove(session)
        app.desks.leave(lambda key: key[1:3] == ("session", session))
        return upload.info()

    return routes


def keep(upload: UploadFile, folder: Path) -> Path:
    """An uploaded file under a clean name of its own in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / clean_name(upload.filename or "upload")
    if path.exists():
        raise BadInput(f"two files are called {path.name}")
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file, PIECE)
    except OSError as reason:
        raise Problem(507, f"the upload cannot be kept ({reason.strerror}): make room on the server") from None
    return path


def _image(upload: Uploaded) -> Response:
    if upload.path.is_dir():
        raise BadInput("the image is a folder of slices, which cannot be sent as one file")
    return sent_file(upload.path, upload.path.name)


def _received(files: Sequence[UploadFile], place: Path, limit: int, unpack: bool) -> Path:
    if len(files) > MOST_FILES:
        raise BadInput(f"{len(files)} files were sent, at most {MOST_FILES} are taken")
    if unpack:
        if len(files) != 1:
            raise BadInput("one archive is unpacked, not several files")
        folder = place / "unpacked"
        _unpack(files[0], folder, limit)
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return found[0] if len(found) == 1 else folder
    if len(files) == 1:
        return keep(files[0], place)
    folder = place / "slices"
    for file in files:
        keep(file, folder)
    return folder


def _unpack(upload: UploadFile, folder: Path, limit: int) -> None:
    """Unpack a zip archive: plain files only, one folder deep, and no more than may be uploaded."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(upload.file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            size = sum(entry.file_size for entry in entries)
            if size > limit or len(entries) > MOST_FILES:
                raise Problem(413, f"the archive holds {gigabytes(size)} in {len(entries)} files, which is too much")
            left = limit
            for entry in entries:
                name = clean_name(PurePosixPath(entry.filename).name)
                with archive.open(entry) as source, (folder / name).open("xb") as target:
                    while piece := source.read(PIECE):
                        left -= len(piece)
                        if left < 0:
                            raise Problem(413, "the archive holds more than it says")
                        target.write(piece)
    except FileExistsError as twice:
        raise BadInput(f"the archive holds two files called {Path(str(twice.filename)).name}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        raise BadInput("the archive is damaged, or no plain zip archive") from None


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
