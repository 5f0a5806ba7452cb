"""Questions to a server, answered in a thread of their own, so that the window never waits.

A question holds all that its answer follows from: the volume, the model, and every turn about one segment. How the
server gets there is found here: it is told what it has not heard yet, asked to forget what was taken back, or, after it
was lost, told everything again. Nothing in this file touches the scene.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from volsam_client import Full, LeaseEnded, Refused, Server, ServerError, Unreachable

from VolSamLib.geometry import frame_for
from VolSamLib.prompts import Part, Turn, Voxel, as_voxel

TEST = 10.0  # seconds that a test of the connection waits
KEPT = "Your points are kept."
PROGRAM = "3D Slicer"
"""Who annotates where nobody has given a name."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume as it was at one moment: values (i, j, k) and affine to mm RAS+; equal keys mean equal volumes."""

    key: tuple[Any, ...]
    name: str
    values: NDArray[Any]
    affine: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Question:
    """What is the mask of `segment` after `turns`? With `doubt`, also how sure the model is."""

    address: str
    key: str
    scan: Scan
    model: str
    segment: str = ""
    turns: tuple[Turn, ...] = ()
    plane: str | None = None
    doubt: bool = False
    annotator: str = PROGRAM


@dataclass(frozen=True, eq=False)
class Doubt:
    """bands: 0 to 9 in a box of voxels from `low`; spread (i, j, k): standard deviation of the probability."""

    bands: NDArray[np.uint8]
    low: tuple[int, int, int]
    spread: NDArray[np.float32]
    mean_spread: float
    next_click: Voxel | None
    """In voxels; None where the model is sure everywhere."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The mask, the Dice that the model expects of it, and where the server's time went."""

    part: Part = field(default_factory=Part)
    quality: float | None = None
    doubt: Doubt | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """One sentence for the user; `refused` if the last turn itself is what was wrong."""

    text: str
    refused: bool = False


class Worker:
    """Answers questions in the order in which they were asked."""

    def __init__(self) -> None:
        self._questions: queue.Queue[tuple[int, Question] | None] = queue.Queue()
        self._answers: queue.Queue[tuple[int, Answer | Failure]] = queue.Queue()
        self._asked = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="VolSam")
        self._thread.start()

    def ask(self, question: Question) -> int:
        """Put a question in the row; returns the number under which it will be answered."""
        self._asked += 1
        self._questions.put((self._asked, question))
        return self._asked

    def answers(self, wait: float = 0.0) -> list[tuple[int, Answer | Failure]]:
        """What has been answered since the last call; waits so many seconds for the first."""
        found: list[tuple[int, Answer | Failure]] = []
        with suppress(queue.Empty):
            found.append(self._answers.get(timeout=wait) if wait else self._answers.get_nowait())
            while True:
                found.append(self._answers.get_nowait())
        return found

    def stop(self) -> None:
        """Give the place on the server back, when what is going on is done; does not wait for it."""
        self._questions.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the end, after `stop`."""
        self._thread.join(seconds)

    def _run(self) -> None:
        talk = Talk()
        for number, question in iter(self._questions.get, None):
            try:
                self._answers.put((number, talk.answer(question)))
            except Exception as error:
                talk.forget()
                self._answers.put((number, failure(error, said=talk.is_saying and bool(question.turns))))
        talk.close()


class Talk:
    """The one session that a worker has open; another volume, model of slices or server opens another."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._place: tuple[str, str] = ("", "")
        self._session: Any = None
        self._scan: tuple[Any, ...] = ()
        self._frame: str | None = None
        self._model = ""
        self.is_saying = False
        """Whether the last question came as far as the prompts themselves."""
        self._standing: dict[str, list[tuple[Turn, list[int]]]] = {}

    def answer(self, question: Question) -> Answer:
        """All of it; once more from the beginning if the server has forgotten the session."""
        fresh = self._session is None
        try:
            return self._answered(question)
        except (LeaseEnded, Refused) as error:
            if fresh or not (isinstance(error, LeaseEnded) or error.status == 404):
                raise
            self.forget()
            return self._answered(question)

    def forget(self) -> None:
        """Begin anew with the next question."""
        self._session = None
        self._standing = {}

    def close(self) -> None:
        """Give the place back."""
        self.forget()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _answered(self, question: Question) -> Answer:
        self.is_saying = False
        self._open(question)
        self.is_saying = True
        if not question.turns:
            return Answer(seconds=dict(self._session.seconds))
        seconds = self._say(question.segment, question.turns)
        doubt = self._doubt() if question.doubt else None
        return Answer(Part.around(self._session.mask), self._session.quality, doubt, seconds)

    # --- the session ---------------------------------------------------------------------------------------------

    def _open(self, question: Question) -> None:
        """A session about the volume, with the model; turned, if a model of slices has to look at another plane."""
        place = (question.address, question.key)
        if self._server is None or place != self._place:
            self.close()
            self._server = Server(question.address, question.key or None)
            self._place = place
        if self._session is None or self._scan != question.scan.key:
            self._send(question, None)
        self._use(question.model)
        looks_at = self._session.plane
        if self._frame is not None and (looks_at is None or question.plane not in (None, self._frame)):
            self._send(question, None)
            looks_at = self._session.plane
        if self._frame is None and looks_at is not None and question.plane not in (None, looks_at):
            self._send(question, question.plane)

    def _send(self, question: Question, frame: str | None) -> None:
        scan, more = question.scan, {"model": question.model} if question.model else {}
        affine = scan.affine if frame is None else frame_for(scan.affine, frame)
        assert self._server is not None
        self.forget()
        self._session = self._server.send(
            scan.values, affine, scan.name or "volume", annotator=question.annotator, **more
        )
        self._scan, self._model, self._frame = scan.key, question.model, frame

    def _use(self, model: str) -> None:
        """Another model; what was said is said again when it is next asked about."""
        if model == self._model:
            return
        for segment in self._standing:
            self._session.select(segment)
            self._session.reset()
        self._standing = {}
        self._session.use(model)
        self._model = model

    def _say(self, segment: str, turns: tuple[Turn, ...]) -> dict[str, float]:
        """Have exactly these turns stand; returns the seconds of all that was done."""
        session = self._session
        if session.current != segment:
            session.select(segment)
        standing = self._standing.setdefault(segment, [])
        stays = [turn for turn, _ in standing]
        done, gone = _compared(stays, turns)
        spent: list[dict[str, float]] = []
        if standing and len(gone) == len(standing):
            session.reset()
            spent.append(session.seconds)
        else:
            for number in [number for place in reversed(gone) for number in standing[place][1]]:
                session.remove(number)
                spent.append(session.seconds)
        for place in reversed(gone):
            del standing[place]
        for turn in turns[done:]:
            session.add_all([prompt.said(session) for prompt in turn])
            standing.append((turn, session.added))
            spent.append(session.seconds)
        return {step: sum(one.get(step, 0.0) for one in spent) for one in spent for step in one}

    def _doubt(self) -> Doubt:
        found = self._session.uncertainty()
        place = None if found.next_click is None else as_voxel(self._session.to_voxels(found.next_click))
        return Doubt(found.bands, found.low, self._session.spread(), found.spread, place)


@dataclass(frozen=True)
class Found:
    """What a server says of itself: its version, and its models by name, the default first."""

    version: str
    models: dict[str, str]
    """Name and what it is."""

    @property
    def text(self) -> str:
        """One sentence for the user."""
        return f"Connected to volsam {self.version}; models: {', '.join(self.models)}."


def look(address: str, key: str) -> Found:
    """Test a connection. Raises `Failed` with one sentence for the user."""
    try:
        server = Server(address, key or None)
        try:
            version = server.json("GET", "/version", timeout=TEST)
            found = server.json("GET", "/models", timeout=TEST)
        finally:
            server.close()
        models = sorted(found["models"], key=lambda model: model["name"] != found["default"])
        told = {model["name"]: f"{model['summary']} (licence: {model['licence']})" for model in models}
        return Found(str(version["version"]), told)
    except Exception as error:
        raise Failed(
            failure(error).text.replace(" Your points are kept.", "").replace(", then press Ask again", "")
        ) from error


class Errand:
    """One call in a thread of its own; `poll` hands what came of it to a function in the main thread."""

    def __init__(self, call: Callable[[], Any], done: Callable[[Any, str | None], None]) -> None:
        self._done = done
        self._result: Any = None
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True, name="VolSam-errand")
        self._thread.start()

    def poll(self) -> bool:
        """Whether it has come back; if so, `done` has been called with the result, or with one sentence."""
        if self._thread.is_alive():
            return False
        self._done(self._result, self._error)
        return True

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._result = call()
        except Exception as error:
            self._error = str(error) or type(error).__name__


class Failed(Exception):
    """One sentence for the user."""


def failure(error: Exception, *, said: bool = False) -> Failure:
    """What went wrong, and what to do, in one sentence; `said` if it may be the last turn that is wrong."""
    if isinstance(error, Unreachable) and str(error).startswith("http"):
        return Failure(f"The server at {error}: start it or check the address, then press Ask again. {KEPT}")
    if isinstance(error, Unreachable):
        return Failure(f"{_begun(str(error))}: start it or check the address, then press Ask again. {KEPT}")
    if isinstance(error, Full):
        return Failure(f"The server is full ({error}): press Ask again in {error.retry_after:.0f} seconds. {KEPT}")
    if isinstance(error, Refused):
        return _refusal(error, said)
    if isinstance(error, ServerError):
        return Failure(f"{_begun(str(error))}. {KEPT}")
    if isinstance(error, MemoryError):
        return Failure(f"Slicer has not enough memory: crop the volume with the module Crop Volume. {KEPT}")
    if isinstance(error, (KeyError, ValueError, TypeError)):
        return Failure(f"The answer is not that of a volsam server ({error!r}): check the address. {KEPT}")
    return Failure(f"The question could not be asked ({type(error).__name__}: {error}): press Ask again. {KEPT}")


def _refusal(error: Refused, said: bool) -> Failure:
    text = _begun(str(error))
    if error.code == "key":
        return Failure(f"The server wants a key: enter the right one under Server. {KEPT}")
    if error.code == "unknown":
        return Failure(f"{text} Check the address. {KEPT}")
    if error.code == "too_large" or error.status == 413:
        return Failure(f"{text}: crop the volume with the module Crop Volume, or use a larger server. {KEPT}")
    if error.status >= 500:
        return Failure(f"The server failed ({error}): look into its log, then press Ask again. {KEPT}")
    return Failure(text, refused=said and error.status == 400)


def _begun(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".")


def _compared(standing: Sequence[Turn], wanted: Sequence[Turn]) -> tuple[int, list[int]]:
    """How many of the wanted turns stand already in this order, and which of those that stand are in the way."""
    done, gone = 0, []
    for place, turn in enumerate(standing):
        if done < len(wanted) and turn == wanted[done]:
            done += 1
        else:
            gone.append(place)
    return done, gone
