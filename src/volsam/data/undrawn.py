"""A dataset in which only some slices are drawn: what was not drawn becomes nnU-Net's "ignore"."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from volsam.data.convert import has_test
from volsam.data.dataset import FOLDERS, IGNORE, Case, Dataset, read_dataset, read_label, read_table
from volsam.data.io import read_grid, read_volume, write_volume
from volsam.data.making import ENDING, making, write_images, write_label
from volsam.data.splits import NAME as SPLITS
from volsam.errors import BadInput
from volsam.geometry import Grid

Plane: TypeAlias = Literal["auto", "axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Of R A S, the axis across the slices of a plane."""


@dataclass(frozen=True)
class Marked:
    """What was found in a case: slices that are drawn, and slices that are not known."""

    case: str
    drawn: int
    unknown: int


def mark_undrawn(
    source: Path,
    output: Path,
    plane: Plane = "auto",
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> list[Marked]:
    """Write a dataset anew, with the slices that nobody has drawn labelled "ignore"; see `undrawn`.

    Raises:
        BadInput: the dataset has such a label already, or no case has a slice left out.
    """
    dataset = read_dataset(source)
    if dataset.ignored is not None:
        raise BadInput(f"{dataset.name} has a label {IGNORE!r} already: what was not drawn is told there")
    value = max(dataset.labels.values()) + 1
    found = []
    with making(output) as folder:
        for name in FOLDERS["training"]:
            (folder / name).mkdir()
        for case in progress(dataset.cases):
            write_images(case, folder / FOLDERS["training"][0])
            if case.label is not None:
                found.append(_marked(case, folder / FOLDERS["training"][1], plane, value))
        if not any(case.unknown for case in found):
            raise BadInput(f"every case of {dataset.name} is drawn in all slices from its first to its last")
        _describe(dataset, folder, value)
        _write_test(source, folder)
    return found


def undrawn(labels: NDArray[np.integer[Any]], axis: int) -> NDArray[np.bool_]:
    """Which slices across an axis are not known, by those of labels (i, j, k) that hold any.

    Where every fourth is drawn, these are the three before and after each of them. Farther away is background: the next
    slice to be drawn was looked at there, and held nothing. Where drawn slices mostly touch, all is known.
    """
    drawn = np.flatnonzero(labels.any(axis=tuple(other for other in range(3) if other != axis)))
    if len(drawn) < 2:  # one slice does not tell how far away the next would be
        return np.zeros(labels.shape[axis], bool)
    step = int(np.median(np.diff(drawn)))
    away = np.abs(np.arange(labels.shape[axis])[:, None] - drawn).min(axis=1)
    return (away > 0) & (away < step)


def _marked(case: Case, folder: Path, plane: Plane, value: int) -> Marked:
    assert case.label is not None
    volume = read_volume(case.label)
    labels = read_label(case, read_grid(case.images[0]))
    axes = [axis_across(volume.grid, name) for name in (ACROSS if plane == "auto" else (plane,))]
    unknown = {axis: undrawn(labels, axis) for axis in axes}
    axis = max(axes, key=lambda each: np.count_nonzero(unknown[each]))
    where = np.flatnonzero(unknown[axis])
    kept = labels.astype(np.promote_types(labels.dtype, np.min_scalar_type(value)))
    kept[(slice(None),) * axis + (where,)] = value
    write_volume(volume.with_data(kept), folder / f"{case.name}{ENDING}")
    drawn = np.count_nonzero(labels.any(axis=tuple(other for other in range(3) if other != axis)))
    return Marked(case.name, int(drawn), len(where))


def axis_across(grid: Grid, plane: str) -> int:
    """The axis of a file's arrays across the slices of a plane."""
    change = ornt_transform(io_orientation(grid.affine), axcodes2ornt(tuple("RAS")))
    return int(np.flatnonzero(change[:, 0] == ACROSS[plane])[0])


def _describe(dataset: Dataset, folder: Path, value: int) -> None:
    """dataset.json with one label more, and the splits."""
    table = read_table(dataset.folder)
    labels: dict[str, Any] = {**dataset.regions} or {**dataset.objects}
    table["labels"] = {"background": 0, **labels, IGNORE: value}
    for name in ("training", "test", "dataset", "modality"):  # files have the usual names now
        table.pop(name, None)
    table["channel_names"] = {str(number): name for number, name in enumerate(dataset.channels)}
    table["file_ending"] = ENDING
    (folder / "dataset.json").write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (dataset.folder / SPLITS).is_file():
        shutil.copyfile(dataset.folder / SPLITS, folder / SPLITS)


def _write_test(source: Path, folder: Path) -> None:
    """The test part as it is, in files of the usual names."""
    images, labels = FOLDERS["test"]
    if not has_test(source):
        return
    (folder / images).mkdir()
    for case in read_dataset(source, "test").cases:
        write_images(case, folder / images)
        if case.label is not None:
            (folder / labels).mkdir(exist_ok=True)
            write_label(case.label, folder / labels / f"{case.name}{ENDING}", None)
