"""A dataset of three scans with a bright lesion in each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from volsam.data.io import write_volume
from volsam.geometry import Grid
from volsam.volume import Volume

SHAPE = (26, 24, 18)
SPACING = (1.0, 1.0, 1.5)
LABELS = {"background": 0, "lesion": 1, "cyst": 2}


def write_lesions(
    folder: Path,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    labels: Mapping[str, int | list[int]] = LABELS,
) -> Path:
    """Balls of 6, 7 and 8 mm around 12, 11, 12 mm, value 1; the corner of the first scan has the value 2."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    places = np.moveaxis(np.indices(shape), 0, -1) * np.array(spacing)
    for number in range(3):
        grid = Grid.at(shape, spacing, (number, 2, -5))
        lesion = np.linalg.norm(places - [12, 11, 12], axis=-1) < 6 + number
        values = 40 + 80 * lesion + np.random.default_rng(number).normal(0, 4, shape)
        found = lesion.astype(np.uint8)
        if number == 0:
            found[:3, :3, :3] = 2
        write_volume(Volume(values.astype(np.int16), grid), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        write_volume(Volume(found, grid), folder / "labelsTr" / f"case{number}.nii.gz")
    table = {"name": "Lesions", "channel_names": {"0": "CT"}, "labels": dict(labels)}
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder
