"""A folder of images and labels in nnU-Net v2 layout, as a list of cases; the older Decathlon form is read too.

dataset.json                      channel_names, labels, file_ending
imagesTr/<case>_0000.nii.gz       one file for each channel
labelsTr/<case>.nii.gz            whole numbers on the image's grid; a case may lack its label
imagesTs, labelsTs                the same for the test part

The Decathlon form lists its cases (`training`), writes labels as {"1": "liver"} and calls the channels `modality`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from volsam.data.io import read_volume
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.volume import Volume

Part: TypeAlias = Literal["training", "test"]
Table: TypeAlias = dict[str, Any]

FOLDERS: dict[Part, tuple[str, str]] = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
# Two grids are the same place when no corner voxel lies farther apart than this part of a voxel; headers are float32.
SAME_PLACE = 0.02
# What nnU-Net calls the label of voxels whose truth is not known.
IGNORE = "ignore"


@dataclass(frozen=True)
class Case:
    """One subject: the file of each channel, and the label where there is one.

    A file that is named for every channel holds them all, as frames.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder, in order of their names, and what the label values and channels are called."""

    folder: Path
    name: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    cases: tuple[Case, ...]
    part: Part = "training"
    licence: str = ""
    """Of the data, as dataset.json says."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """nnU-Net's regions, which join label values and may overlap; none where every label has a value of its own."""

    @property
    def objects(self) -> dict[str, int]:
        """The labels without the background and without nnU-Net's "ignore"."""
        return {name: value for name, value in self.labels.items() if value != 0 and name != IGNORE}

    @property
    def ignored(self) -> int | None:
        """The value of voxels whose truth is not known, nnU-Net's "ignore"; None where all are known."""
        return self.labels.get(IGNORE)

    @property
    def scored(self) -> dict[str, int | tuple[int, ...]]:
        """What is looked for in the dataset: its regions, where it has some, or else its objects."""
        if not self.regions:
            return {**self.objects}
        return {name: values[0] if len(values) == 1 else values for name, values in self.regions.items()}

    def case(self, name: str) -> Case:
        """The case of that name."""
        for case in self.cases:
            if case.name == name:
                return case
        raise BadInput(f"{self.name} has no case {name!r}; its {len(self.cases)} cases begin with {self.cases[0].name}")


def read_dataset(folder: str | Path, part: Part = "training") -> Dataset:
    """The training or the test cases of a dataset folder; reads dataset.json and file names, no image."""
    folder = Path(folder)
    table = read_table(folder)
    channels = _channels(table, folder)
    labels, regions = read_labels(table, folder)
    ending = str(table.get("file_ending", ".nii.gz"))
    entries = _entries(table, part)
    if entries:
        cases = [_case_listed(folder, part, entry, len(channels), ending) for entry in entries]
    else:
        cases = list(_cases_found(folder, part, len(channels), ending))
    if not cases:
        raise BadFile(
            f"{folder / FOLDERS[part][0]} holds no case: the first channel of each is called <case>_0000{ending}"
        )
    name = str(table.get("name") or folder.resolve().name)
    licence = next((str(table[key]) for key in ("licence", "license") if table.get(key)), "")
    cases = sorted(cases, key=lambda case: case.name)
    return Dataset(folder, name, labels, channels, tuple(cases), part, licence, regions)


def read_image(case: Case, channels: int | None = None) -> Volume:
    """The image of a case, its channels, or so many of them, stacked (c, i, j, k)."""
    wanted = list(sources(case))[:channels]
    volumes = [read_volume(path, frame=frame) for path, frame in wanted]
    for (path, _), volume in zip(wanted, volumes, strict=True):
        if problem := misplaced(volume.grid, volumes[0].grid):
            raise BadInput(f"{path}: {problem} of the first channel; the channels of a case lie on one grid")
    if len(volumes) == 1:
        return volumes[0]
    return volumes[0].with_data(np.concatenate([volume.data for volume in volumes]), case.name)


def read_label(case: Case, grid: Grid | None = None) -> NDArray[np.integer[Any]]:
    """The label values (i, j, k) of a case; with `grid`, a label that lies elsewhere is refused."""
    if case.label is None:
        raise BadInput(f"case {case.name} has no label")
    volume = read_volume(case.label)
    if grid is not None and (problem := misplaced(volume.grid, grid)):
        raise BadInput(f"{case.label}: {problem} of the image; a label lies on the grid of its image")
    return whole_numbers(volume, case.label)


def mapped(labels: NDArray[np.integer[Any]], values: Mapping[int, int]) -> NDArray[np.uint8]:
    """Labels with new values, of which each old one has one."""
    highest = max(int(labels.max()), *values)
    table = np.zeros(highest + 1, np.uint8)
    for old, new in values.items():
        table[old] = new
    return table[labels]


# ---------------------------------------------------------------------------------------------------------------------
# dataset.json


def read_table(folder: Path) -> Table:
    """What dataset.json says, unchecked."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise BadFile(f"{folder} is not a dataset: there is no dataset.json beside imagesTr and labelsTr")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadFile(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(table, dict):
        raise BadFile(f"{path} holds a {type(table).__name__}, not a table with channel_names and labels")
    return table


def write_table(
    folder: Path,
    name: str,
    channels: Sequence[str],
    labels: Mapping[str, int | Sequence[int]],
    cases: int,
    **more: Any,
) -> None:
    """Write dataset.json of an nnU-Net dataset."""
    table = {
        "name": name,
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _channels(table: Table, folder: Path) -> tuple[str, ...]:
    """Names of the channels in order; `channel_names` since nnU-Net v2, `modality` before."""
    for key in ("channel_names", "modality"):
        named = table.get(key)
        if isinstance(named, dict) and named and all(number.isdigit() for number in named):
            return tuple(str(named[number]) for number in sorted(named, key=int))
    got = table.get("channel_names")
    raise BadInput(f'{folder / "dataset.json"}: "channel_names" is a table such as {{"0": "CT"}}, got {got!r}')


def read_labels(table: Table, folder: Path) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Label names and their values, from {"liver": 1} (nnU-Net v2) or {"1": "liver"} (before), and regions.

    Where some labels join several values, as {"tumour": [1, 2], "core": [2]}, these are regions, and so are the others.
    Labels are then the values themselves, named as the region that has that one alone, or "label 1".
    """
    where = f'{folder / "dataset.json"}: "labels"'
    labels = table.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise BadInput(f'{where} is a table such as {{"background": 0, "liver": 1}}, got {labels!r}')
    if all(key.isdigit() and isinstance(value, str) for key, value in labels.items()):
        labels = {name: int(value) for value, name in labels.items()}
    regions: dict[str, tuple[int, ...]] = {}
    if any(isinstance(value, list) for value in labels.values()):
        regions = {
            name: _joined(value, f"{where}: {name!r}") for name, value in labels.items() if value not in (0, [0])
        }
        labels = _parts_of(regions, where)
        regions.pop(IGNORE, None)
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadInput(f"{where}: the value of {name!r} is a whole number from 0, got {value!r}")
    twice = [value for value, count in Counter(labels.values()).items() if count > 1]
    if twice:
        names = [name for name, value in labels.items() if value == twice[0]]
        raise BadInput(f"{where}: {' and '.join(map(repr, names))} have the same value {twice[0]}")
    return labels, regions


def _parts_of(regions: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    """The values that regions are made of, each as a label with a name."""
    ignored = regions.get(IGNORE, ())
    if len(ignored) > 1 or any(set(ignored) & set(values) for name, values in regions.items() if name != IGNORE):
        raise BadInput(f"{where}: {IGNORE!r} has one value that is in no region, got {list(ignored)}")
    alone = {values[0]: name for name, values in regions.items() if len(values) == 1}
    parts = {value: alone.get(value, f"label {value}") for values in regions.values() for value in values}
    if taken := [name for value, name in parts.items() if value not in alone and name in regions]:
        raise BadInput(f"{where}: {taken[0]!r} is what a part of a region is called here: give it another name")
    return {"background": 0, **{name: value for value, name in sorted(parts.items())}}


def _joined(value: Any, where: str) -> tuple[int, ...]:
    """The values of a region."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in values):
        raise BadInput(f"{where} joins whole numbers from 1, such as [1, 2], got {value!r}")
    return tuple(sorted(set(values)))


def _entries(table: Table, part: Part) -> list[Table]:
    """The cases that dataset.json lists, as {"name"?, "image", "label"?}; none where the folders say it."""
    if part == "training" and isinstance(table.get("dataset"), dict):
        return [
            {"name": name, "image": entry.get("images"), "label": entry.get("label")}
            for name, entry in table["dataset"].items()
        ]
    listed = table.get(part)
    if not isinstance(listed, list):
        return []
    return [entry if isinstance(entry, dict) else {"image": entry} for entry in listed]


def _case_listed(folder: Path, part: Part, entry: Table, channels: int, ending: str) -> Case:
    images, label = entry.get("image"), entry.get("label")
    paths = [path for path in (images if isinstance(images, list) else [images]) if isinstance(path, str)]
    if not paths or not isinstance(label, str | None):
        raise BadInput(f"{folder / 'dataset.json'}: a case names its image and label files, got {entry}")
    found = tuple(folder / path for path in paths)
    if len(found) == 1:
        found = _channel_files(found[0], channels, ending)
    stem = _stem(found[0].name, ending)
    bare = stem.removesuffix("_0000")
    name = entry.get("name") or (_stem(Path(label).name, ending).removesuffix("_0000") if label else bare)
    if label is None and part == "test":
        # These lists name the images of the test part alone, whose labels come later, if ever.
        beside = f"{FOLDERS[part][1]}/{bare}{found[0].name[len(stem) :]}"
        label = beside if (folder / beside).is_file() else None
    return Case(str(name), found, folder / label if label else None)


def _channel_files(path: Path, channels: int, ending: str) -> tuple[Path, ...]:
    """The files of all channels, from the one listed; nnU-Net v1 lists case.nii.gz and means case_0000.nii.gz."""
    stem = _stem(path.name, ending)
    bare = stem.removesuffix("_0000")
    first = path.with_name(f"{bare}_0000{path.name[len(stem) :]}")
    if path == first or (first.is_file() and not path.is_file()):
        return tuple(path.with_name(f"{bare}_{channel:04d}{path.name[len(stem) :]}") for channel in range(channels))
    return (path,) * channels


def _cases_found(folder: Path, part: Part, channels: int, ending: str) -> Iterator[Case]:
    images, labels = (folder / name for name in FOLDERS[part])
    if not images.is_dir():
        raise BadFile(f"{folder} has no {images.name}, where the images of the {part} cases belong")
    for first in sorted(images.glob(f"*_0000{ending}")):
        if first.name.startswith("."):
            continue
        name = first.name.removesuffix(f"_0000{ending}")
        label = labels / f"{name}{ending}"
        files = tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        yield Case(name, files, label if label.is_file() else None)


def _stem(name: str, ending: str) -> str:
    """A file's name without its ending, the declared one or another usual one."""
    for known in (ending, ".nii.gz", ".nii", ".mha", ".nrrd"):
        if name.endswith(known):
            return name.removesuffix(known)
    return Path(name).stem


# ---------------------------------------------------------------------------------------------------------------------
# What both readers and checks need


def sources(case: Case) -> Iterator[tuple[Path, int | None]]:
    """Where each channel is: a file, and the frame in it where one file holds them all."""
    together = len(case.images) > 1 and len(set(case.images)) == 1
    for channel, path in enumerate(case.images):
        yield path, channel if together else None


def misplaced(grid: Grid, reference: Grid) -> str | None:
    """How `grid` differs from `reference`, as the start of a sentence, or None where they are the same place."""
    if grid.shape != reference.shape:
        return f"its shape {_size(grid)} is not the shape {_size(reference)}"
    corners = np.array(list(product(*((0, size - 1) for size in grid.shape))))
    apart = float(np.linalg.norm(grid.to_world(corners) - reference.to_world(corners), axis=1).max())
    if apart > SAME_PLACE * reference.spacing.min():
        return f"its voxels lie up to {apart:.3g} mm away from those"
    return None


def _size(grid: Grid) -> str:
    return " × ".join(map(str, grid.shape))


def whole_numbers(volume: Volume, path: Path) -> NDArray[np.integer[Any]]:
    """Label values (i, j, k) in the smallest type that holds them; files may store them as floats."""
    if volume.channels != 1:
        raise BadInput(f"label {path.name}: one value in each voxel is expected, got {volume.channels}")
    values = volume.data[0]
    if not np.issubdtype(values.dtype, np.integer):
        whole = np.rint(values)
        if np.abs(whole - values).max() > 1e-3:
            raise BadInput(f"label {path.name}: holds values that are not whole numbers")
        values = whole
    if values.min() < 0:
        raise BadInput(f"label {path.name}: holds negative values")
    kept: NDArray[np.integer[Any]] = values.astype(np.min_scalar_type(int(values.max())), copy=False)
    return kept
