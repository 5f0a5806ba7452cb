"""What the user points at: prompts from the words of a command line and from files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volsam.cli.options import Space
from volsam.data.io import read_volume
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.prompts import Box, MaskHint, Prompt, PromptSet, from_record

SIGNS = {"+": True, "-": False}


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
    return found


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
    if not (volume.data[0] > 0).any():
        raise BadInput(f"the starting mask {named} is empty")
    return MaskHint(volume.data[0], volume.grid)


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
    low, high = corners.tolist()
    return f"{name} spans {_shown(low)} to {_shown(high)} mm ({space.upper()}+)"


def _shown(position: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in position)
