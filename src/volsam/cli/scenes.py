"""The cases that an evaluation goes through: of a dataset, or of a folder with files of the CVPR 2025 challenge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volsam.data.dataset import IGNORE, Case, Dataset, read_image, read_label
from volsam.data.splits import chosen_cases
from volsam.errors import BadInput
from volsam.evaluation.cvpr2025 import read_task
from volsam.evaluation.protocol import Objects
from volsam.evaluation.study import Scene
from volsam.prompts import Box


@dataclass(frozen=True)
class Source:
    """What is evaluated on.

    name: of the dataset; split: which of its cases, in words; objects: those that are scored, empty where each case has
    its own, with several values where they are regions; declared: all labels of the dataset; cases; read: a case, to
    what is asked about.
    """

    name: str
    split: str
    objects: Mapping[str, int | tuple[int, ...]]
    declared: Mapping[str, int]
    cases: tuple[Case, ...]
    read: Callable[[Case], Scene]

    @property
    def of_the_challenge(self) -> bool:
        """Whether the cases are files of the CVPR 2025 challenge, with boxes on axial slices."""
        return not self.objects

    @property
    def classes(self) -> dict[str, int]:
        """The labels that the scored objects are made of."""
        values = {each for value in self.objects.values() for each in (value if isinstance(value, tuple) else (value,))}
        return {name: value for name, value in self.declared.items() if value in values}

    @property
    def ignore(self) -> int | None:
        """The value of voxels whose truth is not known, nnU-Net's "ignore"."""
        return self.declared.get(IGNORE)


def source_of(folder: Path, split: str | None, fold: int, wanted: Sequence[str] | None) -> Source:
    """The chosen cases of a folder, of the test part if no split is given; `wanted` are objects, None for all."""
    files = [] if (folder / "dataset.json").is_file() else sorted(folder.glob("*.npz"))
    if files:
        if split not in (None, "all") or fold:
            raise BadInput(f"{folder} holds files of the challenge, which have no parts: leave --split and --fold out")
        return _challenge(folder, files, wanted)
    dataset, cases = chosen_cases(folder, split or "test", fold)
    values = _chosen(dataset, wanted)

    def read(case: Case) -> Scene:
        volume = read_image(case)
        return Scene(case.name, volume, Objects(read_label(case, volume.grid), values, dataset.ignored))

    said = f"{split or 'test'}, fold {fold}" if fold else split or "test"
    return Source(dataset.name, said, values, dataset.labels, tuple(cases), read)


def _chosen(dataset: Dataset, wanted: Sequence[str] | None) -> dict[str, int | tuple[int, ...]]:
    if not dataset.scored:
        raise BadInput("the dataset declares no label but the background: there is nothing to score")
    if wanted is None:
        return dataset.scored
    objects = {**dataset.objects, **dataset.scored}
    if not wanted:
        raise BadInput(f"--objects names none of {', '.join(objects)}")
    for each in wanted:
        if each not in objects:
            raise BadInput(f"--objects {each}: the dataset has {', '.join(objects)}")
    return {each: objects[each] for each in wanted}


def _challenge(folder: Path, files: list[Path], wanted: Sequence[str] | None) -> Source:
    """Files with images, boxes and labels; the labels may lie in files of the same names in a folder `gts` beside."""
    if wanted is not None:
        raise BadInput(f"{folder} holds files of the challenge, whose classes have no names: leave --objects out")

    def read(case: Case) -> Scene:
        task = read_task(case.images[0])
        labels = task.labels
        if labels is None and case.label is not None:
            labels = read_task(case.label, image=False).labels
        if labels is None:
            raise BadInput(f"{case.images[0].name} holds no gts, and there is no gts/{case.images[0].name}")
        values = {f"class {value}": value for value in np.unique(labels).tolist() if value}
        boxes = dict(zip(values, (box for of in task.prompts for box in of[:1] if isinstance(box, Box)), strict=False))
        return Scene(case.name, task.volume, Objects(labels, values), boxes)

    labelled = folder / "gts"
    cases = tuple(
        Case(file.stem, (file,), labelled / file.name if (labelled / file.name).is_file() else None) for file in files
    )
    return Source(folder.resolve().name, "all", {}, {}, cases, read)
