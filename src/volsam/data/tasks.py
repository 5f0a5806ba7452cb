"""The layout of SAM-Med3D: a binary task STRUCTURE/MODALITY_DATASET for every label; datasets made of such tasks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from volsam.data.dataset import Case, Dataset, read_image, read_label, write_table
from volsam.data.io import read_volume, volume_name, write_volume
from volsam.data.making import ENDING, Made, write_images
from volsam.data.presets import Preset
from volsam.errors import BadFile, BadInput


def tasks_in(source: Path) -> list[Path]:
    """Folders of tasks: the source itself, or one or two levels below."""
    for pattern in ("imagesTr", "*/imagesTr", "*/*/imagesTr"):
        found = sorted(path.parent for path in source.glob(pattern) if (path.parent / "labelsTr").is_dir())
        if found:
            return [] if any((task / "dataset.json").is_file() for task in found) else found
    return []


def merged(source: Path, folder: Path) -> list[Made]:
    """One dataset for each MODALITY_DATASET, its labels being the structures that have a task of that name."""
    groups: dict[str, list[Path]] = {}
    for task in tasks_in(source):
        groups.setdefault(task.resolve().name, []).append(task.resolve())
    made = []
    for name, tasks in groups.items():
        target = folder / name if len(groups) > 1 else folder
        target.mkdir(exist_ok=True)
        made.append(_merge(name, tasks, target))
    return made


def _merge(name: str, tasks: Sequence[Path], folder: Path) -> Made:
    labels = {"background": 0} | {task.parent.name: number for number, task in enumerate(tasks, start=1)}
    cases: dict[str, dict[int, Path]] = {}
    images: dict[str, Path] = {}
    unlabelled = 0
    for number, task in enumerate(tasks, start=1):
        for image in sorted((task / "imagesTr").iterdir()):
            label = task / "labelsTr" / image.name
            if image.name.startswith("."):
                continue
            if not label.is_file():
                unlabelled += 1
                continue
            case = volume_name(image)
            images.setdefault(case, image)
            cases.setdefault(case, {})[number] = label
    if not cases:
        raise BadFile(f"{tasks[0]} holds no image with a label of the same name in labelsTr")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    contested = 0
    for case, files in cases.items():
        write_images(Case(case, (images[case],)), folder / "imagesTr")
        contested += _write_merged(case, files, images[case], folder / "labelsTr" / f"{case}{ENDING}")
    modality = name.partition("_")[0].upper()
    channel = {"CT": "CT", "MR": "MRI", "MRI": "MRI"}.get(modality, modality or "image")
    write_table(folder, name, [channel], labels, len(cases))
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} images without a label were left out")
    if contested:
        notes.append(f"{contested} voxels are in two structures; they went to the later one")
    partly = sum(len(files) < len(tasks) for files in cases.values())
    if partly:
        notes.append(f"{partly} cases are not in every task; structures without a label there count as absent")
    return Made(name, len(cases), len(labels) - 1, tuple(notes))


def _write_merged(case: str, files: Mapping[int, Path], image: Path, target: Path) -> int:
    """Labels of all structures of a case in one file; how many voxels two of them claim."""
    first = read_volume(next(iter(files.values())))
    merged = np.zeros(first.grid.shape, np.uint8)
    contested = 0
    for number, path in files.items():
        mask = read_label(Case(case, (image,), path), first.grid) > 0
        contested += int(np.count_nonzero(merged[mask]))
        merged[mask] = number
    write_volume(first.with_data(merged), target)
    return contested


def binary(dataset: Dataset, folder: Path, preset: Preset | None) -> list[Made]:
    """A task STRUCTURE/MODALITY_DATASET for every label, of the cases that have it."""
    if preset is not None:
        preset.require_labels(dataset.labels.values(), dataset.name)
        wanted = dict(preset.scored)
    else:
        wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in dataset.scored.items()}
    if len(dataset.channels) > 1:
        raise BadInput(
            f"{dataset.name} has {len(dataset.channels)} channels, a task of SAM-Med3D has one: give one of one channel"
        )
    task = f"{_file_name(dataset.channels[0])}_{_file_name(dataset.name)}"
    counts = dict.fromkeys(wanted, 0)
    for case in dataset.cases:
        if case.label is None:
            continue
        volume = read_volume(case.label)
        labels = read_label(case)
        written: Path | None = None
        for name, values in wanted.items():
            mask = np.isin(labels, values)
            if not mask.any():
                continue
            place = folder / _file_name(name) / task
            for part in ("imagesTr", "labelsTr"):
                (place / part).mkdir(parents=True, exist_ok=True)
            counts[name] += 1
            target = place / "imagesTr" / f"{case.name}{ENDING}"
            if written is not None:
                _same_file(written, target)
            elif case.images[0].name.endswith(ENDING):
                shutil.copyfile(case.images[0], target)
            else:
                write_volume(read_image(case), target)
            written = target
            write_volume(volume.with_data(mask), place / "labelsTr" / f"{case.name}{ENDING}")
    notes = ("voxels labelled ignore are background there",) if dataset.ignored is not None else ()
    return [Made(f"{_file_name(name)}/{task}", count, 1, notes) for name, count in counts.items() if count]


def _same_file(written: Path, target: Path) -> None:
    """A second name for a file that was written here; a copy of it where a disk knows no second names."""
    try:
        target.hardlink_to(written)
    except OSError:
        shutil.copyfile(written, target)


def _file_name(text: str) -> str:
    """A name for a folder, without separators; SAM-Med3D splits at the first underscore."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text).split())
