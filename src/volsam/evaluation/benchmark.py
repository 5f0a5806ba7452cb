"""Timing that can be believed on a shared machine: candidates beside each other, in shuffled rounds, as ratios.

Every round runs every candidate once, in a fresh order; what else the machine does hits all of them alike, so a ratio
is taken within a round and the median over rounds is reported with its quartiles. Time is the wall's and the
processor's: CPU seconds at one thread are what a neighbour changes least, and what gates rest on.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volsam.evaluation.published.figures import flops

TOLERANCE = 1e-4
"""Largest difference of two networks with the same weights, in float32."""

STARVED = 0.8
"""A call that got less than this part of the processor time it could have used was kept waiting by others."""

Outputs = dict[str, Tensor | NDArray[Any]]


@dataclass
class Candidate:
    """One side of a comparison, ready to run.

    name: as printed; steps: calls of one round in their order, each under the name of its task; a task that comes
    several times is reported by their median. outputs: what the last round computed, by name, for comparison with the
    peer. peer: the name of the candidate that ratios are taken to, None for a reference; same: whether both have the
    same weights and must agree. parameters: of the network, in millions. ready: called, untimed, once the number of
    threads is set. counted: the same steps on torch, where those that are timed cannot be counted.
    """

    name: str
    steps: Sequence[tuple[str, Callable[[], object]]]
    parameters: float
    outputs: Callable[[], Outputs] = dict
    peer: str | None = None
    same: bool = False
    flags: tuple[str, ...] = ()
    ready: Callable[[], object] = lambda: None
    counted: Sequence[tuple[str, Callable[[], object]]] = ()

    @property
    def tasks(self) -> list[str]:
        """Names of tasks, in their order."""
        return list(dict.fromkeys(task for task, _ in self.steps))


@dataclass(frozen=True)
class Sample:
    """Seconds of one call."""

    wall: float
    cpu: float


@dataclass
class Pass:
    """All samples of one number of threads: candidate → task → a sample a round."""

    threads: int
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def seconds(self, candidate: str, task: str, clock: str = "cpu") -> list[float]:
        """One clock's seconds, round by round; `clock` is "cpu" or "wall"."""
        return [float(getattr(sample, clock)) for sample in self.samples[candidate][task]]

    def ratios(self, candidate: str, peer: str, task: str, clock: str = "cpu") -> list[float]:
        """How many times longer the peer took, round by round."""
        pairs = zip(self.seconds(peer, task, clock), self.seconds(candidate, task, clock), strict=True)
        return [slow / max(fast, 1e-9) for slow, fast in pairs]

    def starved(self, candidate: str, task: str) -> bool:
        """Whether others took the processor away, by the median round."""
        pairs = zip(self.seconds(candidate, task, "cpu"), self.seconds(candidate, task, "wall"), strict=True)
        return median(cpu / max(wall, 1e-9) for cpu, wall in pairs) < STARVED * self.threads


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and least of some numbers."""

    middle: float
    low: float
    high: float
    least: float


def spread(values: Sequence[float]) -> Spread:
    """Of one value all four are that value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, min(values))


def measure(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    threads: int,
    device: str = "cpu",
    warm_ups: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Pass:
    """Run all candidates in `rounds` rounds on `threads` threads, each round in an order of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    order = random.Random(seed)
    found = Pass(threads, {c.name: {task: [] for task in c.tasks} for c in candidates})
    try:
        for candidate in candidates:
            candidate.ready()
        for number in range(-warm_ups, rounds):
            progress(f"threads {threads}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"))
            for candidate in order.sample(list(candidates), len(candidates)):
                for task, sample in _round(candidate, device).items():
                    if number >= 0:
                        found.samples[candidate.name][task].append(sample)
    finally:
        torch.set_num_threads(before)
    return found


def _round(candidate: Candidate, device: str) -> dict[str, Sample]:
    """One round of one candidate: the median of a task that comes several times."""
    times: dict[str, list[Sample]] = {task: [] for task in candidate.tasks}
    for task, call in candidate.steps:
        times[task].append(timed(call, device))
    return {
        task: Sample(median(sample.wall for sample in some), median(sample.cpu for sample in some))
        for task, some in times.items()
    }


def timed(call: Callable[[], object], device: str = "cpu") -> Sample:
    """Seconds of one call, without garbage collection in it.

    On a GPU the wall is what the device saw between two events around the call, read after one synchronisation.
    """
    collecting = gc.isenabled()
    gc.collect(0)  # what the last call left is young; to look at everything takes a large process most of a second
    gc.disable()
    try:
        return _timed_on_device(call) if device.startswith("cuda") else _timed_on_host(call)
    finally:
        if collecting:
            gc.enable()


def _timed_on_host(call: Callable[[], object]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def _timed_on_device(call: Callable[[], object]) -> Sample:
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    cpu = time.process_time()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return Sample(begin.elapsed_time(end) / 1000, time.process_time() - cpu)


def rehearse(candidates: Sequence[Candidate]) -> dict[str, dict[str, float]]:
    """One round that does not count, for warmth and for its arithmetic: candidate → task → GFLOP of one call.

    Attention is counted as its two products, whatever kernel runs later.
    """
    found = {}
    for candidate in candidates:
        operations: dict[str, list[int]] = {task: [] for task in candidate.tasks}
        for task, call in candidate.counted or candidate.steps:
            operations[task].append(flops(call))
        found[candidate.name] = {task: sum(some) / len(some) / 1e9 for task, some in operations.items()}
    return found


# --- equality ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far two candidates with the same weights are apart.

    difference: largest of all float outputs; cosine: of the same; voxels: of masks that differ, out of `of`.
    """

    difference: float
    cosine: float
    voxels: int
    of: int

    @property
    def holds(self) -> bool:
        """Whether they are the same function, in float32."""
        return self.difference <= TOLERANCE


def agreement(ours: Outputs, theirs: Outputs) -> Agreement:
    """Compare outputs of the same names; different names, different shapes and holes count as infinitely far."""
    if set(ours) != set(theirs) or not ours:
        return Agreement(float("inf"), 0.0, 0, 0)
    difference, cosine, voxels, of = 0.0, 1.0, 0, 0
    for name, mine in ours.items():
        a, b = _array(mine), _array(theirs[name])
        if a.shape != b.shape:
            return Agreement(float("inf"), 0.0, 0, 0)
        if a.dtype == bool or a.dtype.kind in "iu":
            voxels, of = voxels + int((a != b).sum()), of + a.size
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        apart = float(np.abs(a - b).max())
        difference = max(difference, apart if np.isfinite(apart) else float("inf"))
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = min(cosine, float((a * b).sum()) / lengths if lengths else 1.0)
    return Agreement(difference, cosine, voxels, of)


def _array(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
