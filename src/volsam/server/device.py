"""One device, many sessions: networks run one step at a time, in a thread of their own, in the order they were asked.

A thread of its own, because the threads that OpenMP keeps belong to the one that calls it: asked from forty threads, a
CPU would hold forty teams, and forty sets of the buffers that its kernels keep. A session's own lock is always taken
before the device is asked, never the other way round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar
from weakref import ref

from volsam.geometry import Grid
from volsam.inference.model import Decoded, InteractiveModel, Logits
from volsam.inference.session import Model
from volsam.inference.slices import SliceModel
from volsam.prompts import GridPrompts
from volsam.server.encodings import Encoded, Encodings
from volsam.volume import Volume

Result = TypeVar("Result")


class Clock:
    """Seconds of the named steps of one action."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = perf_counter()

    def add(self, step: str, seconds: float) -> None:
        """A step that comes twice adds up."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a step."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.add(step, perf_counter() - begin)

    def total(self) -> dict[str, float]:
        """All steps, and the time since the clock was made."""
        return {**self.seconds, "total": perf_counter() - self._begin}


class Device:
    """Runs one function at a time; callers wait in a row."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="volsam-device")
        self._local = threading.local()
        self._waiting = 0
        self._counting = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many callers wait or are served."""
        return self._waiting

    @contextmanager
    def timed(self, clock: Clock) -> Iterator[None]:
        """Steps that this thread asks for meanwhile go onto `clock`."""
        self._local.clock = clock
        try:
            yield
        finally:
            self._local.clock = None

    def run(self, step: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Wait for the device, then call; the caller's clock gets the waiting and the step."""
        asked = perf_counter()

        def work() -> tuple[Result, float, float]:
            begin = perf_counter()
            result = function(*arguments)
            return result, begin, perf_counter()

        self._count(1)
        try:
            result, begin, end = self._worker.submit(work).result()
        finally:
            self._count(-1)
        clock: Clock | None = getattr(self._local, "clock", None)
        if clock is not None:
            clock.add("wait", begin - asked)
            clock.add(step, end - begin)
        return result

    def close(self) -> None:
        """Finish what has been asked for."""
        self._worker.shutdown(wait=True)

    def _count(self, change: int) -> None:
        with self._counting:
            self._waiting += change


def on_device(model: Model, device: Device, encodings: Encodings) -> Model:
    """The same model, whose every step waits for the device, and whose encodings are kept among all others."""
    if isinstance(model, SliceModel):
        return _Slices(model, device, encodings)
    return _Volumes(model, device, encodings)


class _Volumes:
    def __init__(self, model: InteractiveModel, device: Device, encodings: Encodings) -> None:
        self._model = model
        self._device = device
        self._encodings = encodings
        self.name = model.name
        self.edge = model.edge
        self.step = model.step
        self.spacing = model.spacing
        self.axes = model.axes
        self.takes = model.takes

    def encode(self, volume: Volume, roi: Grid) -> Encoded:
        return self._encodings.new(lambda: self._device.run("encode", self._model.encode, volume, roi))

    def decode(self, encoded: Encoded, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        def decoded() -> Decoded:
            return self._device.run("decode", self._model.decode, self._encodings.of(encoded), prompts, previous)

        def logits() -> Logits:
            # Work of the network, too. It needs the encoding: where that was given away, so was what is left to do.
            draft = left() or decoded()
            return self._device.run("decode", lambda: draft.logits)

        found = decoded()
        if not found.pending:
            return found
        self._encodings.attach(encoded, found)
        left = ref(found)
        return Decoded(found.low_res, logits, found.part, found.quality)

    def decode_many(self, encoded: Encoded, prompts: Sequence[GridPrompts], previous: Logits | None) -> Logits:
        return self._device.run("decode", self._model.decode_many, self._encodings.of(encoded), prompts, previous)


class _Slices(SliceModel):
    def __init__(self, model: SliceModel, device: Device, encodings: Encodings) -> None:
        self.__dict__.update(vars(model))
        self._model = model
        self._queue = device
        self._encodings = encodings
        self.reach = model.reach

    def prepare(self, volume: Volume) -> Any:
        return self._model.prepare(volume)

    def encode_slice(self, *arguments: Any) -> Any:
        return self._encodings.new(lambda: self._queue.run("encode", self._model.encode_slice, *arguments))

    def decode_slice(self, encoded: Any, *arguments: Any, **named: Any) -> Any:
        found = self._encodings.of(encoded)
        return self._queue.run("decode", lambda: self._model.decode_slice(found, *arguments, **named))
