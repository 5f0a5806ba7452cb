"""How a model is asked before it is scored: without prompts, with clicks, with a box, with corrections of its errors.

A model is handed in as a callable, so that nothing here knows a network: `Predict` labels a volume on its own, `Begin`
starts with one object and answers prompts. What comes back is every answer's score, what was asked, and the last mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from volsam.data.simulate import Mask, next_click
from volsam.errors import BadInput
from volsam.evaluation.metrics import dice, nsd
from volsam.evaluation.rules import Scores
from volsam.geometry import Grid
from volsam.prompts import Box, Click, Prompt, PromptSet
from volsam.volume import Volume

Labels: TypeAlias = NDArray[np.integer[Any]]
Value = TypeVar("Value", bound=np.generic)

Predict: TypeAlias = Callable[[Volume], Labels]
"""Labels (i, j, k) of a volume, with the values of the dataset."""

Ask: TypeAlias = Callable[[PromptSet], Mask]
"""Adds prompts that are given together and answers with the current mask (i, j, k) on the volume's grid."""

Begin: TypeAlias = Callable[[Volume], Ask]
"""Begins with one object in a volume; the volume carries no prompts of earlier objects."""

Score: TypeAlias = Callable[[Mask, Mask, bool], Scores]
"""Scores a mask against an object; distances are measured only if the last argument says so, for they take long."""

Counted: TypeAlias = Callable[[Sequence[float]], int]
"""Which of several answers counts, by their Dice: its place."""

Place: TypeAlias = Callable[[Mask, Mask, Grid], Click | None]
"""Where the next click goes, from object and mask; None where there is nothing to correct."""

Add: TypeAlias = Callable[[Click], Mask]
"""Adds a click and answers with the current mask (i, j, k) on the volume's grid."""

Start: TypeAlias = Callable[[Volume], Add]
"""`Begin` for clicks only."""


class Objects(Mapping[str, Mask]):
    """The objects of a case by name, each made from the labels when it is asked for: all at once would fill memory.

    labels: (i, j, k); values: of the objects, several where one joins them; ignore: of voxels whose truth is not known,
    None where there are none.
    """

    def __init__(self, labels: Labels, values: Mapping[str, int | tuple[int, ...]], ignore: int | None = None) -> None:
        self.labels = labels
        self.values_of = dict(values)
        self.ignore = ignore

    def __getitem__(self, name: str) -> Mask:
        return self.within(self.labels, name)

    def within(self, labels: Labels, name: str) -> Mask:
        """Where an object is in labels (i, j, k), which may be an answer's."""
        value = self.values_of[name]
        found: Mask = np.isin(labels, value) if isinstance(value, tuple) else labels == value
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)

    def present(self) -> Objects:
        """Those that the case has."""
        values = {name: value for name, value in self.values_of.items() if self[name].any()}
        return Objects(self.labels, values, self.ignore)

    @cached_property
    def unknown(self) -> Mask | None:
        """Where (i, j, k) the truth is not known, None where it is known everywhere."""
        unknown = None if self.ignore is None else self.labels == self.ignore
        return unknown if unknown is not None and unknown.any() else None

    def known(self, answer: NDArray[Value]) -> NDArray[Value]:
        """An answer (i, j, k), mask or labels, with nothing where the truth is not known: neither right nor wrong."""
        if self.unknown is None:
            return answer
        known = answer.copy()
        known[self.unknown] = 0
        return known

    def judge(self, begin: Begin) -> Begin:
        """The same model, of whose masks only the known part is looked at."""

        def begun(volume: Volume) -> Ask:
            ask = begin(volume)
            return lambda prompts: self.known(ask(prompts))

        return begun


@dataclass(frozen=True)
class Step:
    """One answer: its scores, the prompts that were new, and the seconds until it came."""

    scores: Scores
    prompts: tuple[Prompt, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Played:
    """All answers about one object, and the mask (i, j, k) of the one that counts."""

    steps: tuple[Step, ...]
    mask: Mask


def last(dice: Sequence[float]) -> int:
    """The last answer counts."""
    return len(dice) - 1


class Answers:
    """Answers about one object as they come; of their masks only that of the one that counts is kept."""

    def __init__(self, counted: Counted) -> None:
        self.steps: list[Step] = []
        self._counted = counted
        self._mask: Mask = np.zeros((0, 0, 0), bool)

    def add(self, step: Step, mask: Mask) -> None:
        """One more answer, and its mask (i, j, k)."""
        self.steps.append(step)
        if self._counted([step.scores.dice for step in self.steps]) == len(self.steps) - 1:
            self._mask = mask

    @property
    def played(self) -> Played:
        """All that came."""
        return Played(tuple(self.steps), self._mask)


def automatic(predict: Predict, volume: Volume, objects: Objects, score: Score) -> Iterator[tuple[str, Played]]:
    """Score what a model finds on its own; an object that a case lacks is scored too."""
    began = perf_counter()
    labels = predict(volume)
    seconds = perf_counter() - began
    if labels.shape != objects.labels.shape:
        raise BadInput(f"labels of shape {labels.shape} do not lie on the grid of {volume.name}, {volume.grid!r}")
    labels = objects.known(labels)
    for name in objects:
        mask = objects.within(labels, name)
        yield name, Played((Step(score(mask, objects[name], True), (), seconds),), mask)


def together(
    begin: Begin,
    volume: Volume,
    target: Mask,
    score: Score,
    asked: Iterable[PromptSet],
    counted: Counted = last,
) -> Played:
    """Score several sets of prompts, each in a conversation of its own; of their answers one counts."""
    _require_on_grid(target, volume)
    sets = list(asked)
    answers = Answers(counted)
    for prompts in sets:
        began = perf_counter()
        mask = begin(volume)(prompts)
        seconds = perf_counter() - began
        answers.add(Step(score(mask, target, prompts is sets[-1]), tuple(prompts), seconds), mask)
    return answers.played


def corrected(
    begin: Begin,
    volume: Volume,
    target: Mask,
    score: Score,
    clicks: int,
    *,
    box: Box | None = None,
    place: Place = next_click,
    counted: Counted = last,
) -> Played:
    """Score a box, if one is given, and `clicks` clicks that each correct the worst error of the answer before.

    Where the mask is right, or nothing can be corrected, the answer stays as it is and takes no time.

    Args:
        begin: what is evaluated.
        volume: the image.
        target: the object (i, j, k) on the volume's grid, at least one voxel.
        score: gives the scores of a mask.
        clicks: how many.
        box: is given before all clicks.
        place: where clicks go; the deepest point of the error, unless something else is wanted.
        counted: which of the answers counts.
    """
    target = _require_on_grid(target, volume)
    count = clicks + (box is not None)
    prompt: Prompt | None = place(target, np.zeros_like(target), volume.grid) if box is None else box
    if prompt is None:
        raise BadInput("the object holds no voxel, so there is nothing to click on")
    answers = Answers(counted)
    mask = np.zeros_like(target)
    began = perf_counter()
    ask = begin(volume)
    while (given := len(answers.steps)) < count:
        if prompt is None:
            # Distances are of the last answer alone, also where it stays: else the means of the answers before it were
            # over the objects that were right by then, which are those with distances of 0.
            same = Step(score(mask, target, False), (), 0.0)
            for _ in range(count - given - 1):
                answers.add(same, mask)
            answers.add(Step(score(mask, target, True), (), 0.0), mask)
            break
        mask = ask(PromptSet([prompt]))
        seconds = perf_counter() - began
        answers.add(Step(score(mask, target, given + 1 == count), (prompt,), seconds), mask)
        prompt = place(target, mask, volume.grid) if given + 1 < count else None
        began = perf_counter()
    return answers.played


def positive_only(target: Mask, mask: Mask, grid: Grid) -> Click | None:
    """The deepest point of what was missed; for models that know no negative clicks."""
    return next_click(target, mask & target, grid)


# --- clicks alone ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClickScore:
    """What one click led to.

    `click` is None where the mask was already right and nothing was left to correct; the score then stays. `seconds`
    is the time of the click as a user feels it; that of the first one includes what `start` does.
    """

    dice: float
    nsd: float
    click: Click | None
    seconds: float


def clicks_protocol(
    start: Start,
    volume: Volume,
    target: Mask,
    clicks: int = 10,
    *,
    tolerance_mm: float | None = 2.0,
    spacing: Sequence[float] | NDArray[np.float64] | None = None,
) -> list[ClickScore]:
    """Segment one object with `clicks` simulated clicks; one score for each.

    The first click falls on the deepest point of the object, each further one on the deepest point of the error.

    Args:
        start: what is evaluated.
        volume: the image.
        target: the object (i, j, k) on the volume's grid, at least one voxel.
        clicks: how many.
        tolerance_mm: of the surface score; None leaves it out (nan), which is quicker.
        spacing: voxel size for the surface score, where the volume's own is not to be trusted.
    """
    sizes = volume.grid.spacing if spacing is None else spacing

    def score(mask: Mask, target: Mask, far: bool) -> Scores:
        surface = nan if tolerance_mm is None else nsd(mask, target, sizes, tolerance_mm)
        return Scores(dice(mask, target), nan, surface)

    def begin(volume: Volume) -> Ask:
        add = start(volume)
        return lambda prompts: [add(click) for click in prompts if isinstance(click, Click)][-1]

    played = corrected(begin, volume, target, score, clicks)
    return [ClickScore(step.scores.dice, step.scores.nsd, _click_of(step), step.seconds) for step in played.steps]


def clicks_only(begin: Begin) -> Start:
    """What answers prompts, for a protocol that knows clicks only."""

    def start(volume: Volume) -> Add:
        ask = begin(volume)
        return lambda click: ask(PromptSet([click]))

    return start


def _click_of(step: Step) -> Click | None:
    return next((prompt for prompt in step.prompts if isinstance(prompt, Click)), None)


def _require_on_grid(target: Mask, volume: Volume) -> Mask:
    target = np.asarray(target, dtype=bool)
    if target.shape != volume.grid.shape:
        raise BadInput(f"an object of shape {target.shape} does not lie on the grid of {volume.name}, {volume.grid!r}")
    return target
