"""What the API and every dialect speak to: leases, the conversations they have open, models, and the disk.

A dialect needs little more than

    lease = core.claim()
    talk = core.open_volume(lease, volume)                  # or open_study, open_file
    with core.using(token) as lease, core.talk(lease) as talk:
        outcome = talk.add([Click(...)])                    # outcome.changes: boxes and masks
    core.release(token)

All of it blocks, so it belongs in plain `def` endpoints, which FastAPI runs beside its event loop.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from volsam.data.memory import give_back
from volsam.data.studies import LABELS, clean_name
from volsam.errors import BadFile, BadInput
from volsam.inference.session import Model
from volsam.server.archives import ENDING, is_archive, unpack
from volsam.server.conversation import Conversation, origin_of
from volsam.server.device import Device
from volsam.server.encodings import Encodings
from volsam.server.leases import RETRY_AFTER, Lease, Leases
from volsam.server.metrics import Metrics
from volsam.server.problems import Problem
from volsam.server.ready import Ready, label_path, objects_of
from volsam.server.settings import Settings
from volsam.server.shelf import Shelf
from volsam.server.store import Store
from volsam.server.volumes import Origin, keep_array, load, warned
from volsam.volume import Volume

log = logging.getLogger(__name__)


class Core:
    """The server without HTTP."""

    def __init__(self, settings: Settings, model: Model | None = None) -> None:
        self.settings = settings
        self.device = Device()
        self.encodings = Encodings(settings.encodings)
        self.models = Shelf(
            settings.models, self.device, self.encodings, settings.device, model, licences=settings.licences
        )
        self.store = Store(settings.sessions)
        self.leases = Leases(
            settings.max_leases, settings.idle_timeout, settings.liveness_timeout, settings.max_waiting
        )
        self.metrics = Metrics(self)
        self.began = monotonic()
        self.closing = False
        # What has to end before the server does, of dialects.
        self.endings: list[Callable[[], None]] = []
        self._resuming: set[str] = set()
        self._ahead: tuple[Origin, Volume, list[str]] | None = None
        self._untidy = False
        self._lock = threading.Lock()

    # --- leases --------------------------------------------------------------------------------------------------

    def claim(self) -> Lease:
        """A new lease; 503 if all are taken."""
        if self.closing:
            raise Problem(503, "the server is shutting down: try again later", Retry_After=RETRY_AFTER)
        self.reap()
        return self.leases.claim()

    def using(self, token: str | None) -> AbstractContextManager[Lease]:
        """The lease of a request that acts, which cannot end meanwhile; 410 if there is none."""
        if self.closing:
            raise Problem(503, "the server is shutting down: try again later", Retry_After=RETRY_AFTER)
        return self.leases.using(token)

    def release(self, token: str | None) -> bool:
        """End a lease; False if there was none. Its session stays saved."""
        lease = self.leases.remove(token)
        if lease is None:
            return False
        self.close(lease)
        return True

    def reap(self) -> None:
        """End the leases whose time is over."""
        over = self.leases.ended()
        for lease in over:
            self.close(lease)
        if over:
            self.metrics.expired(len(over))
            log.info("%d leases have ended by a timeout", len(over))

    def tidy(self) -> None:
        """What is done every few seconds: end leases, and give back the memory of sessions that were closed."""
        self.reap()
        if self._untidy:
            self._untidy = False
            give_back()

    def shut_down(self) -> None:
        """Take no more, finish what is going on; all that was acknowledged is on disk."""
        self.closing = True
        for end in self.endings:
            end()
        for lease in self.leases:
            self.close(lease)
        self.device.close()

    # --- conversations -------------------------------------------------------------------------------------------

    @contextmanager
    def talk(self, lease: Lease) -> Iterator[Conversation]:
        """The conversation that a lease has open; 409 if there is none."""
        if lease.conversation is None:
            raise Problem(409, "no volume is open: open one first")
        yield lease.conversation

    def open_study(
        self,
        lease: Lease,
        study: str,
        *,
        frame: int | None = None,
        channel: int = 0,
        model: str | None = None,
        name: str = "object",
        annotator: str | None = None,
        labels: str | Path | None = None,
    ) -> Conversation:
        """Start a conversation about a volume in the folder of studies.

        labels: what is there already is opened for correction: the tag under which it was saved, or a file.
        """
        origin = self._study(study, frame, channel)
        volume, notes = self._read(origin, Path())
        ready: list[Ready] = []
        if isinstance(labels, Path):
            ready = objects_of(labels, volume.grid)
        elif labels is not None and self.settings.studies is not None:
            folder = self.settings.studies / LABELS / labels
            ready = objects_of(label_path(self.settings.studies, study, labels), volume.grid, folder)
        identity = self.store.new()
        return self._start(lease, identity, volume, origin, model, name, annotator, notes, ready)

    def open_file(
        self,
        lease: Lease,
        upload: Path,
        file_name: str,
        *,
        frame: int | None = None,
        channel: int = 0,
        model: str | None = None,
        name: str = "object",
        annotator: str | None = None,
    ) -> Conversation:
        """Start a conversation about an uploaded file, or a DICOM series: its folder, or a tar archive."""
        identity = self.store.new()
        place = self.store.place(identity)
        try:
            (place / "upload").mkdir()
            if upload.is_dir():
                origin = Origin("series", clean_name(file_name), frame, channel)
                shutil.move(upload, place / "upload" / origin.path)
            elif is_archive(upload):
                origin = Origin("series", clean_name(file_name.removesuffix(ENDING)), frame, channel)
                unpack(upload, place / "upload" / origin.path)
            else:
                origin = Origin("file", clean_name(file_name), frame, channel)
                shutil.move(upload, place / "upload" / origin.path)
            volume, notes = self._read(origin, place)
            return self._start(lease, identity, volume, origin, model, name, annotator, notes)
        except BaseException:
            self.store.forget(identity)
            raise

    def read_ahead(self, study: str, *, frame: int | None = None, channel: int = 0) -> None:
        """Read a study before anyone opens it, so that a bad one is refused now; the first to open it gets it."""
        origin = self._study(study, frame, channel)
        self._ahead = (origin, *self._read(origin, Path()))

    def _study(self, study: str, frame: int | None, channel: int) -> Origin:
        return Origin("study", study, frame, channel, root=self._root)

    @property
    def _root(self) -> str | None:
        return None if self.settings.studies is None else str(self.settings.studies.resolve())

    def _read(self, origin: Origin, folder: Path) -> tuple[Volume, list[str]]:
        """The volume of a session, and what was warned of meanwhile."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == origin:
            return ahead[1], ahead[2]
        with warned() as notes:
            volume = load(origin, self.settings.studies, folder, self.settings.linked)
        return volume, notes

    def open_volume(
        self,
        lease: Lease,
        volume: Volume,
        *,
        model: str | None = None,
        name: str = "object",
        annotator: str | None = None,
        notes: Sequence[str] = (),
    ) -> Conversation:
        """Start a conversation about a volume of one channel that came as an array; it is kept on disk."""
        identity = self.store.new()
        try:
            keep_array(volume, self.store.place(identity))
            origin = Origin("array", volume.name, affine=volume.grid.affine.tolist())
            return self._start(lease, identity, volume, origin, model, name, annotator, notes)
        except BaseException:
            self.store.forget(identity)
            raise

    def resume(self, lease: Lease, identity: str, *, take: bool = False, model: str | None = None) -> Conversation:
        """Go on with a saved session; with `take`, even if another lease has it open.

        model: to answer its prompts anew with, if not the one that it was made with.
        """
        with self._alone_with(identity):
            for other in self.leases:
                held = other.conversation
                if other is lease or held is None or held.identity != identity:
                    continue
                if not take:
                    raise Problem(409, "the session is open under another lease: resume it with take, or wait")
                self.close(other)
            held = lease.conversation
            if held is not None and held.identity == identity:
                self.close(lease)  # which waits for what goes on in it
            record = self.store.read(identity)
            chosen = self._chosen(record) if model is None else model
            try:
                talk = self._replayed(identity, record, chosen)
            except Problem as problem:
                if problem.status != 413 or lease.conversation is None:
                    raise
                self.close(lease)  # there is no room for both
                talk = self._replayed(identity, record, chosen)
            self.close(lease)  # not before: what cannot be gone on with must not end what is open
            with lease.lock:
                lease.conversation = talk
        return talk

    @contextmanager
    def _alone_with(self, identity: str) -> Iterator[None]:
        """Nobody else resumes the same session meanwhile."""
        with self._lock:
            if identity in self._resuming:
                raise Problem(409, "the session is being resumed by another lease")
            self._resuming.add(identity)
        try:
            yield
        finally:
            self._resuming.discard(identity)

    def _chosen(self, record: Mapping[str, Any]) -> str:
        """The model that a session was made with; another one would change every mask in it."""
        name = str(record["server"].get("model", record.get("model")))
        found = self.models.called(name)
        if found is None:
            raise Problem(
                409,
                f"the session was made with the model {name}, which this server does not have: start it with "
                f"--models {name}, or name another one, which makes all masks anew",
                code="model",
                facts={"model": name, "default": self.models.default},
            )
        return found

    def _at_hand(self, origin: Origin) -> bool:
        """Whether a session is of this folder of studies: it says so, or where it was made is no more."""
        if origin.root in (None, self._root):
            return True
        try:  # a link may be left where it was
            return str(Path(origin.root).resolve()) == self._root or not Path(origin.root).is_dir()
        except OSError:
            return False

    def _replayed(self, identity: str, record: dict[str, Any], chosen: str) -> Conversation:
        try:
            origin = origin_of(record)
            if not self._at_hand(origin):
                raise Problem(
                    409,
                    f"the session is of {origin.path} in another folder of studies: start a server there",
                    code="elsewhere",
                )
            model = self.models[chosen]
            volume, notes = self._read(origin, self.store.place(identity))
            return Conversation.resume(identity, record, chosen, model, volume, self.store, self.device, notes=notes)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise BadFile(f"the saved session {identity} is damaged: what is in it does not make a session") from None

    def close(self, lease: Lease, *, forget: bool = False) -> str | None:
        """Close what a lease has open; returns its id. It stays saved unless it is to be forgotten."""
        with lease.lock:
            talk, lease.conversation = lease.conversation, None
        if talk is None:
            return None
        talk.close()
        self._untidy = True
        if forget:
            self.store.forget(talk.identity)
        return talk.identity

    def _start(
        self,
        lease: Lease,
        identity: str,
        volume: Volume,
        origin: Origin,
        model: str | None,
        name: str,
        annotator: str | None,
        notes: Sequence[str] = (),
        ready: Sequence[Ready] = (),
    ) -> Conversation:
        try:
            if not name.strip():
                raise BadInput("an object needs a name, got an empty one")
            talk = Conversation.start(
                identity,
                model or self.models.default,
                self.models[model],
                volume,
                origin,
                self.store,
                self.device,
                name=name,
                annotator=annotator,
                notes=notes,
            )
            if ready:
                talk.take_up(ready)
        except BaseException:
            self.store.forget(identity)
            raise
        self.close(lease)
        with lease.lock:
            lease.conversation = talk
        return talk

    def saved(self, study: str | None = None) -> Iterator[dict[str, Any]]:
        """Saved sessions, newest first; of one study if it is named."""
        opened = {lease.conversation.identity for lease in self.leases if lease.conversation is not None}
        for identity, record in self.store:
            kept = record["server"]
            try:
                origin = origin_of(record)
            except (LookupError, TypeError):
                continue
            if not self._at_hand(origin):
                continue
            path = origin.path if origin.kind == "study" else None
            if study is not None and path != study:
                continue
            yield {
                "id": identity,
                "study": path,
                "name": str(kept.get("name", "")),
                "annotator": kept.get("annotator"),
                "model": str(kept.get("model", record.get("model"))),
                "modified": str(kept.get("modified", "")),
                "objects": [str(item.get("name")) for item in record.get("objects", [])],
                "prompts": sum(
                    entry.get("op") == "add" for item in record.get("objects", []) for entry in item.get("log", [])
                ),
                "open": identity in opened,
            }
