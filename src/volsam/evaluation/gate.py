"""Goals for a benchmark, a line each, in a file.

    # comment
    click.cold.cpu_ratio(fastsam3d, fastsam3d) >= 1.2

The first name is one of ours, the second the published network it is compared with. A ratio says how many times more
the published one took: CPU seconds at one thread, wall seconds on all cores, or peak memory. Times must hold at the
first quartile of the rounds, not only in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from volsam.errors import BadInput

Quantity = Literal["cpu_ratio", "wall_ratio", "memory_ratio"]

_LINE = re.compile(
    r"(?P<task>[a-z]+(?:\.[a-z_]+)*)\.(?P<quantity>cpu_ratio|wall_ratio|memory_ratio)"
    r"\(\s*(?P<ours>[\w.+-]+)\s*,\s*(?P<published>[\w.+-]+)\s*\)\s*>=\s*(?P<limit>\d+(?:\.\d+)?)"
)


@dataclass(frozen=True)
class Goal:
    """One line: task "click.cold", which ratio, of which two, at least how much."""

    text: str
    task: str
    quantity: Quantity
    ours: str
    published: str
    limit: float


@dataclass(frozen=True)
class Verdict:
    """What was found for a goal: the number that had to hold, or None where this run did not measure it."""

    goal: Goal
    value: float | None

    @property
    def holds(self) -> bool:
        """Whether the goal is met; one that was not measured is neither met nor missed."""
        return self.value is not None and self.value >= self.goal.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured  {self.goal.text}"
        return f"{'holds' if self.holds else 'MISSED':12}  {self.goal.text}  (p25 {self.value:.2f})"


def read_goals(path: Path, tasks: set[str], names: set[str]) -> list[Goal]:
    """All goals of a file; refused if a line says nothing, or names what no benchmark has."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the gate {path} cannot be read ({error}): give a text file of goals") from None
    goals = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            goals.append(_goal(text, f"{path}, line {number}", tasks, names))
    if not goals:
        raise BadInput(f"the gate {path} holds no goal: write lines such as click.cold.cpu_ratio(a, b) >= 2")
    return goals


def _goal(text: str, where: str, tasks: set[str], names: set[str]) -> Goal:
    found = _LINE.fullmatch(text)
    if found is None:
        raise BadInput(f"{where}: {text!r} is not a goal: write, for example, click.cold.cpu_ratio(a, b) >= 2")
    if found["task"] not in tasks:
        raise BadInput(f"{where}: {found['task']!r} is measured nowhere; there are: {', '.join(sorted(tasks))}")
    for name in (found["ours"], found["published"]):
        if name not in names:
            raise BadInput(f"{where}: no model is called {name!r}; there are: {', '.join(sorted(names))}")
    quantity = cast(Quantity, found["quantity"])
    return Goal(text, found["task"], quantity, found["ours"], found["published"], float(found["limit"]))


def judge(goals: list[Goal], found: Callable[[Goal], float | None]) -> list[Verdict]:
    """A verdict a goal; `found` gives the number that must hold, None if it was not measured."""
    return [Verdict(goal, found(goal)) for goal in goals]
