"""Scans and the labels that people draw of them, outside of any dataset, and datasets made of both.

STUDIES/.../ID.EXT              a scan, in subfolders too; a folder of DICOM slices is one
        labels/TAG/.../ID.EXT   its label; tags are `final` (a person's), `original` (a model's), or any other
                     ID.json    beside a label: what its values are called, and how it came to be
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.data.dataset import Case, read_label, write_table
from volsam.data.dicom import is_slice
from volsam.data.io import READABLE, WRITABLE, read_volume, volume_name, write_volume
from volsam.data.preparation import UNKNOWN
from volsam.errors import BadFile, BadInput

LABELS = "labels"
FINAL, ORIGINAL = "final", "original"
# What the values of all labels in a folder are called, name by name.
NAMES = "labels.json"
# So many files of no known ending are looked into, to find that a folder is a DICOM series.
LOOKED_INTO = 3
# What lies beside the slices on a disc.
NO_SLICE = ("DICOMDIR",)
LONGEST_NAME = 100


@dataclass(frozen=True)
class Drawn:
    """A scan and its label.

    names: of the label's values, as far as they are known; exact: whether they are what a user has said of this very
    label, and not what a program has noted, see `renumbered`.
    """

    identity: str
    image: Path
    label: Path
    names: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False


# --- finding ---------------------------------------------------------------------------------------------------------


def scans(studies: Path, *, linked: bool = False) -> Iterator[str]:
    """Every scan in a folder, as a path relative to it, in order; a folder of DICOM slices is one.

    linked: also in folders that are links, each of them once.
    """
    seen: set[Path] = set()
    for folder, folders, files in os.walk(studies, followlinks=linked):
        here = Path(folder)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if here == studies and LABELS in folders:
            folders.remove(LABELS)
        slices = set() if here == studies else _slices(here, files)
        if slices:
            yield here.relative_to(studies).as_posix()
        for name in sorted(set(files) - slices):
            if not name.startswith(".") and name.lower().endswith(READABLE) and (here / name).exists():
                yield (here / name).relative_to(studies).as_posix()


def _slices(folder: Path, files: Sequence[str]) -> set[str]:
    """The names of DICOM slices, by their ending; discs have slices without any."""
    found = {name for name in files if name.lower().endswith((".dcm", ".ima"))}
    if not found:
        others = [name for name in files if not name.lower().endswith(READABLE) and not name.startswith(".")]
        others = sorted(set(others) - set(NO_SLICE))[:LOOKED_INTO]
        with suppress(OSError):  # one that may not be read is no reason to list none
            found = {name for name in others if (folder / name).is_file() and is_slice(folder / name)}
    return found


def stem(relative: str) -> str:
    """A path relative to the folder of studies, without the ending of the file."""
    parent = PurePosixPath(relative).parent
    return (parent / volume_name(PurePosixPath(relative).name)).as_posix()


def clean_name(name: str) -> str:
    """The last part of a name or path that somebody gave, fit for a file here."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip().lstrip(".")
    kept = "".join(letter if letter.isalnum() or letter in "._- " else "_" for letter in last)
    return kept[-LONGEST_NAME:] or "volume"


def label_files(folder: Path) -> list[Path]:
    """The labels in a folder and below, in order."""
    return [file for file in sorted(folder.rglob("*")) if _is_label(file)]


def versions(label: Path) -> list[Path]:
    """The files that hold a label as well, under other endings: where one is saved they are out of date."""
    name = volume_name(label)
    if not label.parent.is_dir():
        return []
    return [file for file in label.parent.iterdir() if file != label and _is_label(file) and volume_name(file) == name]


def is_label_name(name: str) -> bool:
    """Whether a file of that name is a label, whose format volsam writes and reads."""
    return name.lower().endswith(WRITABLE) and not name.startswith(".")


def _is_label(file: Path) -> bool:
    return is_label_name(file.name) and file.is_file()


def record_of(label: Path) -> Path:
    """The file beside a label that tells what is in it."""
    return label.with_name(f"{volume_name(label)}.json")


def names_of(label: Path, folder: Path | None = None) -> dict[str, int]:
    """What the values of a label are called; nothing where no file tells.

    The file beside it does, or `labels.json` in `folder`, which `volsam predict` writes for all labels at once.
    """
    with suppress(OSError, ValueError, LookupError, TypeError):
        listed = json.loads(record_of(label).read_text(encoding="utf-8"))["labels"]
        return {str(item["name"]): int(item["number"]) for item in listed}
    with suppress(OSError, ValueError, AttributeError, TypeError):
        listed = json.loads(((folder or label.parent) / NAMES).read_text(encoding="utf-8"))
        return {str(name): int(value) for name, value in listed.items() if value != 0}
    return {}


def label_of(studies: Path, study: str, tag: str) -> Path | None:
    """The label of a scan under a tag; None if there is none. Of several endings the newest file counts."""
    place = studies / LABELS / tag / stem(study)
    if not place.parent.is_dir():
        return None
    found = [file for file in place.parent.iterdir() if _is_label(file) and volume_name(file) == place.name]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def drawn(studies: Path, tag: str = FINAL) -> list[Drawn]:
    """The labelled scans of a folder of studies."""
    place = studies / LABELS / tag
    labels = {stem(file.relative_to(place).as_posix()): file for file in label_files(place)}
    found = [(path, labels[stem(path)]) for path in scans(studies) if stem(path) in labels]
    if not found:
        tags = ", ".join(sorted(each.name for each in (studies / LABELS).glob("*/"))) or "none"
        raise BadFile(f"{studies}: no scan has a label in {LABELS}/{tag}; there are labels of the tags: {tags}")
    return [Drawn(stem(path), studies / path, label, names_of(label, place)) for path, label in found]


def paired(images: Path, labels: Path, names: Mapping[str, int]) -> list[Drawn]:
    """The scans of one folder with the labels of the same paths in another; CASE.EXT or CASE_0000.EXT with CASE.EXT.

    Where folders differ the name alone tells, if no other scan and no other label has it.

    Raises:
        BadFile: no scan has a label.
        BadInput: a name is that of several.
    """
    files = {stem(file.relative_to(labels).as_posix()): file for file in label_files(labels)}
    there = [path for path in scans(images) if labels.resolve() not in (images / path).resolve().parents]
    of_files, of_scans = (Counter(map(_case_of, each)) for each in (files, map(stem, there)))
    by_name = {_case_of(key): key for key in files}
    found = []
    for path in there:
        key = next((key for key in (stem(path), stem(path).removesuffix("_0000")) if key in files), None)
        if key is None:
            name = _case_of(stem(path))
            key = by_name.get(name)
            if key is not None and (of_files[name] > 1 or of_scans[name] > 1):
                raise BadInput(f"which label is that of {path}? Several scans or labels are called {name}")
        if key is not None:
            found.append(
                Drawn(key, images / path, files[key], names or names_of(files[key], labels), exact=bool(names))
            )
    if not found:
        raise BadFile(f"no scan in {images} has a label of its name in {labels}")
    return found


def _case_of(path: str) -> str:
    return PurePosixPath(path).name.removesuffix("_0000")


# --- a dataset -------------------------------------------------------------------------------------------------------


def write_dataset(
    cases: Iterable[Drawn], folder: Path, name: str, say: Callable[[str], Any] = print
) -> tuple[int, dict[str, int]]:
    """Write labelled scans as a dataset in nnU-Net's layout; gives how many there are, and the labels by name.

    The same name has the same value in all of them, whatever it was in its file: files number what was drawn in the
    order in which it was drawn. Of several channels the first is written. `say` is told of scans that are left out.

    Raises:
        BadInput: nothing is labelled, or a label does not lie on the grid of its scan.
    """
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    values: dict[str, int] = {}
    written: set[str] = set()
    for case in cases:
        called = clean_name(case.identity.replace("/", "_"))
        if called in written:
            called = next(name for number in count(2) if (name := f"{called}_{number}") not in written)
        volume = read_volume(case.image)
        labels = read_label(Case(case.identity, (case.image,), case.label), volume.grid)
        found = renumbered(labels.astype(np.int64), case.names, values, exact=case.exact)
        if not found.any():
            say(f"{case.identity} is left out: nothing in it is labelled")
            continue
        write_volume(volume.with_data(volume.data[:1]), folder / "imagesTr" / f"{called}_0000.nii.gz")
        write_volume(volume.with_data(found[None]), folder / "labelsTr" / f"{called}.nii.gz")
        written.add(called)
    if not written:
        raise BadInput("nothing is labelled in any image: there is nothing to learn")
    write_table(folder, name, ["image"], {"background": 0, **values}, len(written))
    return len(written), values


def renumbered(
    labels: NDArray[np.int64], names: Mapping[str, int], values: dict[str, int], *, exact: bool = False
) -> NDArray[np.uint8]:
    """A label whose values are those of `values`, to which new names are added.

    Slicer numbers the segments that it saves from 1, and tells their places among all segments; where the two differ,
    the order of the names counts, unless they are `exact`.
    """
    there = [value for value in np.unique(labels).tolist() if value > 0]
    by_value = {value: name for name, value in names.items()}
    if not exact and not set(there) <= set(by_value) and there and max(there) <= len(names):
        by_value = dict(enumerate(sorted(names, key=lambda name: names[name]), 1))
    found = np.zeros(labels.shape, np.uint8)
    for value in there:
        name = by_value.get(value, f"label {value}")
        number = values.setdefault(name, len(values) + 1)
        if number >= UNKNOWN:
            raise BadInput(f"the labels have more than {UNKNOWN - 1} names")
        found[labels == value] = number
    return found
