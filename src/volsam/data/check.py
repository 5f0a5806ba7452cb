"""Everything that is wrong with a dataset, found in one run: files, grids, values, labels, images that occur twice."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from volsam.data.dataset import FOLDERS, Case, Dataset, misplaced, read_dataset, read_table, sources, whole_numbers
from volsam.data.io import read_volume
from volsam.data.splits import NAME as SPLITS
from volsam.data.splits import read_splits
from volsam.errors import BadInput, VolsamError
from volsam.geometry import Grid
from volsam.volume import Volume


def check(
    dataset: Dataset,
    seen: dict[bytes, str] | None = None,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> list[str]:
    """Everything that is wrong with a dataset, one line for each problem, found in one run; reads every file.

    Cases without a label are no problem; a dataset in which no case has one is. `seen` remembers what the images hold
    and where, so that an image that is both in the training and in the test part is found when one `seen` is given for
    both; `progress` passes on the cases, and may show how far it is.
    """
    problems = list(_folder_problems(dataset))
    contents = {} if seen is None else seen
    values: set[int] = set()
    for case in progress(dataset.cases):
        with _noticed() as notices:
            found = list(_case_problems(case, dataset, contents, values))
        # A file is read twice where it holds several channels, and then warns twice.
        problems += [f"{case.name}: {problem}" for problem in (*dict.fromkeys(notices), *found)]
    return problems + list(_label_absences(dataset, values))


def _folder_problems(dataset: Dataset) -> Iterator[str]:
    for name, count in Counter(case.name for case in dataset.cases).items():
        if count > 1:
            yield f"{name}: {count} cases have this name"
    if all(case.label is None for case in dataset.cases):
        yield "no case has a label"
    if len(dataset.cases) == 1 and dataset.part == "training":
        yield "there is one case only: none is left to validate on"
    declared = read_table(dataset.folder).get("numTraining")
    images = {path.resolve() for case in dataset.cases for path in case.images}
    if isinstance(declared, int) and declared != len(dataset.cases) and dataset.part == "training":
        yield f"dataset.json says numTraining {declared}, there are {len(dataset.cases)} cases"
    if dataset.part == "training" and (dataset.folder / SPLITS).is_file():
        yield from _split_problems(dataset)
    used = images | {case.label.resolve() for case in dataset.cases if case.label is not None}
    for name in FOLDERS[dataset.part]:
        for path in sorted((dataset.folder / name).glob("*")):
            if path.is_file() and not path.name.startswith(".") and path.resolve() not in used:
                yield f"{name}/{path.name} belongs to no case"


def _split_problems(dataset: Dataset) -> Iterator[str]:
    try:
        folds = read_splits(dataset.folder / SPLITS)
    except VolsamError as error:
        yield str(error)
        return
    named = {name for fold in folds for part in (fold.train, fold.val, fold.test) for name in part}
    cases = list(dataset.cases)
    if (dataset.folder / FOLDERS["test"][1]).is_dir():
        cases += read_dataset(dataset.folder, "test").cases
    labelled = {case.name: case.label is not None for case in cases}
    if unknown := sorted(named - set(labelled)):
        yield f"{SPLITS} names {_few(unknown)}, and there is no such case"
    if bare := sorted(name for name in named if not labelled.get(name, True)):
        yield f"{SPLITS} names {_few(bare)}, and there is no label of it"


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _label_absences(dataset: Dataset, values: set[int]) -> Iterator[str]:
    """Labels that are declared and never used, where there are labels at all; a test part may lack some."""
    if dataset.part == "test" or all(case.label is None for case in dataset.cases):
        return
    if not values & set(dataset.objects.values()):
        yield "no case has a voxel of any label of dataset.json"
        return
    for name, value in dataset.objects.items():
        if value not in values:
            yield f"no case has a voxel of {name!r} ({value})"


def _case_problems(case: Case, dataset: Dataset, contents: dict[bytes, str], found: set[int]) -> Iterator[str]:
    """Problems of one case; `contents` remembers what the images seen so far hold, to find copies, and `found` gets the
    values of the label.
    """
    volumes: list[Volume] = []
    for path, frame in sources(case):
        volume = _read(path, frame)
        if isinstance(volume, str):
            yield volume
            continue
        volumes.append(volume)
        yield from _image_problems(path, volume, volumes[0].grid)
    if len(volumes) == len(case.images):
        channels = sum(volume.channels for volume in volumes)
        if channels != len(dataset.channels):
            yield f"{channels} channels, dataset.json names {len(dataset.channels)}"
        place = case.name if dataset.part == "training" else f"{case.name} ({dataset.part})"
        twin = contents.setdefault(_digest(volumes), place)
        if twin != place:
            yield f"the image holds the same values as that of {twin}"
    if case.label is not None:
        yield from _label_problems(case.label, dataset, volumes[0].grid if volumes else None, found)


def _image_problems(path: Path, volume: Volume, first: Grid) -> Iterator[str]:
    if problem := misplaced(volume.grid, first):
        yield f"{path.name}: {problem} of the first channel"
    for channel in volume.data:
        if channel.min() == channel.max():
            yield f"{path.name}: every voxel has the value {channel.flat[0]}"


def _label_problems(path: Path, dataset: Dataset, grid: Grid | None, found: set[int]) -> Iterator[str]:
    volume = _read(path)
    if isinstance(volume, str):
        yield volume
        return
    if grid is not None and (problem := misplaced(volume.grid, grid)):
        yield f"label {path.name}: {problem} of the image"
    try:
        values = np.unique(whole_numbers(volume, path)).tolist()
    except BadInput as error:
        yield str(error)
        return
    found.update(values)
    if unknown := sorted(set(values) - set(dataset.labels.values()) - {0}):
        yield f"label {path.name}: the values {', '.join(map(str, unknown))} are not declared in dataset.json"
    if not set(values) - {0}:
        yield f"label {path.name}: no voxel is labelled"


@contextmanager
def _noticed() -> Iterator[list[str]]:
    """What the readers warn of, such as values that are not numbers, as a list instead of on the screen."""
    notices: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notices.append(record.getMessage())

    readers = logging.getLogger("volsam.data")
    handler = Handler(logging.WARNING)
    propagated, readers.propagate = readers.propagate, False
    readers.addHandler(handler)
    try:
        yield notices
    finally:
        readers.removeHandler(handler)
        readers.propagate = propagated


def _read(path: Path, frame: int | None = None) -> Volume | str:
    """The volume, or why it cannot be had."""
    if not path.is_file():
        return f"{path.parent.name}/{path.name} is missing"
    try:
        return read_volume(path, frame=frame)
    except VolsamError as error:
        return str(error)


def _digest(volumes: list[Volume]) -> bytes:
    digest = blake2b(digest_size=16)
    for volume in volumes:
        digest.update(repr((volume.data.shape, volume.data.dtype)).encode())
        digest.update(np.ascontiguousarray(volume.data).data)
    return digest.digest()
