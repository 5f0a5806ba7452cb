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

from collections.abc import Mapping, Sequence
from pathlib import Path

from volsam.data import studies
from volsam.data.dataset import FOLDERS, IGNORE, Case, Dataset, Part, read_dataset, read_table, write_table
from volsam.data.making import ENDING, Made, making, write_images, write_label
from volsam.data.presets import Preset
from volsam.data.splits import NAME as SPLITS
from volsam.data.splits import Fold, write_splits
from volsam.data.tasks import binary, merged, tasks_in
from volsam.data.video import FRAMES, film, sequences
from volsam.errors import BadFile, BadInput

VALIDATION = ("imagesVa", "labelsVa")


def layout_of(source: Path) -> str:
    """The layout of a folder: sam-med3d, decathlon, nnunet, endovis18 or studies."""
    if (source / "dataset.json").is_file():
        return "decathlon" if isinstance(read_table(source).get("training"), list) else "nnunet"
    if tasks_in(source):
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
            return merged(source, folder)
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
            return binary(read_dataset(source), folder, preset)
        return [_renewed(source, folder, preset)]


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
        preset.require_labels(training.labels.values(), training.name)
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
