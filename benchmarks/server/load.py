"""Does a server that many use at once lose, mix up or leak anything? Prints the answer and writes results.md.

    python benchmarks/server/load.py --seconds 300

Sessions click, undo and redo without a pause. In the middle the server is killed, started again, and every session
resumed. Afterwards each conversation is held again with a session alone, and every single mask compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from serving import HERE, Serving, ball, beside, percentile
from volsam_client import Click, Server, ServerError

from measure import busy, machine, table

SHAPE, SPACING, RADIUS = (192, 192, 120), 1.0, 20
# Actions and how often they are taken.
ACTIONS, SHARES = ("click", "undo", "redo", "reset"), (0.8, 0.1, 0.07, 0.03)


@dataclass(frozen=True)
class Step:
    """An action; or, as "resumed", how many entries the log had then."""

    kind: str
    place: tuple[float, float, float] | None = None
    sign: bool = True
    entries: int = 0


@dataclass
class Annotator:
    """One session: what was acknowledged and the mask that came with it, and what was asked last."""

    number: int
    session: Any = None
    identity: str = ""
    steps: list[Step] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    asked: Step | None = None
    unanswered: Step | None = None
    seconds: list[float] = field(default_factory=list)
    lost: str = ""

    def work(self, address: str, until: threading.Event, dying: threading.Event) -> None:
        """Act until it is time, or the server is gone, which it may be only when it is `dying`."""
        rng = np.random.default_rng((self.number, len(self.steps)))
        with Server(address) as server:
            self.session = server.resume(self.identity) if self.identity else server.open("ct.nii.gz")
            self.identity = self.session.id
            if self.steps:
                self.unanswered = self.asked
                log = server.json("GET", "/session/prompts")["log"]
                self._keep(Step("resumed", entries=len(log)))
            while not until.is_set():
                try:
                    self._act(rng)
                except ServerError as error:
                    if not dying.is_set():
                        self.lost = str(error)
                    return

    def _act(self, rng: np.random.Generator) -> None:
        kind = "click" if not self.steps else str(rng.choice(ACTIONS, p=SHARES))
        place = None
        if kind == "click":
            x, y, z = self.session.to_world(np.array(SHAPE) / 2 + rng.normal(0, RADIUS * 0.7, 3)).tolist()
            place = (x, y, z)
        self.asked = Step(kind, place, bool(rng.random() < 0.7))
        begin = time.perf_counter()
        if place is not None:
            self.session.add(Click(place, self.asked.sign))
        else:
            getattr(self.session, kind)()
        self.seconds.append(time.perf_counter() - begin)
        self._keep(self.asked)
        self.asked = None

    def _keep(self, step: Step) -> None:
        self.steps.append(step)
        self.sums.append(_sum(self.session.mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="how long they click in all (300)")
    parser.add_argument("--sessions", type=int, default=8, help="how many at once (8)")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="where the table goes")
    options = parser.parse_args()
    print(machine(), flush=True)
    notice = busy()
    import volsam

    with tempfile.TemporaryDirectory(prefix="volsam-load-") as name:
        folder = Path(name)
        volume = volsam.Volume(ball(SHAPE, RADIUS), volsam.Grid.at(SHAPE, SPACING), "ct")
        volsam.write_volume(volume, folder / "ct.nii.gz")
        people = [Annotator(number) for number in range(options.sessions)]
        with Serving(folder, "--max-sessions", str(options.sessions)) as serving:
            _together(people, serving.address, options.seconds / 2, serving)
        killed = sum(len(one.steps) for one in people)
        with Serving(folder, "--max-sessions", str(options.sessions)) as serving:
            memory = [serving.memory(), _warmed(serving)]
            _together(people, serving.address, options.seconds / 2, None)
            memory += [serving.memory("VmHWM"), _settled(serving)]
    for one in people:
        if one.lost:
            sys.exit(f"session {one.number} lost its server: {one.lost}")
    model = volsam.load_model()
    compared = sum(_compared(one, volume, model) for one in people)
    report = "\n".join(_describe(people, killed, compared, memory, options, notice))
    print(report)
    options.output.write_text(beside(options.output, report), encoding="utf-8")


def _together(people: list[Annotator], address: str, seconds: float, victim: Serving | None) -> None:
    """All at once for some time; then the server is killed while they go on, or they stop."""
    until, dying = threading.Event(), threading.Event()
    threads = [threading.Thread(target=one.work, args=(address, until, dying)) for one in people]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    if victim is not None:
        dying.set()
        victim.kill()
    until.set()
    for thread in threads:
        thread.join()


def _warmed(serving: Serving) -> float:
    """Memory when one session has been opened, clicked and closed: what a network keeps once it has run is there."""
    with Server(serving.address) as server:
        session = server.open("ct.nii.gz")
        session.add(Click(tuple(session.to_world(np.array(SHAPE) / 2).tolist())))
    return _settled(serving)


def _settled(serving: Serving) -> float:
    """Memory when all sessions are closed."""
    time.sleep(12)  # the server tidies every few seconds
    return serving.memory()


def _compared(one: Annotator, volume: Any, model: Any) -> int:
    """Hold the conversation again without a server; how many masks were compared, all of them alike."""
    import volsam

    session = volsam.Session(model, volume)
    for number, (step, expected) in enumerate(zip(one.steps, one.sums, strict=True)):
        if step.kind == "resumed":
            # Of the action whose answer did not come any more the server may have known.
            if len(session.entries) < step.entries and one.unanswered is not None:
                _act(session, one.unanswered)
            if len(session.entries) != step.entries:
                sys.exit(f"session {one.number}: acknowledged prompts were lost")
        else:
            _act(session, step)
        if _sum(session.mask.data[0]) != expected:
            sys.exit(f"session {one.number}: mask {number} differs from that of a session alone")
    return len(one.steps)


def _act(session: Any, step: Step) -> None:
    import volsam

    if step.place is not None:
        session.add(volsam.Click(step.place, step.sign))
    else:
        getattr(session, step.kind)()


def _sum(mask: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(np.packbits(np.asarray(mask, order="F").ravel(order="K") > 0).tobytes())


def _describe(
    people: list[Annotator], killed: int, compared: int, memory: list[float], options: argparse.Namespace, notice: str
) -> list[str]:
    seconds = sorted(value for one in people for value in one.seconds)
    each = [len(one.seconds) for one in people]
    rows = [
        ["actions acknowledged", str(sum(each))],
        ["of a session", f"{min(each)} to {max(each)}"],
        ["actions in a second, all together", f"{sum(each) / options.seconds:.1f}"],
        ["seconds of an action, median", f"{percentile(seconds, 50):.2f}"],
        ["seconds of an action, 95th percentile", f"{percentile(seconds, 95):.2f}"],
        ["acknowledged before the kill, and there after it", str(killed)],
        ["masks compared with a session alone, all alike", str(compared)],
        ["MiB of the server: at the start, before any click", f"{memory[0]:.0f}"],
        ["when one session had been clicked once and closed", f"{memory[1]:.0f}"],
        ["at most", f"{memory[2]:.0f}"],
        ["when all sessions were closed", f"{memory[3]:.0f} ({100 * (memory[3] / memory[1] - 1):+.0f} %)"],
    ]
    return [
        "## Many at once, and a kill in the middle",
        "",
        f"Machine: {machine()}.",
        *([notice] if notice else []),
        "",
        f"{options.sessions} sessions in {' × '.join(map(str, SHAPE))} voxels, {options.seconds:.0f} seconds without a "
        "pause; SIGKILL in the middle, a new server, every session resumed.",
        "",
        table(["", ""], rows),
        "",
    ]


if __name__ == "__main__":
    main()
