"""Video of operations as volumes: the frames of a sequence one behind the other, with labels painted in colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volsam.data.dataset import mapped, write_table
from volsam.data.io import write_volume
from volsam.data.presets import Preset
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.volume import Volume

ENDING = ".nii.gz"
FRAMES, FRAME_LABELS = "left_frames", "labels"


def sequences(source: Path) -> list[Path]:
    """Folders of sequences: frames and labels beside one another."""
    found = [path.parent for path in source.rglob(FRAMES) if path.is_dir() and (path.parent / FRAME_LABELS).is_dir()]
    return sorted(found)


def film(source: Path, folder: Path, preset: Preset) -> tuple[int, int]:
    """Write a case for every sequence, frames one behind the other, a file for each colour; how many, and labels."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    names, values = preset.relabelled()
    found = sequences(source)
    twice = [name for name, count in Counter(sequence.name for sequence in found).items() if count > 1]
    if twice:
        raise BadInput(f"{source} holds several sequences called {twice[0]}: convert their folders one by one")
    for sequence in found:
        frames, labels = _one(sequence, preset)
        volume = Volume(frames, Grid.at(frames.shape[1:], (1.0, 1.0, 1.0)), sequence.name)
        for channel in range(3):
            write_volume(
                volume.with_data(frames[channel]), folder / "imagesTr" / f"{sequence.name}_{channel:04d}{ENDING}"
            )
        write_volume(volume.with_data(mapped(labels, values)), folder / "labelsTr" / f"{sequence.name}{ENDING}")
    write_table(folder, preset.title, ("red", "green", "blue"), names, len(found))
    return len(found), len(names) - 1


def _one(sequence: Path, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Frames (3, x, y, t) and labels (x, y, t), of the frames that have a label."""
    from PIL import Image

    pairs = [(path, sequence / FRAME_LABELS / path.name) for path in sorted((sequence / FRAMES).glob("*.png"))]
    pairs = [(frame, label) for frame, label in pairs if label.is_file()]
    if not pairs:
        raise BadFile(f"{sequence} holds no frame with a label of the same name in {FRAME_LABELS}")

    def stacked(paths: Sequence[Path]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])

    frames = stacked([frame for frame, _ in pairs])
    codes = _codes(stacked([label for _, label in pairs]))
    labels = np.full(codes.shape, 255, np.uint8)
    for value, colour in preset.colours.items():
        labels[codes == _codes(np.array(colour))] = value
    if (labels == 255).any():
        t, y, x = np.argwhere(labels == 255)[0]
        raise BadInput(f"{pairs[t][1]}: the colour at column {x}, row {y} is none of {preset.name}")
    return np.transpose(frames, (3, 2, 1, 0)), np.transpose(labels, (2, 1, 0))


def _codes(colours: np.ndarray) -> np.ndarray:
    """A number for each colour (..., 3)."""
    wide = colours.astype(np.int64)
    return wide[..., 0] * 65536 + wide[..., 1] * 256 + wide[..., 2]
