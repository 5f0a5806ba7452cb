"""From the words of `volsam evaluate` to a way of asking: the protocols, each with a name for every answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from volsam.cli.asking import (
    begin_all_with,
    begin_with,
    labels_from,
    labels_of,
)
from volsam.data.simulate import Mask, clicks_per_slice, next_click
from volsam.errors import BadInput
from volsam.evaluation import cvpr2025
from volsam.evaluation.placement import WHERE, TrainingClicks, Where, box_around, drawn, flat_box
from volsam.evaluation.protocol import Place, Played, Score, automatic, corrected, positive_only, together
from volsam.evaluation.rules import Rule, Scores
from volsam.evaluation.study import Scene, Trial, seed_of
from volsam.geometry import Grid
from volsam.prompts import Box, PromptSet

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model

PROTOCOLS = ("automatic", "clicks", "box", "cvpr2025")
CORRECTIVE = ("deepest", "fastsam3d")
PLACES = (*CORRECTIVE, *WHERE)
# How many clicks the tables of the papers have.
TABLED = (1, 3, 5, 10)


@dataclass(frozen=True)
class Question:
    """What is asked of a model; the fields are options of `volsam evaluate`."""

    protocol: str
    clicks: int | None = None
    where: str = "deepest"
    per: str = "volume"
    rule: Rule | None = None
    tolerance_mm: float | None = None
    plane: str = "auto"
    stride: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        from volsam.inference.slices import AXES

        if self.protocol not in PROTOCOLS:
            raise BadInput(f"--protocol is {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.where not in PLACES:
            raise BadInput(f"--where is {', '.join(PLACES)}, got {self.where!r}")
        if self.per not in ("volume", "slice"):
            raise BadInput(f"--per is volume or slice, got {self.per!r}")
        if self.plane not in ("auto", *AXES):
            raise BadInput(f"--plane is auto, {', '.join(AXES)}, got {self.plane!r}")
        if self.protocol == "clicks" and self.clicks == 0:
            raise BadInput("--clicks 0 asks nothing: give 1 or more, or --protocol box or automatic")
        if self.protocol in ("automatic", "cvpr2025") and self.clicks is not None:
            raise BadInput(f"--protocol {self.protocol} has clicks of its own, or none: leave --clicks out")
        if self.protocol != "clicks" and (self.where != "deepest" or self.per != "volume"):
            raise BadInput(f"--where and --per belong to --protocol clicks, not to {self.protocol}")
        if self.per == "slice" and self.where not in ("deepest", "random"):
            raise BadInput("clicks --per slice are drawn anywhere in the object's slices: leave --where out")

    @property
    def count(self) -> int:
        """Clicks: ten, or none after a box, unless the user says otherwise."""
        return (0 if self.protocol == "box" else 10) if self.clicks is None else self.clicks

    @property
    def counts(self) -> list[int]:
        """How many clicks are given together, in turn."""
        return sorted({count for count in TABLED if count < self.count} | {self.count})

    @property
    def corrects(self) -> bool:
        """Whether clicks follow the errors of the answers."""
        return self.where in CORRECTIVE and self.per == "volume"

    @property
    def steps(self) -> list[str]:
        """A name for each answer."""
        if self.protocol == "automatic":
            return ["automatic"]
        if self.protocol == "cvpr2025":
            return ["box", *(_clicks(count) for count in range(1, cvpr2025.CLICKS + 1))]
        if self.protocol == "box":
            return ["box", *(f"box and {_clicks(count)}" for count in range(1, self.count + 1))]
        if self.corrects:
            return [_clicks(count) for count in range(1, self.count + 1)]
        unit = " per slice" if self.per == "slice" else ""
        return [f"{_clicks(count)}{unit}" for count in self.counts]

    @property
    def described(self) -> str:
        """The protocol in a sentence."""
        if self.protocol == "automatic":
            return "no prompts"
        if self.protocol == "cvpr2025":
            return (
                "a box on one slice, where the model takes such, then five clicks, each on the centre of the largest "
                "piece of the error, all objects of a case together"
            )
        if self.protocol == "box":
            tight = "the smallest box around the object"
            return tight + (", then clicks on the deepest point of the error" if self.count else "")
        if self.per == "slice":
            return (
                "clicks at random places of every slice of the object, given together; a model of slices answers each "
                "slice by its own clicks, with the best of its masks"
            )
        if self.where == "deepest":
            return "the first click on the deepest point of the object, each further one on that of the error"
        if self.where == "fastsam3d":
            return "two clicks in the deep half of the worse error, further ones anywhere in the error"
        place = "anywhere in the object" if self.where == "random" else f"in the {self.where} of the object"
        return f"clicks drawn {place}, given together, another conversation for each number of them"

    def score(self, scene: Scene, rule: Rule) -> Score:
        """The rule, for the masks of a case; its slices are those of the scan, whatever the model looks at."""
        spacing, across = scene.volume.grid.spacing, _across(scene.volume.grid, "auto")
        # Any answer may turn out to be the best.
        any_counts = rule.answer == "best"

        def score(mask: Mask, target: Mask, far: bool) -> Scores:
            return rule.score(
                mask,
                target,
                spacing,
                self.tolerance_mm,
                far=far or any_counts,
                across=across,
                unknown=scene.objects.unknown,
                of_the_challenge=scene.of_the_challenge,
            )

        return score

    def of_the_challenge(self) -> Question:
        """The same about files of the challenge, whose boxes lie on axial slices."""
        if self.protocol != "cvpr2025":
            return self
        if self.plane not in ("auto", "axial"):
            raise BadInput(
                f"--plane {self.plane}: boxes in files of the challenge lie on axial slices: leave --plane out, or "
                "give --protocol box"
            )
        return replace(self, plane="axial")


def automatic_trial(
    question: Question,
    rule: Rule,
    source: AutomaticModel | Path,
    classes: Mapping[str, int],
    declared: Mapping[str, int],
) -> Trial:
    """Score a model without prompts, or labels that lie in a folder; `classes` are the labels that the scored objects
    are made of, `declared` all labels of the dataset.
    """
    if isinstance(source, Path):
        find = labels_from(source, declared)
    else:
        find = labels_of(source, classes, question.plane, question.stride)

    def trial(scene: Scene) -> Iterator[tuple[str, Played]]:
        score = question.score(scene, rule)
        return automatic(lambda _: find(scene), scene.volume, scene.objects, score)

    return trial


def prompted_trial(question: Question, rule: Rule, model: Model) -> Trial:
    """Ask a model about every object that a case has."""
    _require_answers(question, model)
    if question.protocol == "cvpr2025":
        return lambda scene: _challenge(question, rule, model, scene)
    # Clicks on every slice are there to compare models of slices, which papers ask about each slice alone.
    started = begin_with(model, question.plane, follow=question.per != "slice")

    def trial(scene: Scene) -> Iterator[tuple[str, Played]]:
        grid = scene.volume.grid
        score = question.score(scene, rule)
        begin = scene.objects.judge(started)
        for name in scene.objects:
            target = scene.objects[name]
            if not target.any():
                continue
            if question.protocol == "box" or question.corrects:
                yield (
                    name,
                    corrected(
                        begin,
                        scene.volume,
                        target,
                        score,
                        question.count,
                        box=_box(question, model, target, grid) if question.protocol == "box" else None,
                        place=_place(question, model, scene.name, name),
                        counted=rule.counted,
                    ),
                )
            else:
                asked = _sets(question, target, grid, seed_of(question.seed, scene.name, name))
                yield name, together(begin, scene.volume, target, score, asked, rule.counted)

    return trial


def _require_answers(question: Question, model: Model) -> None:
    """Refuse at once what a model would refuse at every object."""
    clicks = question.protocol == "clicks" or question.count > 0
    if question.protocol == "box" and not {"box", "flat box"} & model.takes:
        raise BadInput(f"{model.name} takes no box: give --protocol clicks")
    if clicks and "click" not in model.takes:
        raise BadInput(f"{model.name} takes no clicks: give --protocol box, with --clicks 0")
    if question.protocol == "cvpr2025" and "negative click" not in model.takes:
        raise BadInput(f"{model.name} takes no negative clicks, which this protocol needs: give --protocol clicks")
    if question.where == "fastsam3d" and "negative click" not in model.takes:
        raise BadInput(f"{model.name} takes no negative clicks, which --where fastsam3d needs: leave it out")


def _place(question: Question, model: Model, case: str, name: str) -> Place:
    """Where corrections go."""
    if question.where == "fastsam3d":
        return TrainingClicks(seed_of(question.seed, case, name)).next
    return next_click if "negative click" in model.takes else positive_only


def _sets(question: Question, target: Mask, grid: Grid, seed: int) -> Iterator[PromptSet]:
    for count in question.counts:
        if question.per == "slice":
            yield PromptSet(clicks_per_slice(target, grid, count, _across(grid, question.plane), seed))
        else:
            yield PromptSet(drawn(target, grid, count, cast(Where, question.where), seed))


def _box(question: Question, model: Model, target: Mask, grid: Grid) -> Box:
    if "box" in model.takes:
        return box_around(target, grid)
    return flat_box(target, grid, _across(grid, question.plane))


def _across(grid: Grid, plane: str) -> int:
    """The axis of a scan's arrays across the slices of a plane, "auto" being the one in which the scan was taken."""
    from volsam.inference.slices import AXES, plane_of

    stack = grid.reoriented(AXES[plane_of(grid) if plane == "auto" else plane])
    one_slice_on = np.linalg.solve(grid.affine, stack.affine)[:3, 0]
    return int(np.argmax(np.abs(one_slice_on)))


def _challenge(question: Question, rule: Rule, model: Model, scene: Scene) -> Iterator[tuple[str, Played]]:
    from volsam.inference.slices import SliceModel

    objects = scene.objects.present()
    if not objects:
        return
    grid = scene.volume.grid
    # A model of slices takes a box on those that it looks at; the challenge has them across the last axis of a file.
    axis = _across(grid, question.plane) if isinstance(model, SliceModel) else 2
    boxes = cvpr2025.middle_boxes(objects, grid, axis) if scene.boxes is None else scene.boxes
    if "flat box" not in model.takes:
        boxes = {}
    begin, score = begin_all_with(model, question.plane), question.score(scene, rule)
    yield from cvpr2025.play(begin, scene.volume, objects, score, boxes or None, rule.counted).items()


def _clicks(count: int) -> str:
    return f"{count} click" if count == 1 else f"{count} clicks"
