"""Questions on their way, and answers into the scene: what a conversation stands on.

Everything here runs in the main thread and returns at once; only `Worker` waits. `poll`, which a timer calls, takes
what has been answered into the scene.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import slicer
from VolSamLib import doubt as doubts
from VolSamLib import geometry
from VolSamLib.connection import PROGRAM, Answer, Doubt, Failure, Question, Scan, Worker
from VolSamLib.geometry import Refused
from VolSamLib.history import History, Step, changed
from VolSamLib.prompts import Part, Said
from VolSamLib.segments import Segments

ADDRESS = "http://127.0.0.1:1527"


@dataclass(frozen=True, eq=False)
class Pending:
    """A question that waits for its answer, and what had been said before it."""

    question: Question
    segments: Segments
    segment: str
    before: Said
    after: Said


class Asker:
    """A volume and its segments, and what is asked about them.

    Args:
        tell: gets every message for the user, one sentence, and whether it is an error.
    """

    def __init__(self, tell: Callable[[str, bool], None] | None = None) -> None:
        self.tell = tell or (lambda text, is_error: None)
        self.changed: Callable[[], None] = lambda: None
        """Called when what a window shows has changed: prompts, a mask, or whether something is awaited."""
        self.address = ADDRESS
        self.key = ""
        self.model = ""
        self.segment = ""
        self.quality: dict[str, float | None] = {}
        self.doubt: Doubt | None = None
        self.seconds: dict[str, float] = {}
        """Where the time of the last answer went, on the server."""
        self._segments: Segments | None = None
        self._scan: Scan | None = None
        self._written: dict[str, Part] = {}
        self._history = History()
        self._pending: dict[int, Pending] = {}
        self._worker: Worker | None = None

    @property
    def volume(self) -> Any:
        """The volume that is worked on, or None."""
        return None if self._segments is None else self._segments.volume

    @property
    def segments(self) -> Segments:
        """The segmentation that is worked on."""
        if self._segments is None:
            raise Refused("No volume is chosen: load one and choose it under Volume.")
        return self._segments

    @property
    def is_busy(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._pending)

    # --- answers -------------------------------------------------------------------------------------------------

    def poll(self, wait: float = 0.0) -> bool:
        """Take what has been answered into the scene; True if something was."""
        found = self._worker.answers(wait) if self._worker is not None else []
        for number, answer in found:
            asked = self._pending.pop(number, None)
            if asked is None:
                continue
            try:
                self._take(asked, answer)
            except Refused as refusal:
                self.tell(str(refusal), True)
            self.changed()
        return bool(found)

    def wait(self, seconds: float = 120.0) -> bool:
        """For scripts: poll until nothing is awaited; False if that did not come about in time."""
        end = time.monotonic() + seconds
        while self._pending and time.monotonic() < end:
            self.poll(0.02)
        return not self._pending

    def cancel(self) -> None:
        """Await nothing any more. What was said stays, and a new question goes another way to the server."""
        self._pending = {}
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self.changed()

    # --- inside --------------------------------------------------------------------------------------------------

    def _ask(self, turns: Any, segment: str, before: Said, after: Said, *, doubt: bool = False) -> None:
        seen, who = self._seen(), annotator()
        question = Question(self.address, self.key, seen, self.model, segment, turns, after.plane, doubt, who)
        if self._worker is None:
            self._worker = Worker()
        self._pending[self._worker.ask(question)] = Pending(question, self.segments, segment, before, after)
        self.changed()

    def _seen(self) -> Scan:
        """The volume as it is now, copied for the other thread; the copy is kept while the volume stays the same."""
        volume = self.segments.volume
        key = _key(volume)
        if self._scan is None or self._scan.key != key:
            values = geometry.voxels_of(volume).copy(order="F")
            self._scan = Scan(key, str(volume.GetName()), values, geometry.affine_of(volume))
        return self._scan

    def _take(self, asked: Pending, answer: Answer | Failure) -> None:
        segments, segment = asked.segments, asked.segment
        if isinstance(answer, Failure):
            if answer.refused and segments.has(segment) and segments.said(segment) == asked.after:
                segments.keep(segment, asked.before)
            self.tell(answer.text, True)
            return
        if not (_is_in_scene(segments.node) and _is_in_scene(segments.volume) and segments.has(segment)):
            self.tell("The volume or the segment is not there any more, so the answer was left out.", True)
            return
        if _key(segments.volume) != asked.question.scan.key:
            self.tell(
                f"{segments.volume.GetName()} has changed meanwhile, so the answer was left out: press Ask again.", True
            )
            return
        self.seconds = answer.seconds
        if not asked.question.turns:
            return
        self.quality[segment] = answer.quality
        if answer.doubt is None:
            self._write(segments, segment, (asked.before, asked.after), answer.part)
            self.tell(_described(segments.name(segment), answer), False)
            return
        self.doubt = answer.doubt
        doubts.show_bands(answer.doubt, segments, segment)
        doubts.show_map(answer.doubt, segments, segment)
        self.tell(
            f"{segments.name(segment)}: the mask varies by {answer.doubt.mean_spread:.2f} with where one clicks.", False
        )

    def _write(self, segments: Segments, segment: str, said: tuple[Said, Said], part: Part) -> None:
        before = segments.parts_written_with(segment)
        segments.write(segment, part)
        after = segments.parts_written_with(segment)
        old, new = changed(before, after)
        self._written.update(after)
        if old or said[0] != said[1]:
            self._history.add(Step(segment, said, old, new))


def annotator() -> str:
    """The name under Application Settings, User; that of the program where none is set."""
    information = getattr(slicer.app.applicationLogic(), "GetUserInformation", None)
    return (information().GetName() if information is not None else "") or PROGRAM


def _is_in_scene(node: Any) -> bool:
    return bool(slicer.mrmlScene.IsNodePresent(node))


def _key(volume: Any) -> tuple[Any, ...]:
    image = volume.GetImageData()
    stamp = image.GetMTime() if image is not None else 0
    return (volume.GetID(), stamp, geometry.affine_of(volume).tobytes() if image is not None else b"")


def _described(name: str, answer: Answer) -> str:
    if answer.part.voxels == 0:
        return f"{name}: the model finds nothing there; place another point, or a box around the object."
    quality = "" if answer.quality is None else f", expected Dice {answer.quality:.2f}"
    return f"{name}: {answer.part.voxels} voxels{quality}."
