"""What the user points at: prompts from the words of a command line and from files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.cli.console import say
from volsam.cli.options import Space
from volsam.data.io import read_volume
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.prompts import Box, MaskHint, Prompt, PromptSet, from_record, shown

Corners = NDArray[np.float64]  # (2, 3), the lowest and the highest voxel of a box

SIGNS = {"+": True, "-": False}
# In voxels: a box thinner than that is flat; rounding; from the centre of a voxel to its face, which is still inside.
FLAT, CLOSE = 0.5, 1e-3
HALF = 0.5 + CLOSE
# Values of a mask in a message.
LISTED = 8


def gather(
    points: Sequence[str], boxes: Sequence[str], file: Path | None, space: str, grid: Grid, name: str
) -> PromptSet:
    """All prompts for the volume `name` on `grid`: those of the file, then boxes, then points, each in their order."""
    prompts = [] if file is None else read_prompts(file, grid, name)
    prompts += [parse_box(text, space, grid, name) for text in boxes]
    prompts += [parse_point(text, space, grid, name) for text in points]
    found = PromptSet(prompts)
    found.require_inside(grid, name)
    if not any(_points_at_object(prompt) for prompt in found):
        came = f"{len(found)} negative prompts" if len(found) else "no prompt"
        raise BadInput(
            f"{came} came, and nothing that lies in the object: point at it with -p I,J,K or --box; "
            f"{extent(grid, space, name)}"
        )
    for text in contradictions(found, grid):
        say(f"warning: {name}: {text}")
    return found


def contradictions(prompts: PromptSet, grid: Grid) -> list[str]:
    """What cannot all be true of one object, a line for each kind."""
    on = prompts.on(grid)
    points, signs = on.points, on.labels
    found = []
    pairs = combinations(enumerate(on.boxes, 1), 2)
    if apart := next(((one, other) for (one, a), (other, b) in pairs if _apart(a, b)), None):
        found.append(f"boxes {apart[0]} and {apart[1]} do not overlap, but all prompts are about one object")
    outside = [point for point in points[signs] if len(on.boxes) and all(_excludes(box, point) for box in on.boxes)]
    if outside:
        found.append(f"the point at voxel {shown(outside[0])} is to lie in the object, but lies outside every box")
    inside, beside = ({tuple(voxel) for voxel in np.round(points[signs == sign])} for sign in (True, False))
    if both := sorted(inside & beside):
        found.append(f"voxel {shown(both[0])} is to lie in the object and outside it")
    return found


def _apart(one: Corners, other: Corners) -> bool:
    """Whether no object lies in both boxes; 2D boxes speak of each other on one slice only."""
    gap = (one[0] > other[1] + CLOSE) | (other[0] > one[1] + CLOSE)
    flat = _flat(one) & _flat(other)
    if _flat(one).any() and _flat(other).any():
        return bool(flat.any() and not gap[flat].any() and gap.any())
    return bool(gap.any())


def _excludes(box: Corners, point: NDArray[np.float64]) -> bool:
    """Whether an object in the box cannot hold the point; a 2D box says nothing of other slices."""
    beyond = (point < box[0] - HALF) | (point > box[1] + HALF)
    return bool(beyond.any() and not beyond[_flat(box)].any())


def _flat(box: Corners) -> NDArray[np.bool_]:
    return np.asarray(box[1] - box[0] < FLAT)


def parse_point(text: str, space: str, grid: Grid, name: str) -> Prompt:
    """A click from "I,J,K", "I,J,K,+" or "I,J,K,-"."""
    words = [word.strip() for word in text.split(",")]
    sign = words.pop() if len(words) == 4 and words[-1] in SIGNS else "+"
    position = _numbers(words)
    if len(position) != 3:
        raise BadInput(
            f"-p {text}: a point is three numbers such as 120,88,40, or 120,88,40,- outside the object; "
            f"{extent(grid, space, name)}"
        )
    return from_record({"type": "point", "position": position, "positive": SIGNS[sign]}, grid, space)


def parse_box(text: str, space: str, grid: Grid, name: str) -> Prompt:
    """A box from two opposite corners, "I0,J0,K0,I1,J1,K1"."""
    corners = _numbers(text.split(","))
    if len(corners) != 6:
        raise BadInput(
            f"--box {text}: a box is six numbers, two opposite corners such as 100,70,30,140,110,50; "
            f"{extent(grid, space, name)}"
        )
    return from_record({"type": "box", "low": corners[:3], "high": corners[3:]}, grid, space)


def read_prompts(path: Path, grid: Grid, name: str) -> list[Prompt]:
    """Prompts from a file: JSON with `space` and a list `prompts` of {"type": "point|box|scribble|mask", ...}."""
    content = _read_json(path)
    space, records = content.get("space"), content.get("prompts")
    if space not in [known.value for known in Space]:
        raise BadInput(f'{path}: "space" says what the numbers are, "voxel", "ras" or "lps"; got {space!r}')
    if not isinstance(records, list):
        raise BadInput(f'{path}: "prompts" is a list of {{"type": "point", ...}}, got {type(records).__name__}')
    return [_prompt(path, number, record, grid, space, name) for number, record in enumerate(records, 1)]


def saved_session(path: Path) -> Mapping[str, Any] | None:
    """A session that was saved by `Session.save`, a viewer or a server; None where the file holds prompts."""
    from volsam.inference.record import FORMAT, read_record

    if _read_json(path).get("format") != FORMAT:
        return None
    return read_record(path)


def _prompt(path: Path, number: int, record: object, grid: Grid, space: str, name: str) -> Prompt:
    try:
        if not isinstance(record, dict):
            raise BadInput(f'a prompt is a table with a "type", got {record!r}')
        return _mask(path, record) if record.get("type") == "mask" else from_record(record, grid, space)
    except BadInput as error:
        raise BadInput(f"{path}, prompt {number}: {error}; {extent(grid, space, name)}") from error


def _mask(path: Path, record: Mapping[str, Any]) -> MaskHint:
    """A starting mask from the file that `path` of the record names, beside the prompts' file."""
    named = record.get("path")
    if not isinstance(named, str):
        raise BadInput(f'a prompt of type "mask" needs the "path" of a mask file, got {named!r}')
    volume = read_volume(path.parent / named)
    values, label = volume.data[0], record.get("label")
    if label is not None and (type(label) is not int or label < 1):
        raise BadInput(f'"label" is the value of the object in {named}, a whole number from 1, got {label!r}')
    inside = values[values > 0]
    if not inside.size:
        raise BadInput(f"the starting mask {named} is empty")
    if label is None and inside.min() != inside.max():
        raise BadInput(
            f'the starting mask {named} holds the values {_listed(inside)}: add "label": N to say which is the object'
        )
    if label is not None and not (inside == label).any():
        raise BadInput(f'"label" is {label}, but the starting mask {named} holds {_listed(inside)}')
    return MaskHint(values > 0 if label is None else values == label, volume.grid)


def _listed(values: NDArray[Any]) -> str:
    found = np.unique(values)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(f"{value:g}" for value in found[:LISTED]) + more


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}): give a file of prompts") from None
    except ValueError as error:
        raise BadFile(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadFile(f'{path} holds a {type(content).__name__}, not a table with "space" and "prompts"')
    return content


def _points_at_object(prompt: Prompt) -> bool:
    return isinstance(prompt, Box | MaskHint) or prompt.positive


def _numbers(words: Sequence[str]) -> list[float]:
    """The words as numbers; none at all if one of them is not a finite number."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return []
    return values if all(abs(value) < float("inf") for value in values) else []


def extent(grid: Grid, space: str, name: str) -> str:
    """Where a volume lies, in the space in which the user points."""
    if space == "voxel":
        return f"{name} spans voxels 0,0,0 to {','.join(str(size - 1) for size in grid.shape)}"
    corners = np.array(grid.extent())
    if space == "lps":
        corners = np.sort(corners * (-1, -1, 1), axis=0)
    low, high = corners
    return f"{name} spans {shown(low)} to {shown(high)} mm ({space.upper()}+)"
