"""A race: candidates of a suite side by side, round by round, and the memory of each in a process of its own."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from volsam.errors import NotSupported, VolsamError
from volsam.evaluation import benchmark
from volsam.evaluation.benchmark import Candidate, Pass, Sample
from volsam.evaluation.machine import Probe
from volsam.evaluation.processes import MEASURABLE, run
from volsam.evaluation.scoreboard import Result
from volsam.recipes.bench import compared, suites
from volsam.recipes.bench.compared import OWN, OWN_PEER, PAIRS
from volsam.recipes.bench.suites import Settings, Suite, published_name

Tell = Callable[[str], AbstractContextManager[None]]
"""Around a step of the work, with its name."""
CHILD = [sys.executable, "-m", "volsam.recipes.bench.child"]
NOTHING_HERE = [("start", lambda: None)]
"""The steps of a candidate that works in a process of its own."""
SAME_MASK = 1e-5
"""The part of all voxels in which the masks of two processes may differ."""


def race(
    suite: Suite,
    names: Sequence[str],
    settings: Settings,
    passes: Sequence[int],
    rounds: int,
    probes: list[Probe],
    tell: Tell,
) -> Result:
    """Time the candidates of a suite.

    Args:
        suite: what is timed.
        names: networks, each beside its published twin.
        settings: device, sizes, seed.
        passes: numbers of threads, with `probes` of the machine for each.
        rounds: of a pass.
        probes: what the machine did beforehand.
        tell: shows what is going on.

    Raises:
        VolsamError: from the start to the mask, two processes do not come to the same mask.
    """
    if suite == "start":
        return _from_the_start(names, settings, passes, rounds, probes, tell)
    with tell(f"{suite}: building {', '.join(names)}"):
        candidates = suites.candidates(suite, list(names), settings)
    result = Result(suite, candidates, [], probes)
    with tell(f"{suite}: rehearsing"):
        result.gflop = benchmark.rehearse(candidates)
    by_name = {candidate.name: candidate for candidate in candidates}
    for index, threads in enumerate(passes):
        with tell(f"{suite}: {rounds} rounds on {threads} threads"):
            seed = settings.seed + index
            measured = benchmark.measure(
                candidates, rounds=rounds, threads=threads, device=settings.device, warm_ups=0, seed=seed
            )
            result.passes.append(measured)
        if index == 0:  # compared is what the timed calls compute
            for candidate in candidates:
                if candidate.same and candidate.peer in by_name:
                    found = benchmark.agreement(candidate.outputs(), by_name[candidate.peer].outputs())
                    result.agreements[candidate.name] = found
    if MEASURABLE:
        with tell(f"{suite}: memory, each alone"):
            result.memory = _memory(suite, settings, list(by_name))
    return result


def _memory(suite: Suite, settings: Settings, candidates: Sequence[str]) -> dict[str, dict[str, float]]:
    """Peak memory of every candidate in a process of its own, MiB."""
    keys = {(name, "ours"): name for name in PAIRS} | {(name, "published"): published_name(name) for name in PAIRS}
    keys[(OWN, "ours")] = OWN
    found = {}
    for (name, which), printed in keys.items():
        if printed not in candidates:
            continue
        asked = {
            "suite": suite,
            "name": name,
            "which": which,
            "device": settings.device,
            "size": settings.size,
            "volume": settings.volume,
            "dtype": settings.dtype,
            "against": None if settings.checkout is None else str(settings.checkout.path),
            "engine": settings.engine,
        }
        alone = run([*CHILD, "memory", json.dumps(asked)])
        found[printed] = json.loads(alone.output.splitlines()[-1])
    return found


# --- fresh processes, each from its start to its first mask, from a checkpoint and a scan on disk --------------------


def _from_the_start(
    names: Sequence[str],
    settings: Settings,
    passes: Sequence[int],
    rounds: int,
    probes: list[Probe],
    tell: Tell,
) -> Result:
    if settings.device != "cpu":
        raise NotSupported("the start suite runs on a CPU: leave --device out, or choose other suites")
    pair, peer = PAIRS[OWN_PEER], published_name(OWN_PEER)
    with TemporaryDirectory(prefix="volsam-bench-") as place:
        weights, scan = Path(place) / "weights.pt", Path(place) / "scan.npy"
        parameters = _published_weights(weights, settings.seed)
        np.save(scan, suites.scan((pair.size,) * 3))
        modes = {peer: ("published", str(weights))}
        if OWN_PEER in names:
            modes[OWN_PEER] = ("ours", str(weights))
        if OWN in names:
            modes[OWN] = ("own", "-")
        voxel = ",".join(map(str, suites.presses_in(pair.size, False, 1)[0].voxel))
        commands = {name: [*CHILD, mode, file, str(scan), voxel] for name, (mode, file) in modes.items()}
        order = random.Random(settings.seed)
        measured: list[Pass] = []
        said: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for threads in passes:
            with tell(f"start: {rounds} rounds on {threads} threads"):
                measured.append(_starts(commands, rounds, threads, order, said))
    voxels = {name: answers[-1]["voxels"] for name, answers in said.items()}
    if OWN_PEER in voxels and abs(voxels[OWN_PEER] - voxels[peer]) > SAME_MASK * pair.size**3:
        raise VolsamError(f"the mask of {OWN_PEER} has {voxels[OWN_PEER]} voxels, the published one {voxels[peer]}")
    candidates = [
        Candidate(name, NOTHING_HERE, 0.0 if name == OWN else parameters, peer=None if name == peer else peer)
        for name in commands
    ]
    memory = {name: {"peak": median(answer["peak"] for answer in answers)} for name, answers in said.items()}
    return Result("start", candidates, measured, probes, memory=memory)


def _starts(
    commands: Mapping[str, list[str]],
    rounds: int,
    threads: int,
    order: random.Random,
    said: Mapping[str, list[dict[str, float]]],
) -> Pass:
    """All commands in every round, in a new order each; what they print goes into `said`. One round more, before, warms
    the files."""
    found = Pass(threads, {name: {"start": []} for name in commands})
    for number in range(-1, rounds):
        for name in order.sample(sorted(commands), len(commands)):
            once = run(commands[name], threads)
            if number >= 0:
                found.samples[name]["start"].append(Sample(once.wall, once.cpu))
                said[name].append(json.loads(once.output.splitlines()[-1]))
    return found


def _published_weights(path: Path, seed: int) -> float:
    """Write a checkpoint with weights by rule; returns how many there are, in millions."""
    pair = PAIRS[OWN_PEER]
    reference = compared.reference_of(pair, pair.size, None)
    state = {name: compared.by_rule(name, tensor, seed) for name, tensor in reference.state_dict().items()}
    torch.save(state, path)
    return sum(parameter.numel() for parameter in reference.parameters()) / 1e6
