"""Where volumes come from: the folder of studies, or uploads; and whether they fit, found out before they are read."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from volsam.data import memory
from volsam.data.io import READABLE, read_header, read_volume, with_finite_values
from volsam.data.studies import LABELS, clean_name, is_label_name, scans, stem
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.server.problems import Problem
from volsam.server.store import when
from volsam.volume import Volume

log = logging.getLogger(__name__)

# What a session takes beside the volume: the regions that its predictor keeps.
BESIDE = 256 << 20
# Masks, and what is made of them on the way out, per voxel.
MASKS = 2
# What people may call a kind of labels.
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NUMBERS = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"}


@dataclass(frozen=True)
class Origin:
    """Where the volume of a session came from, enough to read it again.

    kind: "study" (path under the folder of studies), "file", "series" (of DICOM slices) or "array" (uploaded; in the
    folder of the session); root: the folder of studies, since servers with several of them may keep their sessions in
    one place.
    """

    kind: str
    path: str
    frame: int | None = None
    channel: int = 0
    affine: list[list[float]] | None = None
    root: str | None = None

    @property
    def is_series(self) -> bool:
        """Whether it is a DICOM series, of which alone a DICOM-SEG can speak."""
        name = self.path.lower()
        found = name.endswith((".dcm", ".ima")) or not name.endswith(READABLE)
        return self.kind == "series" or (self.kind == "study" and found)

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {name: value for name, value in vars(self).items() if value is not None}


# --- the folder of studies -------------------------------------------------------------------------------------------


def study_path(studies: Path | None, name: str, linked: Sequence[str] = ()) -> Path:
    """The file or folder of a study; nothing outside the folder of studies is reached but by the links `linked`."""
    if studies is None:
        raise Problem(404, "this server has no folder of studies (--studies): upload the volume instead")
    pure = PurePosixPath(name)
    parts = pure.parts
    if not parts or pure.is_absolute() or "\0" in name or "\\" in name or any(part.startswith(".") for part in parts):
        raise Problem(403, f"{name!r} is not a path in the folder of studies: give one as /api/v1/studies lists them")
    root = studies.resolve()
    try:
        found = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):
        raise Problem(404, f"there is no study {name!r}: see /api/v1/studies") from None
    if name in linked:
        return root / name
    if not found.is_relative_to(root) or found == root:
        raise Problem(403, f"{name!r} leads out of the folder of studies")
    if found.is_dir() and any(not entry.resolve().is_relative_to(root) for entry in found.iterdir()):
        raise Problem(403, f"{name!r} holds links that lead out of the folder of studies")
    return found


def all_studies(studies: Path) -> Iterator[dict[str, Any]]:
    """Every volume in the folder, in order of its path; a folder of DICOM slices is one."""
    tagged = _tagged(studies)
    for path in scans(studies):
        place = studies / path
        try:
            size = {} if place.is_dir() else {"bytes": place.stat().st_size}
            files = tagged.get(stem(path), {})
            ready = [tag for tag, names in files.items() if TAG.fullmatch(tag) and any(map(is_label_name, names))]
            yield {"path": path, **size, "modified": when(place), "labels": list(files), "ready": ready}
        except OSError:  # gone meanwhile
            continue


def _tagged(studies: Path) -> dict[str, dict[str, list[str]]]:
    """Tags of saved labels with the names of their files, by the study's path without its ending."""
    found: dict[str, dict[str, list[str]]] = {}
    for tag in sorted((studies / LABELS).glob("*/")):
        for file in sorted(tag.rglob("*")):
            if file.is_file() and file.suffix != ".json":
                found.setdefault(stem(file.relative_to(tag).as_posix()), {}).setdefault(tag.name, []).append(file.name)
    return found


def label_place(studies: Path, study: str, tag: str, ending: str) -> Path:
    """The file of a study's label, in a folder that is there; 403 where a link leads out of the folder of studies."""
    root = studies.resolve()
    target = root / LABELS / tag / f"{stem(study)}{ending}"
    for folder in (root / LABELS, root / LABELS / tag, target.parent):
        if folder.exists() and not folder.resolve().is_relative_to(root):
            raise Problem(403, f"{folder.relative_to(root)} leads out of the folder of studies")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise Problem(507, f"labels cannot be saved beside the studies ({reason.strerror})") from None
    return target


# --- reading ---------------------------------------------------------------------------------------------------------


def load(origin: Origin, studies: Path | None, folder: Path, linked: Sequence[str] = ()) -> Volume:
    """Read the volume of a session, one channel of it, after a look at whether it fits."""
    if origin.kind == "array":
        return _stored_array(origin, folder)
    path = place_of(origin, studies, folder, linked)
    source = read_header(path)
    if origin.frame is None and source.frames > 1:
        raise Problem(
            400,
            f"{path.name} holds {source.frames} frames: choose one of 0..{source.frames - 1}, with --frame of `volsam "
            'view` or the field "frame" of a request',
            code="frames",
            facts={"frames": source.frames},
        )
    volume = read_within_memory(path, frame=origin.frame)
    if not 0 <= origin.channel < volume.channels:
        raise BadInput(f"channel {origin.channel} was asked for, but {path.name} holds {volume.channels}, from 0")
    data = volume.data[origin.channel : origin.channel + 1]
    if volume.channels > 1:
        log.warning("%s has %d channels; channel %d is looked at", path.name, volume.channels, origin.channel)
        data = data.copy()  # lets go of the others
    return volume.with_data(data)


def place_of(origin: Origin, studies: Path | None, folder: Path, linked: Sequence[str] = ()) -> Path:
    """The file or series of a session, which is no array; `folder` is that of the session."""
    return study_path(studies, origin.path, linked) if origin.kind == "study" else folder / "upload" / origin.path


def read_within_memory(path: Path, *, frame: int | None = None) -> Volume:
    """Read a file, after a look at whether it fits: a small one may unpack to a thousand times its size."""
    source = read_header(path)
    # All channels of a frame are read; of formats in which frames cannot be told apart, all frames.
    require_room(prod(source.grid.shape) * (4 * source.values + MASKS), path.name)
    return read_volume(path, frame=frame)


@contextmanager
def warned() -> Iterator[list[str]]:
    """What is warned of while this thread reads, each text once."""
    said: list[str] = []
    reader = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == reader and record.getMessage() not in said:
                said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("volsam")
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def require_room(needed: int, name: str) -> None:
    """Refuse what would not fit beside what is there already, with the numbers."""
    free = memory.available_memory()
    if free is not None and needed + BESIDE > free:
        raise Problem(
            413,
            f"{name} would take {memory.gigabytes(needed + BESIDE)} of memory, {memory.gigabytes(free)} are free: "
            "crop or resample it, or close other sessions",
        )


# --- arrays ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayPlan:
    """What an uploaded array must be: checked before any of it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    grid: Grid
    name: str

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return prod(self.shape) * self.dtype.itemsize


def array_plan(shape: list[int], dtype: str, order: str, affine: list[list[float]], name: str) -> ArrayPlan:
    """Check what a client says of an array it is about to send."""
    if dtype not in NUMBERS:
        raise BadInput(f'"dtype" is one of {", ".join(sorted(NUMBERS))}, got {dtype!r}')
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise BadInput(f'"shape" has three axes, or four with channels first, of at least one voxel; got {shape}')
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput('"affine" is a 4 × 4 matrix of numbers') from None
    grid = Grid((shape[-3], shape[-2], shape[-1]), matrix)
    plan = ArrayPlan(tuple(shape), np.dtype(dtype).newbyteorder("<"), order, grid, clean_name(name))
    require_room(plan.size * 2 + prod(grid.shape) * MASKS, plan.name)
    return plan


def volume_of(plan: ArrayPlan, data: bytes | bytearray | memoryview, channel: int) -> Volume:
    """The volume in the bytes of an array, one channel; values that are not finite are put right."""
    values = np.frombuffer(data, plan.dtype).reshape(plan.shape, order="F" if plan.order == "F" else "C")
    return as_volume(values, plan.grid, plan.name, channel)


def as_volume(values: np.ndarray[Any, Any], grid: Grid, name: str, channel: int = 0) -> Volume:
    """One channel of an array (i j k) or (c i j k) as a volume with an array of its own."""
    channels = values if values.ndim == 4 else values[None]
    if not 0 <= channel < len(channels):
        raise BadInput(f"channel {channel} was asked for, but {name} holds {len(channels)}, from 0")
    one = channels[channel]
    wide = one.dtype.kind == "f" and one.dtype.itemsize != 4
    kept = np.array(one, dtype=np.float32 if wide else one.dtype.newbyteorder("="), order="F")
    return Volume(with_finite_values(kept, name)[None], grid, name)


def keep_array(volume: Volume, folder: Path) -> None:
    """Keep the voxels of an upload, so that its session can be resumed."""
    unfinished = folder / "volume.part"
    try:
        with unfinished.open("wb") as file:
            np.save(file, volume.data[0])
        unfinished.replace(folder / "volume.npy")
    except OSError as reason:
        unfinished.unlink(missing_ok=True)
        raise Problem(507, f"the upload cannot be kept ({reason.strerror}): make room on the server") from None


def _stored_array(origin: Origin, folder: Path) -> Volume:
    try:
        stored = open_memmap(folder / "volume.npy", mode="r")
    except (OSError, ValueError):
        raise Problem(404, "the upload of this session is not kept any more: upload it anew") from None
    require_room(int(stored.nbytes) + stored.size * MASKS, origin.path)
    grid = Grid((stored.shape[0], stored.shape[1], stored.shape[2]), np.array(origin.affine, dtype=np.float64))
    return Volume(np.array(stored, order="F")[None], grid, origin.path)
