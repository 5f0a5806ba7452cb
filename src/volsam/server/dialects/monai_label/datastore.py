"""Images of the folder of studies and the labels beside them, as MONAI Label's local datastore keeps them.

STUDIES/ID.EXT               images, in subfolders too; the id is the path without its ending
        labels/TAG/ID.EXT    labels; tags are `original` (a model's), `final` (a person's) and any other
        datastore_v2.json    what is known of both beside the files

The files themselves decide what there is; the index may lag behind or be missing.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from time import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.data.dataset import IGNORE, misplaced, read_labels, read_table, whole_numbers
from volsam.data.files import replacing
from volsam.data.io import WRITABLE, read_grid, read_header
from volsam.data.studies import FINAL, LABELS, clean_name, record_of, stem, versions
from volsam.errors import BadFile, BadInput, VolsamError
from volsam.geometry import Grid
from volsam.server.problems import Problem
from volsam.server.volumes import all_studies, label_place, read_within_memory, study_path

INDEX = "datastore_v2.json"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SERIES = re.compile(r"[0-9]+(\.[0-9]+)+")
TAGS = {"SeriesInstanceUID": "0020|000e", "StudyInstanceUID": "0020|000d", "PatientID": "0010|0020"}
LONGEST_ID = 200

Info = dict[str, Any]


@dataclass(frozen=True)
class Label:
    """A label file, relative to the folder of studies, and what is known of it."""

    file: str
    info: Info


@dataclass(frozen=True)
class Image:
    """An image, its file relative to the folder of studies, and its labels by tag."""

    identity: str
    file: str
    info: Info = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """Of the file; none for a folder of slices."""
        return self.file[len(stem(self.file)) :]


class Datastore:
    """All images and labels."""

    def __init__(self, studies: Path) -> None:
        self.root = studies
        self._lock = threading.RLock()
        self._series: dict[str, dict[str, str]] = {}
        # Of the last listing: where each image lies, so that a click need not list ten thousand of them.
        self._listed: dict[str, str] = {}
        self._read: tuple[tuple[int, ...], dict[str, Any]] | None = None

    # --- looking -------------------------------------------------------------------------------------------------

    def images(self) -> dict[str, Image]:
        """Every image by its id, in order of their paths."""
        index = self._index()["objects"]
        named = {str(_info(entry.get("image")).get("name")): identity for identity, entry in index.items()}
        labels = self._label_files()
        found: dict[str, Image] = {}
        for study in all_studies(self.root):
            path = str(study["path"])
            identity = named.get(path, stem(path))
            if identity in found:  # files that differ in their endings only
                identity = path
            found[identity] = _described(identity, path, index.get(identity, {}), labels.get(stem(path), {}))
        self._listed = {identity: image.file for identity, image in found.items()}
        return found

    def image(self, identity: str) -> Image:
        """One image by its id, or a DICOM series by its SeriesInstanceUID; 404 if there is none."""
        file = self._listed.get(identity)
        if file is not None and (self.root / file).exists():
            entry = self._index()["objects"].get(identity, {})
            return _described(identity, file, entry, self._label_files(file).get(stem(file), {}))
        images = self.images()
        found = images.get(identity)
        if found is None and SERIES.fullmatch(identity):
            found = next(
                (one for one in images.values() if self.series(one).get("SeriesInstanceUID") == identity), None
            )
        if found is None:
            raise Problem(404, f"no image of the datastore is called {identity[:100]!r}")
        return found

    def path(self, image: Image) -> Path:
        """The file of an image, or the folder of its slices."""
        return study_path(self.root, image.file)

    def series(self, image: Image) -> dict[str, str]:
        """What a folder of DICOM slices calls itself, by the names of the standard; nothing for all else."""
        if image.ending:
            return {}
        if image.file not in self._series:
            self._series[image.file] = _series_tags(self.path(image))
        return self._series[image.file]

    def label(self, identity: str, tag: str) -> Label:
        """A label; 404 if there is none."""
        found = self.image(identity).labels.get(tag)
        if found is None:
            raise Problem(404, f"{identity[:100]} has no label with the tag {tag[:64]!r}")
        return found

    def names(self) -> list[str]:
        """Names of labels: those of dataset.json first, then those that were saved."""
        names = list(self.declared())
        for entry in self._index()["objects"].values():
            for label in entry.get("labels", {}).values():
                names += [name for name in named_values(_info(label)) if name not in names]
        return names

    def declared(self) -> dict[str, int]:
        """Labels of a dataset.json in the folder of studies, without the background and "ignore"."""
        try:
            labels, _ = read_labels(read_table(self.root), self.root)
        except BadInput:
            return {}
        return {name: value for name, value in labels.items() if value > 0 and name != IGNORE}

    def stats(self) -> Info:
        """How many images there are, and how many of them are labelled."""
        images = list(self.images().values())
        tags = sorted({tag for image in images for tag in image.labels})
        return {
            "total": len(images),
            "completed": sum(FINAL in image.labels for image in images),
            "label_tags": {tag: sum(tag in image.labels for image in images) for tag in tags},
        }

    def everything(self) -> Info:
        """All objects, as the index has them."""
        return {
            **{key: value for key, value in self._index().items() if key != "objects"},
            "objects": {image.identity: _entry(image) for image in self.images().values()},
        }

    def cases(self, tag: str = FINAL) -> list[tuple[Image, Label]]:
        """Labelled images."""
        return [(image, image.labels[tag]) for image in self.images().values() if tag in image.labels]

    # --- changing ------------------------------------------------------------------------------------------------

    def add_image(self, identity: str, upload: Path, ending: str, info: Info) -> str:
        """Take an uploaded image in; another one of the same id is never replaced."""
        if not identity.strip() or len(identity) > LONGEST_ID or not identity.isprintable():
            raise BadInput(f"an image needs a name of 1 to {LONGEST_ID} letters")
        read_within_memory(upload, frame=0)
        with self._lock:
            known = self.images().get(identity)
            if known is not None:
                if not _same_content(upload, self.path(known)):
                    raise Problem(409, f"there is another image called {identity!r}: give this one another name")
                return identity
            name = f"{clean_name(identity)}{ending}"
            if (self.root / name).exists() or stem(name) in {stem(image.file) for image in self.images().values()}:
                raise Problem(409, f"there is another image in {name}: give this one another name")
            with replacing(self.root / name) as unfinished:
                shutil.copyfile(upload, unfinished)
            self._note(Image(identity, name, {**info, "ts": int(time()), "name": name}))
        return identity

    def save_label(
        self, identity: str, tag: str, upload: Path, ending: str, info: Info, *, replace: bool = True
    ) -> Path:
        """Keep a label of an image; one of the same tag is replaced, whole or not at all, or stays if it shall."""
        image = self.image(identity)
        if ending not in WRITABLE:
            raise BadInput(f"a label is saved as {', '.join(WRITABLE)}, this is {ending or 'without ending'!r}")
        read_drawn(upload, read_grid(self.path(image)), identity)
        if not TAG.fullmatch(tag):
            raise BadInput(f"a tag is letters, digits, dots, hyphens and underscores, got {tag[:64]!r}")
        target = label_place(self.root, image.file, tag, ending)
        with self._lock:
            image = self.image(identity)
            if not replace and tag in image.labels:
                raise BadInput(f"it has a label with the tag {tag}, which is not replaced by a model's")
            with replacing(target) as unfinished:
                shutil.copyfile(upload, unfinished)
            for older in (*versions(target), record_of(target)):  # these were of the label before
                older.unlink(missing_ok=True)
            file = target.relative_to(self.root.resolve()).as_posix()
            kept = Label(file, {**info, "ts": int(time()), "name": target.name})
            self._note(Image(image.identity, image.file, image.info, {**image.labels, tag: kept}))
        return target

    def remove_label(self, identity: str, tag: str) -> None:
        """Forget a label."""
        file = self.label(identity, tag).file
        with self._lock:
            (self.root / file).unlink(missing_ok=True)
            if entry := self._index()["objects"].get(identity):
                labels = {key: label for key, label in entry.get("labels", {}).items() if key != tag}
                self._write(identity, {**entry, "labels": labels})

    def update_image(self, identity: str, info: Info) -> Info:
        """Add to what is known of an image."""
        with self._lock:
            image = self.image(identity)
            kept = {**image.info, **info, "name": image.file}
            self._note(Image(image.identity, image.file, kept, image.labels))
        return kept

    def update_label(self, identity: str, tag: str, info: Info) -> Info:
        """Add to what is known of a label."""
        with self._lock:
            image, label = self.image(identity), self.label(identity, tag)
            kept = {**label.info, **info, "name": Path(label.file).name}
            labels = {**image.labels, tag: Label(label.file, kept)}
            self._note(Image(image.identity, image.file, image.info, labels))
        return kept

    # --- inside --------------------------------------------------------------------------------------------------

    def _index(self) -> dict[str, Any]:
        empty = {"name": self.root.resolve().name, "description": "", "images_dir": ".", "labels_dir": LABELS}
        path = self.root / INDEX
        try:
            known = path.stat()
            state = (known.st_mtime_ns, known.st_size, known.st_ino)
            if self._read is not None and self._read[0] == state:
                return self._read[1]
            index = json.loads(path.read_text(encoding="utf-8"))
            entries = index["objects"].items()
            if not all(isinstance(entry, dict) and isinstance(entry.get("labels", {}), dict) for _, entry in entries):
                raise ValueError
        except FileNotFoundError:
            return {**empty, "objects": {}}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise BadFile(f"{INDEX} in the folder of studies is damaged: repair it, or move it away") from None
        self._read = (state, {**empty, **index})
        return self._read[1]

    def _note(self, image: Image) -> None:
        self._write(image.identity, _entry(image))

    def _write(self, identity: str, entry: Info) -> None:
        index = self._index()  # others may be reading this very one
        index = {**index, "objects": {**index["objects"], identity: entry}}
        with replacing(self.root / INDEX) as unfinished:
            unfinished.write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _label_files(self, image: str | None = None) -> dict[str, dict[str, str]]:
        """By the path of an image without its ending, the label file of every tag.

        image: the file of one, whose labels are enough.
        """
        found: dict[str, dict[str, str]] = {}
        for folder in sorted((self.root / LABELS).glob("*/")):
            if image is None:
                files = folder.rglob("*")
            else:
                start = folder / stem(image)
                files = start.parent.glob(f"{escape(start.name)}*")
            for file in sorted(files):
                if file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(WRITABLE):
                    key = stem(file.relative_to(folder).as_posix())
                    found.setdefault(key, {})[folder.name] = file.relative_to(self.root).as_posix()
        return found


def ending_of(file_name: str) -> str:
    """The ending of an uploaded file's name, such as ".nii.gz"."""
    name = clean_name(file_name).lower()
    known = [ending for ending in (*WRITABLE, ".seg.nrrd", ".bin", ".zip") if name.endswith(ending)]
    return max(known, key=len, default=Path(name).suffix)


def named_values(info: Mapping[str, Any]) -> dict[str, int]:
    """Names and values in a label, as they were saved with it."""
    listed = info.get("label_info")
    if isinstance(listed, list):
        pairs = [(item.get("name"), item.get("idx", item.get("id"))) for item in listed if isinstance(item, dict)]
    else:
        names = _info({"info": info.get("params")}).get("label_names")
        pairs = list(names.items()) if isinstance(names, dict) else []
    return {str(name): value for name, value in pairs if isinstance(value, int) and value > 0 and name}


def read_drawn(path: Path, grid: Grid, name: str) -> NDArray[np.integer[Any]]:
    """The values (i, j, k) of a label that was sent; one off the grid of its image is refused before it is read."""
    header = read_header(path)
    if header.values != 1 or header.frames != 1:
        raise BadInput(f"a label has one value in each voxel, this one of {name} has {header.values * header.frames}")
    if problem := misplaced(header.grid, grid):
        raise BadInput(f"the label of {name}: {problem} of the image; save it on the image's grid")
    return whole_numbers(read_within_memory(path), path)


def _described(identity: str, file: str, entry: Info, labels: Mapping[str, str]) -> Image:
    """An image by its entry in the index and by its label files, which are what there is."""
    own = {
        tag: Label(label, {"name": Path(label).name, **_info(entry.get("labels", {}).get(tag))})
        for tag, label in labels.items()
    }
    return Image(identity, file, {"name": file, **_info(entry.get("image"))}, own)


def _info(entry: Any) -> Info:
    found = entry.get("info") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def _entry(image: Image) -> Info:
    return {
        "image": {"ext": image.ending, "info": image.info},
        "labels": {
            tag: {"ext": label.file[len(stem(label.file)) :], "info": label.info} for tag, label in image.labels.items()
        },
    }


def _same_content(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    if one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes():
        return True
    try:
        first, second = read_within_memory(one), read_within_memory(other)
    except VolsamError:
        return False
    return first.grid == second.grid and np.array_equal(first.data, second.data)


def _series_tags(folder: Path) -> dict[str, str]:
    from volsam.data.itk import itk_reader

    first = next((file for file in sorted(folder.iterdir()) if file.suffix.lower() in (".dcm", ".ima")), None)
    if first is None:
        return {}
    try:
        reader = itk_reader(first, "DICOM")
    except VolsamError:
        return {}
    there = {name: tag for name, tag in TAGS.items() if reader.HasMetaDataKey(tag)}
    return {name: str(reader.GetMetaData(tag)).strip("\0 ") for name, tag in there.items()}
