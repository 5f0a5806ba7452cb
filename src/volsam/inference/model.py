"""What a session needs of a model: encode a region once, answer prompts in it many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.data.preprocess import look
from volsam.geometry import Grid
from volsam.models.dense_prompt import DensePromptNet
from volsam.models.features import Features
from volsam.models.prompt_maps import NOWHERE, Prompts
from volsam.prompts import GridPrompts
from volsam.volume import Volume

Logits = NDArray[np.float32]
Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# Where the half-size mask is surer than this of background, the full-size mask is not looked at.
SURE = -2.5


@dataclass(frozen=True)
class Decoded:
    """A mask in a region.

    low_res: (d/2 h/2 w/2) logits of the whole region, to feed back; logits: (d' h' w') at the region's resolution
    within `part`, outside of which there is nothing; quality: expected Dice with the whole object.
    """

    low_res: Logits
    logits: Logits
    part: Bounds
    quality: float


class InteractiveModel(Protocol):
    """A promptable 3D model as a session sees it; `edge` is the number of voxels of its region along each axis."""

    name: str
    edge: int

    def encode(self, volume: Volume, roi: Grid) -> Any:
        """The costly step for a region; what it returns is only handed back to `decode`."""

    def decode(self, encoded: Any, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        """Answer prompts, given in voxels of the region; `previous` is a `low_res` of the same region."""

    def decode_many(self, encoded: Any, prompts: Sequence[GridPrompts], previous: Logits | None) -> NDArray[np.float32]:
        """Low-resolution logits (n d/2 h/2 w/2) for several sets of prompts in one region."""


class DensePromptModel:
    """volsam-s: `DensePromptNet` behind the numpy interface of a session."""

    def __init__(self, network: DensePromptNet, name: str, device: str = "cpu", edge: int = 64) -> None:
        self.name = name
        self.edge = edge
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()

    @torch.inference_mode()
    def encode(self, volume: Volume, roi: Grid) -> Features:
        """Features of a region of the volume's first channel."""
        image = torch.from_numpy(look(volume, roi))[None].to(self.device)
        return self.network.encode(image)

    @torch.inference_mode()
    def decode(self, encoded: Features, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        """Half-size mask first, then full size inside its box."""
        asked = self._prompts(encoded, [prompts], previous)
        draft = self.network.draft(encoded, asked)
        half = draft.half[0, 0].float().cpu().numpy()
        part = _box_of(half > SURE, half.shape)
        cuts = (slice(*part[0]), slice(*part[1]), slice(*part[2]))
        logits = self.network.refine(encoded, asked, draft, cuts)[0, 0].float().cpu().numpy()
        return Decoded(half, logits, part, float(draft.quality[0, 0]))

    @torch.inference_mode()
    def decode_many(self, encoded: Features, prompts: Sequence[GridPrompts], previous: Logits | None) -> Logits:
        """All sets in one batch."""
        asked = self._prompts(encoded, prompts, previous)
        draft = self.network.draft(encoded.repeat(len(prompts)), asked)
        return draft.half[:, 0].float().cpu().numpy()

    def _prompts(self, encoded: Features, prompts: Sequence[GridPrompts], previous: Logits | None) -> Prompts:
        count = max(1, *(len(asked.points) for asked in prompts))
        points = np.full((len(prompts), count, 3), NOWHERE, np.float32)
        labels = np.full((len(prompts), count), -1, np.int64)
        shape = encoded.image.shape[-3:]
        boxes = np.zeros((len(prompts), 1, *shape), np.float32)
        for index, asked in enumerate(prompts):
            # A click beyond the region is absent here: the network would take the border's features for the click's.
            seen = ((asked.points >= -0.5) & (asked.points <= np.array(shape) - 0.5)).all(axis=1)
            points[index, : seen.sum()] = asked.points[seen]
            labels[index, : seen.sum()] = asked.labels[seen]
            _fill_boxes(boxes[index, 0], asked.boxes)
        fed = None
        if previous is not None:
            fed = torch.from_numpy(np.ascontiguousarray(previous, dtype=np.float32))[None, None].to(self.device)
            fed = fed.expand(len(prompts), -1, -1, -1, -1)
        box = torch.from_numpy(boxes).to(self.device) if boxes.any() else None
        return Prompts(torch.from_numpy(points).to(self.device), torch.from_numpy(labels).to(self.device), box, fed)


def _fill_boxes(canvas: Logits, boxes: NDArray[np.float64]) -> None:
    """1 in every voxel that a box holds, those of its corners included; a flat box fills one slice."""
    for low, high in boxes:
        first = np.clip(np.floor(low + 0.5), 0, canvas.shape).astype(int)
        last = np.clip(np.floor(high + 0.5) + 1, 0, canvas.shape).astype(int)
        canvas[first[0] : last[0], first[1] : last[1], first[2] : last[2]] = 1


def _box_of(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> Bounds:
    """Bounds at full size of a half-size mask, one voxel wider; a single block in the corner if it is empty."""
    bounds = []
    for axis, size in enumerate(shape):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (max(line[0] - 1, 0), min(line[-1] + 2, size)) if len(line) else (0, 1)
        bounds.append((int(2 * low), int(2 * high)))
    return (bounds[0], bounds[1], bounds[2])
