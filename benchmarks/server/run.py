"""What does HTTP add to a click? Prints the answer and writes results.md.

    python benchmarks/server/run.py --rounds 6

A volume of 512 × 512 × 300 voxels is made and deleted again. A server with it open, and a session without a server in
this process, are given the same prompts in turn, so that what else the machine does falls out of the ratio. The client
is `volsam_client`, which also unpacks and paints what changed. Numbers mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command has it

import numpy as np
from serving import HERE, Serving, ball, beside, percentile

sys.path.append(str(HERE.parents[1] / "client"))

from volsam_client import Click, Server

import volsam
from measure import busy, machine, ratios, spread, table

SHAPE, SPACING, RADIUS = (512, 512, 300), 0.75, 24
# Where the clicks after the first one go, in voxels from the middle; the second number is the sign.
LATER = (
    *(((10, 0, 0), 1), ((0, 36, 0), 0), ((0, -12, 6), 1), ((-34, 0, 8), 0), ((4, 8, -14), 1)),
    *(((-8, 4, 2), 1), ((2, -38, 0), 0), ((0, 10, 10), 1), ((30, 22, 0), 0), ((-6, -6, -10), 1)),
)
MOST_ADDED = 1.3

Sample = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="how often the conversation is held (6)")
    parser.add_argument("--threads", type=int, help="of torch, on both sides; without it, what torch takes")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="where the table goes")
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(machine(), flush=True)
    notice = busy()
    with tempfile.TemporaryDirectory(prefix="volsam-server-") as name:
        folder = Path(name)
        grid = volsam.Grid.at(SHAPE, SPACING)
        volsam.write_volume(volsam.Volume(ball(SHAPE, RADIUS), grid, "ct"), folder / "ct.nii")
        with Serving(folder) as serving:
            samples, opening = measure(folder, serving, options.rounds)
            memory = serving.memory("VmHWM")
    report = "\n".join(describe(samples, opening, memory, options.rounds, notice))
    print(report)
    options.output.write_text(beside(options.output, report), encoding="utf-8")


def measure(folder: Path, serving: Serving, rounds: int) -> tuple[list[Sample], float]:
    """Every action of every round on both sides, and the seconds that opening took."""
    volume = volsam.read_volume(folder / "ct.nii")
    alone = volsam.Session(volsam.load_model(), volume)
    middle = np.array(SHAPE) / 2 - 0.5
    places = [(middle, 1), *((middle + offset, sign) for offset, sign in LATER)]
    samples: list[Sample] = []
    with Server(serving.address) as server:
        begin = time.perf_counter()
        session = server.open("ct.nii")
        opening = time.perf_counter() - begin
        order = random.Random(0)
        for number in range(rounds + 1):
            for step, (place, sign) in enumerate(places):
                point = tuple(float(value) for value in volume.grid.to_world(place))
                sides: dict[str, Callable[[], object]] = {
                    "bare": lambda p=point, s=sign: alone.add(volsam.Click(p, bool(s))),
                    "http": lambda p=point, s=sign: session.add(Click(p, bool(s))),
                }
                _timed("first" if step == 0 else "later", sides, order, samples, number, session)
            _timed("undo", {"bare": alone.undo, "http": session.undo}, order, samples, number, session)
            if not np.array_equal(session.mask, alone.mask.data[0]):
                sys.exit("the masks differ")
            _timed("reset", {"bare": alone.reset, "http": session.reset}, order, samples, number, session)
            print(f"round {number} of {rounds} done", file=sys.stderr, flush=True)
    return samples, opening


def _timed(
    kind: str,
    sides: dict[str, Callable[[], object]],
    order: random.Random,
    samples: list[Sample],
    number: int,
    session: Any,
) -> None:
    sample: Sample = {"kind": "cold" if number == 0 and kind == "first" else kind, "round": number}
    for side in order.sample(sorted(sides), len(sides)):
        begin = time.perf_counter()
        sides[side]()
        sample[side] = time.perf_counter() - begin
    sample["seconds"] = dict(session.seconds)
    if number > 0 or sample["kind"] == "cold":  # the rest of the first round warms both sides up
        samples.append(sample)


def describe(samples: list[Sample], opening: float, memory: float, rounds: int, notice: str) -> list[str]:
    """The results, line by line."""
    rows = []
    for label, kind in (
        ("first click, regions not yet encoded", "cold"),
        ("first click again, after a reset", "first"),
        ("later click", "later"),
        ("undo", "undo"),
        ("reset", "reset"),
    ):
        chosen = [sample for sample in samples if sample["kind"] == kind]
        bare, http = ([1000 * sample[side] for sample in chosen] for side in ("bare", "http"))
        ends = [f"{percentile(side, 95):.1f}" if len(side) > 1 else "-" for side in (bare, http)]
        ratio = ratios(http, bare)
        goal = ""
        if kind == "later":
            goal = f"at most {MOST_ADDED}: {'met' if median(ratio) <= MOST_ADDED else 'MISSED'}"
        rows.append([label, str(len(chosen)), spread(bare, 1), ends[0], spread(http, 1), ends[1], spread(ratio), goal])
    later = [sample for sample in samples if sample["kind"] == "later"]
    steps = ("wait", "decode", "paint", "pack", "save", "total")
    inside = [[1000 * sample["seconds"].get(step, 0.0) for sample in later] for step in steps]
    outside = [1000 * (sample["http"] - sample["seconds"]["total"]) for sample in later]
    return [
        "## A click over HTTP",
        "",
        f"Machine: {machine()}.",
        *([notice] if notice else []),
        "",
        f"{' × '.join(map(str, SHAPE))} voxels, int16; {rounds} rounds of {len(LATER) + 1} clicks, both sides in turn. "
        f"Opening the study took {opening:.1f} s. At most the server took {memory:.0f} MiB. Every mask was the same on "
        "both sides. Milliseconds: median with quartiles, and the 95th percentile.",
        "",
        table(["", "n", "bare session", "p95", "over HTTP", "p95", "ratio", "goal"], rows),
        "",
        "Where the time of a later click goes, as the server tells it (`rest` is the network, JSON and painting at the "
        "client):",
        "",
        table([*steps, "rest"], [[*(spread(values, 2) for values in inside), spread(outside, 2)]]),
        "",
    ]


if __name__ == "__main__":
    main()
