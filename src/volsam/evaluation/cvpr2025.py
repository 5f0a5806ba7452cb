"""The protocol of the CVPR 2025 challenge on interactive 3D segmentation, and its files.

A box on one slice for every class, or none; then five rounds of one click for every class, all classes of a case going
on together. A click falls on the voxel that is farthest, counted in voxels, from the outside of the largest piece of
the error (26-connected); of several such voxels a generator with seed 42 takes one. The area under the curve is taken
over the five rounds of clicks, with a step of 1: it is at most 4.

A case is a file npz: `imgs` (z, y, x) 0 to 255, `spacing` (x, y, z) in mm, `boxes`, `clicks`, `clicks_order` and
`prev_pred` for the model, `gts` where the labels are known; an answer holds `segs`. Places are indices (z, y, x). Here
arrays are turned, so that a volume has its axes in the order x, y, z.

No document tells the order of `spacing`, and no real file was at hand. MedSAM's script, which made such files, stores
what SimpleITK's GetSpacing() gives, (x, y, z), beside arrays (z, y, x). The challenge's script hands it as it is to
surface-distance, for the axes z, y, x: so NSD by the rule `cvpr2025` is taken here too, to meet its figures. All else
takes the true sizes.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any, TypeAlias

import numpy as np
from scipy import ndimage

from volsam.data.files import one_line, replacing
from volsam.data.simulate import Mask, bounding_box
from volsam.errors import BadFile, BadInput
from volsam.evaluation.placement import click_at, flat_box
from volsam.evaluation.protocol import Answers, Counted, Labels, Objects, Played, Score, Step, last
from volsam.geometry import Grid
from volsam.prompts import Box, Click, Prompt, PromptSet
from volsam.volume import Volume

CLICKS = 5
SEED = 42
# An error in a larger box (with its rim) is halved before distances are taken.
MOST_VOXELS = 60_000_000
# Seconds that a model may take for a class of a case, over all rounds.
TIME_LIMIT = 90.0

AskAll: TypeAlias = Callable[[Mapping[str, PromptSet]], Labels]
"""Adds new prompts of objects, by name, and answers with the labels (i, j, k) of all of them."""

BeginAll: TypeAlias = Callable[[Volume, Mapping[str, int]], AskAll]
"""Begins with all objects of a volume, given their label values."""


def play(
    begin: BeginAll,
    volume: Volume,
    objects: Objects,
    score: Score,
    boxes: Mapping[str, Box] | None,
    counted: Counted = last,
) -> dict[str, Played]:
    """Ask for all objects of a case together: a box, then five clicks each, on the error of the answer before.

    Args:
        begin: what is evaluated.
        volume: the image.
        objects: those that the case has.
        score: gives the scores of a mask.
        boxes: one for each object; None for cases without boxes, whose first round then scores 0.
        counted: which of the answers counts.
    """
    labels: Labels = np.zeros(volume.grid.shape, np.uint8)
    answers = {name: Answers(counted) for name in objects}
    began = perf_counter()
    ask = begin(volume, {name: value for name, value in objects.values_of.items() if isinstance(value, int)})
    waited = perf_counter() - began
    for turn in range(CLICKS + 1):
        new = _boxes(boxes, objects) if turn == 0 else _clicks(labels, objects, volume.grid)
        began = perf_counter()
        if turn > 0 or boxes is not None:
            labels = objects.known(ask({name: PromptSet(prompts) for name, prompts in new.items()}))
        seconds, waited = perf_counter() - began + waited, 0.0
        for name in objects:
            mask = objects.within(labels, name)
            found = score(mask, objects[name], turn == CLICKS)
            answers[name].add(Step(found, tuple(new[name]), seconds / len(objects)), mask)
    return {name: answer.played for name, answer in answers.items()}


def area(values: Sequence[float]) -> float:
    """Area under the last five values by the trapezoid rule, 0 to 4."""
    last = np.asarray(values[-CLICKS:], dtype=np.float64)
    return float(np.sum((last[1:] + last[:-1]) / 2))


def middle_boxes(objects: Objects, grid: Grid, axis: int = 2) -> dict[str, Box]:
    """For every object the smallest box on the slice that holds the middle one of its voxels, by slices."""
    found = {}
    for name in objects:
        counts = np.cumsum(objects[name].sum(axis=tuple(other for other in range(3) if other != axis)))
        middle = int(np.searchsorted(counts, counts[-1] // 2, side="right"))
        found[name] = flat_box(objects[name], grid, axis, middle)
    return found


def correction(target: Mask, mask: Mask, grid: Grid) -> Click | None:
    """The challenge's click: the centre of the largest piece of the error, or None where there is no error.

    Args:
        target: the object (i, j, k).
        mask: the answer, same shape.
        grid: the grid that both lie on.
    """
    wrong = np.asarray(target, dtype=bool) ^ np.asarray(mask, dtype=bool)
    box = bounding_box(wrong)
    if box is None:
        return None
    # Turned to (z, y, x), the order in which ties are counted.
    part = np.transpose(wrong[box], (2, 1, 0))
    pieces, _ = ndimage.label(part, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    z, y, x = _centre(pieces == int(np.argmax(sizes)))
    voxel = np.array([x, y, z]) + [side.start for side in box]
    return click_at(voxel, grid, positive=bool(target[tuple(voxel)]))


def _centre(piece: Mask) -> tuple[int, int, int]:
    box = bounding_box(piece)
    if box is None:
        raise ValueError("the piece holds no voxel")
    inner = piece[box]
    rim = [max(int(0.25 * size), 1) for size in inner.shape]
    padded = np.pad(inner, [(width, width) for width in rim])
    if padded.size > MOST_VOXELS:
        depth = ndimage.distance_transform_edt(_halved(padded)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    else:
        depth = ndimage.distance_transform_edt(padded)
    place = tuple(slice(width, width + size) for width, size in zip(rim, inner.shape, strict=True))
    depth = np.asarray(depth)[place] * inner
    deepest = np.argwhere(depth == depth.max())
    chosen = deepest[np.random.RandomState(SEED).choice(len(deepest))] + [side.start for side in box]
    return int(chosen[0]), int(chosen[1]), int(chosen[2])


def _halved(mask: Mask) -> Mask:
    """Blocks of 2 × 2 × 2 voxels of which one is set."""
    even = np.pad(mask, [(0, size % 2) for size in mask.shape])
    d, h, w = (size // 2 for size in even.shape)
    return np.asarray(even.reshape(d, 2, h, 2, w, 2).any(axis=(1, 3, 5)))


def _boxes(boxes: Mapping[str, Box] | None, objects: Objects) -> dict[str, list[Prompt]]:
    return {name: [boxes[name]] if boxes is not None and name in boxes else [] for name in objects}


def _clicks(labels: Labels, objects: Objects, grid: Grid) -> dict[str, list[Prompt]]:
    clicks = {name: correction(objects[name], objects.within(labels, name), grid) for name in objects}
    return {name: [] if click is None else [click] for name, click in clicks.items()}


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A file of the challenge: the image, and per class the prompts so far, oldest first; labels where it has them."""

    volume: Volume
    prompts: Sequence[tuple[Prompt, ...]] = ()
    previous: Labels | None = None
    labels: Labels | None = None


def read_task(path: str | os.PathLike[str], *, image: bool = True) -> Task:
    """Read an input file; a file that holds Python objects of other kinds than lists and numbers is refused.

    Without `image` a file of labels alone will do, whose image is then empty.
    """
    path = Path(path)
    with one_line(path):
        content = _unpickled(path)
        if not image and "gts" in content:
            content.setdefault("imgs", np.zeros(content["gts"].shape, np.uint8))
        if "imgs" not in content:
            raise BadFile(f"{path.name} holds no imgs: it is no case of the challenge")
        pixels = np.transpose(np.asarray(content["imgs"]), (2, 1, 0))
        spacing = np.asarray(content.get("spacing", (1.0, 1.0, 1.0)), dtype=np.float64)
        grid = Grid.at(pixels.shape, tuple(float(size) for size in spacing))
        boxes = [_box(entry, grid) for entry in content.get("boxes", ())]
        clicks = [_in_order(entry, order, grid) for entry, order in _pairs(content)]
        classes = max(len(boxes), len(clicks))
        prompts: list[tuple[Prompt, ...]] = [
            (*boxes[index : index + 1], *(clicks[index] if index < len(clicks) else ())) for index in range(classes)
        ]
        turned = {
            key: np.transpose(np.asarray(content[key]), (2, 1, 0)) for key in ("gts", "prev_pred") if key in content
        }
    return Task(
        Volume(np.ascontiguousarray(pixels), grid, path.stem),
        prompts,
        turned.get("prev_pred"),
        turned.get("gts"),
    )


def answer(begin: BeginAll, task: Task) -> Labels:
    """Labels (i, j, k) of a task: 1 for its first class, and so on; what a container of the challenge has to give."""
    classes = {f"class {number}": number for number in range(1, len(task.prompts) + 1)}
    if not classes:
        raise BadInput(f"{task.volume.name} holds neither boxes nor clicks: there is nothing to answer")
    asked = {name: PromptSet(task.prompts[number - 1]) for name, number in classes.items()}
    return begin(task.volume, classes)(asked)


def write_answer(labels: Labels, path: str | os.PathLike[str]) -> None:
    """Write labels (i, j, k) as the challenge wants them: `segs`, uint8, (z, y, x)."""
    with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, segs=np.ascontiguousarray(np.transpose(labels, (2, 1, 0)), dtype=np.uint8))


def write_task(
    path: str | os.PathLike[str],
    volume: Volume,
    prompts: Sequence[Sequence[Prompt]],
    *,
    previous: Labels | None = None,
    labels: Labels | None = None,
) -> None:
    """Write an input file: the first channel, with values 0 to 255, and per class its box and clicks.

    A box is a flat box across the last axis of the volume; either every class has one, or none has. `previous` and
    `labels` are (i, j, k).
    """
    boxes = [[prompt for prompt in of if isinstance(prompt, Box)] for of in prompts]
    # A file has boxes without names: the first belongs to the first class, and so on.
    if any(boxes) and (other := [number for number, of in enumerate(boxes, start=1) if len(of) != 1]):
        raise BadInput(
            f"class {other[0]} has {len(boxes[other[0] - 1])} boxes: in a file of the challenge every class has one "
            "box, or none has"
        )
    arrays: dict[str, Any] = {
        "imgs": np.ascontiguousarray(np.transpose(volume.data[0], (2, 1, 0))).astype(np.uint8),
        "spacing": volume.grid.spacing,
    }
    if any(boxes):
        arrays["boxes"] = np.array([_box_record(box, volume.grid) for (box,) in boxes], dtype=object)
    clicks = [[prompt for prompt in of if isinstance(prompt, Click)] for of in prompts]
    if any(clicks):
        arrays["clicks"] = np.array([_click_record(of, volume.grid) for of in clicks], dtype=object)
        orders = np.empty(len(clicks), dtype=object)
        orders[:] = [["fg" if click.positive else "bg" for click in of] for of in clicks]
        arrays["clicks_order"] = orders
    for key, values in (("prev_pred", previous), ("gts", labels)):
        if values is not None:
            arrays[key] = np.ascontiguousarray(np.transpose(values, (2, 1, 0)), dtype=np.uint8)
    with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _pairs(content: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Sequence[str | None]]]:
    clicks = list(content.get("clicks", ()))
    orders = list(content.get("clicks_order", ()))
    return [(entry, list(orders[index]) if index < len(orders) else []) for index, entry in enumerate(clicks)]


def _in_order(entry: Mapping[str, Any], order: Sequence[str | None], grid: Grid) -> tuple[Click, ...]:
    """The clicks of a class, oldest first; without a known order, those inside the object come first.

    The challenge's script writes None for a round in which the class had no error, and so no click.
    """
    waiting = {kind: [np.asarray(place)[::-1] for place in entry.get(kind, ())] for kind in ("fg", "bg")}
    kinds = [str(kind) for kind in order if kind is not None]
    if {kind: kinds.count(kind) for kind in waiting} != {kind: len(places) for kind, places in waiting.items()}:
        kinds = [kind for kind, places in waiting.items() for _ in places]
    return tuple(click_at(waiting[kind].pop(0), grid, positive=kind == "fg") for kind in kinds)


def _click_record(clicks: Sequence[Click], grid: Grid) -> dict[str, list[list[int]]]:
    places = [(click.positive, np.rint(grid.to_voxels(click.position)).astype(int)[::-1].tolist()) for click in clicks]
    return {
        "fg": [place for inside, place in places if inside],
        "bg": [place for inside, place in places if not inside],
    }


def _box(entry: Mapping[str, Any], grid: Grid) -> Box:
    """The box on the middle slice; that it reaches from z_min to z_max is not told to the models here."""
    low, high = (
        [int(entry[f"z_mid_x_{end}"]), int(entry[f"z_mid_y_{end}"]), int(entry["z_mid"])] for end in ("min", "max")
    )
    first, second = (tuple(float(value) for value in grid.to_world(corner)) for corner in (low, high))
    return Box((first[0], first[1], first[2]), (second[0], second[1], second[2]))


def _box_record(box: Box, grid: Grid) -> dict[str, int]:
    corners = np.rint(np.sort(grid.to_voxels([box.low, box.high]), axis=0)).astype(int)
    (x0, y0, z0), (x1, y1, z1) = corners.tolist()
    return {
        "z_min": z0,
        "z_max": z1,
        "z_mid": (z0 + z1) // 2,
        "z_mid_x_min": x0,
        "z_mid_y_min": y0,
        "z_mid_x_max": x1,
        "z_mid_y_max": y1,
    }


# What numpy needs to build arrays and numbers; a file that asks for anything else is refused.
_ALLOWED = {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise BadFile(f"it asks for {module}.{name}, which no case of the challenge needs, and is not opened")
        return super().find_class(module, name)


def _unpickled(path: Path) -> dict[str, Any]:
    """All arrays of an npz file, without running anything that is in it."""
    if not path.is_file():
        raise BadFile(f"{path} does not exist: check the name and the folder")
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as packed:
        for name in packed.namelist():
            with packed.open(name) as file:
                found[name.removesuffix(".npy")] = _array(file)
    return found


def _array(file: IO[bytes]) -> Any:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        return _Unpickler(file).load()
    values = np.frombuffer(file.read(), dtype=dtype, count=int(np.prod(shape, dtype=np.int64)))
    return values.reshape(shape, order="F" if fortran else "C")
