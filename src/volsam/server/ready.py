"""Labels that are there already, as objects of a session that are corrected by clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volsam.data.dataset import Case, read_label
from volsam.data.io import volume_name
from volsam.data.studies import label_of, names_of
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import MaskHint
from volsam.server.problems import Problem
from volsam.server.strokes import hint

# Values of one label; more are rather parts that a program has numbered.
MOST = 255


def label_path(studies: Path, study: str, tag: str) -> Path:
    """The label of a study under a tag; 404 if there is none, 403 where it leads out of the folder of studies."""
    found = label_of(studies, study, tag)
    if found is None:
        raise Problem(404, f"{study} has no label of the tag {tag!r}: /api/v1/studies lists the tags")
    if not found.resolve().is_relative_to(studies.resolve()):
        raise Problem(403, f"the label {found.name} leads out of the folder of studies")
    return found


def objects_of(label: Path, grid: Grid, folder: Path | None = None) -> list[tuple[str, MaskHint]]:
    """The objects of a label by name, in the order of their values; `folder` may hold the names of all labels in it.

    Raises:
        BadInput: the label does not lie on `grid`, nothing is labelled in it, or it has more than `MOST` values.
    """
    labels = read_label(Case(volume_name(label), (), label), grid)
    names = {value: name for name, value in names_of(label, folder).items()}
    there = [value for value in np.unique(labels).tolist() if value > 0]
    if not there:
        raise BadInput(f"{label}: nothing is labelled in it, so there is nothing to correct")
    if len(there) > MOST:
        raise BadInput(f"{label} holds {len(there)} values, and at most {MOST} can be opened as objects")
    return [(names.get(value, f"label {value}"), hint(labels == value, grid)[0]) for value in there]
