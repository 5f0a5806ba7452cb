"""Saved sessions: a folder each, written after every acknowledged action, so that a killed server loses nothing.

SESSIONS/ID/session.json     the session as `Session.save` writes it, and what the server adds under "server"
            volume.npy       an uploaded array, or
            upload/NAME      an uploaded file
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

from volsam.errors import BadFile
from volsam.server.problems import Problem

RECORD = "session.json"
ID = re.compile(r"[0-9a-f]{32}")
DAY = 24 * 3600.0
# What an upload is called while it comes.
UNFINISHED = "upload-"


class Store:
    """All saved sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as reason:
            raise BadFile(f"cannot make the folder of sessions {folder}: {reason.strerror}") from None

    def new(self) -> str:
        """The id of a new session; nobody can guess it. Its folder is there."""
        name = uuid4().hex
        self.place(name).mkdir(mode=0o700)
        return name

    def place(self, name: str) -> Path:
        """The folder of a session."""
        if not ID.fullmatch(name):
            raise Problem(404, "no saved session has this id: it is 32 letters and digits, see /api/v1/sessions")
        return self.folder / name

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a session, whole or not at all."""
        target = self.place(name) / RECORD
        unfinished = target.with_suffix(".part")
        try:
            unfinished.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
            unfinished.replace(target)
        except OSError as reason:
            raise Problem(507, f"the session cannot be saved ({reason.strerror}): make room on the server") from None

    def read(self, name: str) -> dict[str, Any]:
        """The record of a session."""
        try:
            record = json.loads((self.place(name) / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Problem(404, f"no saved session has the id {name}") from None
        except (OSError, ValueError):
            raise BadFile(f"the saved session {name} is damaged") from None
        if not isinstance(record, dict) or not isinstance(record.get("server"), dict):
            raise BadFile(f"the saved session {name} is damaged: it was not saved by a server")
        return record

    def forget(self, name: str) -> None:
        """Remove a session and what was uploaded for it."""
        shutil.rmtree(self.place(name), ignore_errors=True)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ids and records, newest first; damaged ones are left out."""
        found = []
        for place in self.folder.iterdir():
            if ID.fullmatch(place.name) and (place / RECORD).is_file():
                found.append(((place / RECORD).stat().st_mtime, place.name))
        for _, name in sorted(found, reverse=True):
            try:
                yield name, self.read(name)
            except (BadFile, Problem):
                continue

    def prune(self, days: float) -> int:
        """Remove uploads, with their sessions, that were not touched for some days, and what a killed upload left."""
        removed = 0
        for place in list(self.folder.iterdir()):
            if place.name.startswith(UNFINISHED):
                if time() - place.stat().st_mtime > DAY:
                    shutil.rmtree(place, ignore_errors=True)
                continue
            if not ID.fullmatch(place.name):
                continue
            record = place / RECORD
            try:
                age = time() - (record if record.is_file() else place).stat().st_mtime
            except OSError:
                continue
            uploaded = (place / "upload").is_dir() or (place / "volume.npy").is_file()
            left_over = not record.is_file() and age > DAY
            if left_over or (days and uploaded and age > days * DAY):
                shutil.rmtree(place, ignore_errors=True)
                removed += 1
        return removed


def when(path: Path | os.DirEntry[str]) -> str:
    """When a file was last written, ISO 8601, UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
