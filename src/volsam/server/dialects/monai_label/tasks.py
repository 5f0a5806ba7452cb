"""Work that goes on beside requests: one piece of a kind at a time, with its last lines, and an end to be asked for."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from volsam.errors import BadInput, VolsamError
from volsam.server.problems import Problem

log = logging.getLogger(__name__)

Kind = Literal["train", "batch_infer"]
State = Literal["SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"]
LINES = 20
# Finished tasks that are remembered, of a kind.
MOST = 100
# Seconds that a process gets to end by itself.
GRACE = 5.0


class Stopped(Exception):
    """Raised inside work whose end was asked for."""


class Task:
    """One piece of work."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.identity = str(uuid4())
        self.request = dict(request)
        self.state: State = "SUBMITTED"
        self.began = _now()
        self.ended: str | None = None
        self.lines: deque[str] = deque(maxlen=LINES)
        self.result: dict[str, Any] = {}
        self.stop_asked = threading.Event()
        self.finished = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def say(self, line: str) -> None:
        """Add a line to what is told of the task; the end is noticed here."""
        self.lines.append(line)
        if self.stop_asked.is_set():
            raise Stopped

    def command(self, words: Sequence[str], log_file: Path) -> None:
        """Run a command to its end, its output being the lines; an error if it fails."""
        with log_file.open("a", encoding="utf-8") as kept:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that whatever it starts ends with it
            )
            self._process = process
            try:
                for line in process.stdout or ():
                    kept.write(line)
                    kept.flush()
                    if line.strip():
                        self.say(line.rstrip()[:500])
                code = process.wait()
            finally:
                _end(process)
                if process.stdout is not None:
                    process.stdout.close()
                self._process = None
        if self.stop_asked.is_set():
            raise Stopped
        if code:
            raise BadInput(f"it ended with status {code}")

    def stop(self) -> None:
        """Ask for the end, and wait for it."""
        self.stop_asked.set()
        if self._process is not None:
            _end(self._process)
        self.finished.wait(2 * GRACE)

    def record(self) -> dict[str, Any]:
        """As clients read it."""
        ended = {} if self.ended is None else {"end_ts": self.ended}
        return {
            "id": self.identity,
            "status": self.state,
            "request": self.request,
            "start_ts": self.began,
            **ended,
            "details": list(self.lines) or [self.state],
            **({"result": self.result} if self.result else {}),
        }


class Tasks:
    """All work of a server."""

    def __init__(self) -> None:
        self._all: dict[Kind, list[Task]] = {"train": [], "batch_infer": []}
        self._lock = threading.Lock()

    def start(self, kind: Kind, request: Mapping[str, Any], work: Callable[[Task], None], *, wait: bool) -> Task:
        """Begin a piece of work; 429 while another of its kind goes on."""
        task = Task(request)
        with self._lock:
            if self._running(kind) is not None:
                raise Problem(429, f"{kind} goes on already: wait for it, or stop it first", Retry_After="10")
            self._all[kind] = [*self._all[kind][-MOST:], task]
        thread = threading.Thread(target=_carry_out, args=(task, work), name=f"volsam-{kind}", daemon=True)
        thread.start()
        if wait:
            task.finished.wait()
        return task

    def running(self, kind: Kind) -> Task:
        """What goes on now; 404 if nothing does."""
        with self._lock:
            found = self._running(kind)
        if found is None:
            raise Problem(404, f"no {kind} is going on")
        return found

    def last(self, kind: Kind) -> Task:
        """What goes on, or went on last; 404 if nothing ever did."""
        with self._lock:
            if not self._all[kind]:
                raise Problem(404, f"no {kind} was ever started on this server")
            return self._all[kind][-1]

    def all(self, kind: Kind) -> list[Task]:
        """Everything that is remembered, oldest first."""
        self.last(kind)
        with self._lock:
            return list(self._all[kind])

    def shut_down(self) -> None:
        """End all work."""
        for kind in self._all:
            found = self._running(kind)
            if found is not None:
                found.stop()

    def _running(self, kind: Kind) -> Task | None:
        return next((task for task in self._all[kind] if not task.finished.is_set()), None)


def _carry_out(task: Task, work: Callable[[Task], None]) -> None:
    task.state = "RUNNING"
    try:
        work(task)
        state: State = "DONE"
    except Stopped:
        state = "STOPPED"
    except VolsamError as error:
        task.lines.append(f"error: {' '.join(str(error).split())}")
        state = "ERROR"
    except Exception as error:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        task.lines.append(f"error: unexpected {type(error).__name__}; the server's log has more")
        state = "ERROR"
    task.ended = _now()
    task.state = state
    task.finished.set()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and whatever it started."""
    for name in ("SIGTERM", "SIGKILL"):
        if process.poll() is not None:
            return
        try:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, getattr(signal, name))
            else:  # Windows
                process.kill()
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
