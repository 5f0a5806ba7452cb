"""What a benchmark found: the table, the data behind it, and the numbers that goals are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from volsam.evaluation.benchmark import Agreement, Candidate, Pass, Spread, spread
from volsam.evaluation.gate import Goal
from volsam.evaluation.machine import Probe


@dataclass
class Result:
    """A suite that was run. passes: by threads, the first at one; gflop: candidate → task → of one call; agreements:
    of candidates with the weights of their peer; memory: MiB, by candidate.
    """

    suite: str
    candidates: Sequence[Candidate]
    passes: list[Pass]
    probes: list[Probe] = field(default_factory=list)
    gflop: dict[str, dict[str, float]] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    def ratio(self, name: str, task: str, clock: str = "cpu", which: int = 0) -> Spread | None:
        """How many times longer the peer took; None without a peer, or where the two are not the same function."""
        candidate = self._named(name)
        if candidate is None or candidate.peer is None or self._named(candidate.peer) is None or self.differs(name):
            return None
        measured = self.passes[which]
        if task not in measured.samples[name] or task not in measured.samples[candidate.peer]:
            return None
        return spread(measured.ratios(name, candidate.peer, task, clock))

    def differs(self, name: str) -> bool:
        """Whether a candidate was to agree with its peer and does not; in bf16 none can."""
        candidate = self._named(name)
        exact = candidate is not None and "bf16" not in candidate.flags
        return exact and name in self.agreements and not self.agreements[name].holds

    def _named(self, name: str) -> Candidate | None:
        return next((candidate for candidate in self.candidates if candidate.name == name), None)

    def found(self, goal: Goal) -> float | None:
        """The number that must hold for a goal: the first quartile, or the ratio of peak memory."""
        candidate = self._named(goal.ours)
        peer = f"{goal.published} (published)"
        if candidate is None or candidate.peer != peer or goal.task not in candidate.tasks:
            return None
        if self.differs(goal.ours):
            return 0.0  # not the same function: there is no ratio, and no goal is met
        if goal.quantity == "memory_ratio":
            return self.memory_ratio(goal.ours)
        which = 0 if goal.quantity == "cpu_ratio" else len(self.passes) - 1
        ratio = self.ratio(goal.ours, goal.task, goal.quantity.removesuffix("_ratio"), which)
        return None if ratio is None else ratio.low

    def memory_ratio(self, name: str) -> float | None:
        """Peak memory of the peer over that of a candidate: on a GPU what was allocated there."""
        candidate = self._named(name)
        if candidate is None or candidate.peer not in self.memory or name not in self.memory:
            return None
        key = "allocated" if "allocated" in self.memory[name] else "peak"
        return self.memory[candidate.peer][key] / self.memory[name][key]


# --- the table -----------------------------------------------------------------------------------------------------


def rows(result: Result, which: int) -> tuple[list[str], list[list[str]]]:
    """Head and lines of one pass: seconds of the wall, of the processor, and times faster than the peer.

    At one thread "x" is the ratio of processor seconds; on more it is that of the wall, for information.
    """
    measured = result.passes[which]
    clock = "cpu" if measured.threads == 1 else "wall"
    tasks = list(dict.fromkeys(task for candidate in result.candidates for task in candidate.tasks))
    short = {task: task.rpartition(".")[2] for task in tasks}
    head = ["model", *(f"{short[task]} ms (p25-p75)" for task in tasks)]
    head += [f"{short[task]} cpu-ms" for task in tasks] + [f"x {short[task]}" for task in tasks]
    head += ["GFLOP", "params M", "% of floor", "RSS MB", "max|d|", "flags"]
    return head, [_row(result, which, clock, candidate, tasks) for candidate in result.candidates]


def _row(result: Result, which: int, clock: str, candidate: Candidate, tasks: list[str]) -> list[str]:
    measured, name = result.passes[which], candidate.name
    have = [task if task in measured.samples[name] else None for task in tasks]
    cells = [name]
    cells += ["-" if task is None else _milliseconds(spread(measured.seconds(name, task, "wall"))) for task in have]
    cells += ["-" if task is None else f"{1000 * spread(measured.seconds(name, task)).middle:.1f}" for task in have]
    cells += ["-" if task is None else _times(result.ratio(name, task, clock, which)) for task in have]
    first = candidate.tasks[0]
    gflop = result.gflop.get(name, {}).get(first)
    cells.append("-" if gflop is None else f"{gflop:.3g}" if gflop < 100 else f"{gflop:.0f}")
    cells.append(f"{candidate.parameters:.1f}" if candidate.parameters else "-")
    cells.append(floor(result, which, candidate, first, gflop))
    held = result.memory.get(name)
    cells.append("-" if held is None else f"{held.get('allocated', held['peak']):.0f}")
    agreement = result.agreements.get(name)
    cells.append("-" if agreement is None else f"{agreement.difference:.1e}")
    flags = list(candidate.flags)
    if agreement is not None:
        if agreement.of:
            flags.append(f"{agreement.voxels} of {agreement.of} voxels differ")
        if "bf16" in candidate.flags:
            flags.append(f"cosine {agreement.cosine:.5f}")
        elif not agreement.holds:
            flags.append("NOT THE SAME")
    if any(task is not None and measured.starved(name, task) for task in have):
        flags.append("busy")
    return [*cells, ", ".join(flags)]


def floor(result: Result, which: int, candidate: Candidate, task: str, gflop: float | None) -> str:
    """The part of the processor time that the arithmetic alone would need at the probed rate, in percent."""
    rate = next((probe.fp32 for probe in result.probes if probe.threads == 1), None)
    if gflop is None or rate is None or result.passes[which].threads != 1:
        return "-"
    return f"{100 * gflop / rate / max(spread(result.passes[which].seconds(candidate.name, task)).middle, 1e-9):.0f}"


def _milliseconds(found: Spread) -> str:
    digits = 1 if found.middle < 1 else 0
    low, middle, high = (f"{1000 * value:.{digits}f}" for value in (found.low, found.middle, found.high))
    return f"{middle} ({low}-{high})"


def _times(found: Spread | None) -> str:
    return "-" if found is None else f"{found.middle:.2f} [{found.low:.2f}-{found.high:.2f}]"


# --- data ----------------------------------------------------------------------------------------------------------


def as_data(result: Result) -> dict[str, Any]:
    """Everything measured, with every single sample, for a JSON file."""
    return {
        "suite": result.suite,
        "candidates": {
            candidate.name: {
                "peer": candidate.peer,
                "same_weights": candidate.same,
                "parameters_millions": candidate.parameters,
                "gflop": result.gflop.get(candidate.name, {}),
                "agreement": _plain(result.agreements.get(candidate.name)),
                "memory_mib": result.memory.get(candidate.name, {}),
                "flags": list(candidate.flags),
            }
            for candidate in result.candidates
        },
        "passes": [
            {
                "threads": measured.threads,
                "seconds": {
                    name: {task: [asdict(sample) for sample in samples] for task, samples in tasks.items()}
                    for name, tasks in measured.samples.items()
                },
                "ratios": {
                    candidate.name: {
                        task: {
                            clock: asdict(ratio)
                            for clock in ("cpu", "wall")
                            if (ratio := result.ratio(candidate.name, task, clock, which)) is not None
                        }
                        for task in candidate.tasks
                    }
                    for candidate in result.candidates
                    if candidate.peer is not None
                },
            }
            for which, measured in enumerate(result.passes)
        ],
    }


def _plain(agreement: Agreement | None) -> dict[str, Any] | None:
    return None if agreement is None else asdict(agreement) | {"holds": agreement.holds}
