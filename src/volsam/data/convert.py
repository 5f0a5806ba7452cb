"""Datasets of other layouts made into nnU-Net's, and back into binary tasks.

What is read           how it is told
SAM-Med3D              STRUCTURE/MODALITY_DATASET/{imagesTr,labelsTr}, binary labels; the root, or one of its folders
Decathlon              a dataset.json that lists its cases
nnU-Net                imagesTr/<case>_0000.nii.gz
EndoVis18              sequences of frames, SEQUENCE/{left_frames,labels}/*.png
studies                scans with labels/TAG beside them, as the viewer and the server save them
two folders            scans in one, labels of the same names in the other

Files whose content stays as it is are copied byte for byte; others are written anew on the same grid.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from volsam.data import studies
from volsam.data.dataset import (
    FOLDERS,
    IGNORE,
    Case,
    Dataset,
    Part,
    mapped,
    read_dataset,
    read_image,
    read_label,
    read_table,
    write_table,
)
from volsam.data.io import read_volume, volume_name, write_volume
from volsam.data.presets import Preset
from volsam.data.splits import NAME as SPLITS
from volsam.data.splits import Fold, write_splits
from volsam.data.video import FRAMES, film, sequences
from volsam.errors import BadFile, BadInput

ENDING = ".nii.gz"
VALIDATION = ("imagesVa", "labelsVa")


@dataclass(frozen=True)
class Made:
    """A dataset that was written: its name, cases and labels, and what a user should know."""

    name: str
    cases: int
    labels: int
    notes: tuple[str, ...] = ()


def layout_of(source: Path) -> str:
    """The layout of a folder: sam-med3d, decathlon, nnunet, endovis18 or studies."""
    if (source / "dataset.json").is_file():
        return "decathlon" if isinstance(read_table(source).get("training"), list) else "nnunet"
    if _tasks(source):
        return "sam-med3d"
    if sequences(source):
        return "endovis18"
    if any((source / studies.LABELS).glob("*/")):
        return "studies"
    raise BadFile(
        f"{source} has no layout that is known: neither dataset.json, nor STRUCTURE/MODALITY_DATASET/imagesTr, nor "
        f"SEQUENCE/{FRAMES}, nor scans with {studies.LABELS}/TAG beside them; of two folders give the other by --labels"
    )


def gather(
    source: Path,
    output: Path,
    *,
    labels: Path | None = None,
    names: Mapping[str, int] | None = None,
    tag: str = studies.FINAL,
) -> Made:
    """Make a dataset of scans and the labels that were drawn of them, which no dataset.json describes.

    Args:
        source: a folder of studies, or with `labels` any folder of scans.
        output: a folder that is not there yet, or is empty.
        labels: a folder with a label for each scan, of its name.
        names: of the values in those labels; without them "label 1" and so on.
        tag: of the labels in a folder of studies.

    Raises:
        BadInput, BadFile: nothing is labelled, or a label does not lie on the grid of its scan.
    """
    notes: list[str] = []
    found = studies.drawn(source, tag) if labels is None else studies.paired(source, labels, names or {})
    with making(output) as folder:
        count, values = studies.write_dataset(found, folder, output.name, notes.append)
    return Made(output.name, count, len(values), tuple(notes))


def convert(source: Path, output: Path, *, to: str = "nnunet", preset: Preset | None = None) -> list[Made]:
    """Write a dataset in another layout into a new folder; gives what was made.

    Args:
        source: a folder in one of the layouts above.
        output: a folder that is not there yet, or is empty. Of several datasets in one source each gets a folder in it.
        to: "nnunet", or "sam-med3d" for a binary task of every label.
        preset: keep and join labels as a paper did; gives the colours of pictures.
    """
    if to not in ("nnunet", "sam-med3d"):
        raise BadInput(f"--to is nnunet or sam-med3d, got {to!r}")
    layout = layout_of(source)
    if to == "sam-med3d" and layout not in ("nnunet", "decathlon"):
        raise BadInput(f"{source} is of layout {layout}: binary tasks are made of nnunet or decathlon")
    with making(output) as folder:
        if layout == "sam-med3d":
            return _merged(source, folder)
        if layout == "studies":
            raise BadInput(f"{source} is a folder of studies: its labels are no dataset yet, see `gather`")
        if layout == "endovis18":
            if preset is None or not preset.colours:
                raise BadInput(
                    f"{source} holds frames and coloured labels: add --preset endovis18, which knows colours"
                )
            cases, labels = film(source, folder, preset)
            return [Made(preset.title, cases, labels, ("lengths are pixels and frames, taken for millimetres",))]
        if to == "sam-med3d":
            return _binary(read_dataset(source), folder, preset)
        return [_renewed(source, folder, preset)]


@contextmanager
def making(output: Path) -> Iterator[Path]:
    """A folder beside `output` to work in, which takes its name when all went well; `output` may be an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"-o {output} exists and is not an empty folder: give the name of a new one")
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        folder.chmod(0o755)
    except OSError as error:
        raise BadInput(f"-o {output}: the folder cannot be made ({error.strerror}): give another one") from None
    try:
        yield folder
        if output.exists():  # an empty folder, which some systems do not replace
            output.rmdir()
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- nnU-Net and Decathlon -------------------------------------------------------------------------------------------


def _renewed(source: Path, folder: Path, preset: Preset | None) -> Made:
    """The same dataset as nnU-Net v2 wants it."""
    training = read_dataset(source)
    parts: list[tuple[Part, Dataset]] = [("training", training)]
    if has_test(source):
        parts.append(("test", read_dataset(source, "test")))
    names: Mapping[str, int | Sequence[int]] = training.labels
    values, extra = None, {}
    if training.regions:
        names = {"background": 0, **training.regions}
        names |= {} if training.ignored is None else {IGNORE: training.ignored}
        order = read_table(source).get("regions_class_order")
        extra = {} if order is None else {"regions_class_order": order}
    if preset is not None:
        names, values = preset.relabelled()
        _require_labels(training, preset)
    if "background" not in names:
        names = {"background": 0, **names}
    for part, dataset in parts:
        images, labels = (folder / name for name in FOLDERS[part])
        images.mkdir()
        if any(case.label is not None for case in dataset.cases):
            labels.mkdir()
        for case in dataset.cases:
            write_images(case, images)
            if case.label is not None:
                write_label(case.label, labels / f"{case.name}{ENDING}", values)
    chosen_by = _validation_cases(source, len(training.channels))
    for case in chosen_by:
        write_images(case, folder / FOLDERS["training"][0])
        if case.label is not None:
            write_label(case.label, folder / FOLDERS["training"][1] / f"{case.name}{ENDING}", values)
    if preset is not None:
        extra = {"description": f"labels as in {preset.paper}"}
    count = len(training.cases) + len(chosen_by)
    write_table(folder, training.name, training.channels, names, count, **extra)
    labelled = [case.name for case in training.cases if case.label is not None]
    if preset is not None and preset.test is not None:
        write_splits(preset.folds(labelled), folder / SPLITS)
    elif chosen_by:
        write_splits([Fold(tuple(labelled), tuple(case.name for case in chosen_by))], folder / SPLITS)
    return Made(training.name, sum(len(dataset.cases) for _, dataset in parts) + len(chosen_by), len(names) - 1)


def _validation_cases(source: Path, channels: int) -> list[Case]:
    """The labelled cases that AMOS22 has in folders of their own; nnU-Net has them among the training cases."""
    images, labels = (source / name for name in VALIDATION)
    found = []
    for label in sorted(labels.glob(f"*{ENDING}")) if images.is_dir() else ():
        name = label.name.removesuffix(ENDING)
        apart = tuple(images / f"{name}_{channel:04d}{ENDING}" for channel in range(channels))
        files = apart if apart[0].is_file() else (images / label.name,) * channels
        if not all(file.is_file() for file in files):
            raise BadFile(f"{label} has no image: {files[0]} is missing")
        found.append(Case(name, files, label))
    return found


def has_test(source: Path) -> bool:
    """Whether there are test cases whose files are there; Decathlon's tables may list some without."""
    if not any((source / FOLDERS["test"][0]).glob("*")):
        return False
    return any(all(path.is_file() for path in case.images) for case in read_dataset(source, "test").cases)


def _require_labels(dataset: Dataset, preset: Preset) -> None:
    unknown = sorted(set(dataset.labels.values()) - set(preset.labels.values()))
    if unknown:
        raise BadInput(
            f"--preset {preset.name} knows the label values {sorted(preset.labels.values())}, {dataset.name} also has "
            f"{unknown}: is it that dataset?"
        )


def write_images(case: Case, folder: Path) -> None:
    """A file for each channel of a case, as nnU-Net calls them; those that are as they should be are copied."""
    if len(set(case.images)) == len(case.images) and all(path.name.endswith(ENDING) for path in case.images):
        for channel, path in enumerate(case.images):
            shutil.copyfile(path, folder / f"{case.name}_{channel:04d}{ENDING}")
        return
    image = read_image(case)
    for channel in range(image.channels):
        write_volume(image.with_data(image.data[channel]), folder / f"{case.name}_{channel:04d}{ENDING}")


def write_label(source: Path, target: Path, values: Mapping[int, int] | None) -> None:
    """A label with other values, or as it is, then byte for byte where its format may stay."""
    if values is None and source.name.endswith(ENDING):
        shutil.copyfile(source, target)
        return
    volume = read_volume(source)
    labels = read_label(Case(volume.name, (), source))
    if values is not None:
        labels = mapped(labels, values)
    write_volume(volume.with_data(labels), target)


def _binary(dataset: Dataset, folder: Path, preset: Preset | None) -> list[Made]:
    """A task STRUCTURE/MODALITY_DATASET for every label, of the cases that have it."""
    if preset is not None:
        _require_labels(dataset, preset)
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


# --- SAM-Med3D -------------------------------------------------------------------------------------------------------


def _tasks(source: Path) -> list[Path]:
    """Folders of tasks: the source itself, or one or two levels below."""
    for pattern in ("imagesTr", "*/imagesTr", "*/*/imagesTr"):
        found = sorted(path.parent for path in source.glob(pattern) if (path.parent / "labelsTr").is_dir())
        if found:
            return [] if any((task / "dataset.json").is_file() for task in found) else found
    return []


def _merged(source: Path, folder: Path) -> list[Made]:
    """One dataset for each MODALITY_DATASET, its labels being the structures that have a task of that name."""
    groups: dict[str, list[Path]] = {}
    for task in _tasks(source):
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
