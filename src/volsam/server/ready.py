"""Labels that are there already, as objects of a session that are corrected by clicks."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from volsam.data.dataset import Case, read_label
from volsam.data.io import volume_name
from volsam.data.studies import label_of, names_of
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import MaskHint
from volsam.server.problems import Problem
from volsam.server.volumes import require_room

# Values of one label; more are rather parts that a program has numbered.
MOST, HIGHEST = 255, 1 << 16
# Bytes for a voxel while a label is read.
ROOM = 12


def label_path(studies: Path, study: str, tag: str) -> Path:
    """The label of a study under a tag; 404 if there is none, 403 where it leads out of the folder of studies."""
    found = label_of(studies, study, tag)
    if found is None:
        raise Problem(404, f"{study} has no label of the tag {tag!r}: /api/v1/studies lists the tags")
    if not found.resolve().is_relative_to(studies.resolve()):
        raise Problem(403, f"the label {found.name} leads out of the folder of studies")
    return found


@dataclass(frozen=True, eq=False)
class Ready:
    """An object of a label: its value there, its name, and its mask."""

    value: int
    name: str
    mask: MaskHint


def objects_of(label: Path, grid: Grid, folder: Path | None = None) -> list[Ready]:
    """The objects of a label in the order of their values; `folder` may hold the names of all labels in it.

    Raises:
        BadInput: the label does not lie on `grid`, nothing is labelled in it, or it has more than `MOST` values.
        Problem: there is no room for it (413).
    """
    from scipy import ndimage  # takes long to load

    require_room(prod(grid.shape) * ROOM, label.name)
    labels = read_label(Case(volume_name(label), (), label), grid)
    highest = int(labels.max())
    if highest <= 0:
        raise BadInput(f"{label}: nothing is labelled in it, so there is nothing to correct")
    if highest > HIGHEST:
        raise BadInput(f"{label} holds the value {highest}, and values up to {HIGHEST} can be opened as objects")
    boxes = ndimage.find_objects(np.maximum(labels, 0))
    there = [value for value, box in enumerate(boxes, start=1) if box is not None]
    if len(there) > MOST:
        raise BadInput(f"{label} holds {len(there)} values, and at most {MOST} can be opened as objects")
    known = {value: name for name, value in names_of(label, folder).items()}
    found: dict[str, Ready] = {}
    for value in there:
        name = known.get(value, f"label {value}")
        name = f"{name} ({value})" if name in found else name
        box = boxes[value - 1]
        low, high = (box[0].start, box[1].start, box[2].start), (box[0].stop, box[1].stop, box[2].stop)
        found[name] = Ready(value, name, MaskHint(labels[box] == value, grid.crop(low, high)))
    return list(found.values())
