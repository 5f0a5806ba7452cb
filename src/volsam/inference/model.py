"""What a session needs of a model: encode a region once, answer prompts in it many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.data.preprocess import look
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.models.dense_prompt import DensePromptNet
from volsam.models.features import Features
from volsam.models.prompt_maps import NOWHERE, Prompts
from volsam.prompts import Box, GridPrompts, MaskHint, Prompt
from volsam.volume import Volume

Logits = NDArray[np.float32]
Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# Where the half-size mask is surer than this of background, the full-size mask is not looked at.
SURE = -2.5


class Decoded:
    """A mask in a region.

    low_res: logits of the whole region, coarser by the model's `step`, to feed back; logits: (d' h' w') at the region's
    resolution within `part`, outside of which there is nothing; quality: expected Dice with the whole object.
    """

    def __init__(self, low_res: Logits, logits: Logits | Callable[[], Logits], part: Bounds, quality: float) -> None:
        self.low_res = low_res
        self.part = part
        self.quality = quality
        self._logits = logits

    @property
    def pending(self) -> bool:
        """Whether `logits` have yet to be made."""
        return callable(self._logits)

    @property
    def logits(self) -> Logits:
        """Made when first asked for: of the zooms that are tried at a first click, all but one never are."""
        if callable(self._logits):
            self._logits = self._logits()
        return self._logits


# A box that is thinner than so many voxels lies on one slice.
FLAT = 0.5
Kind = Literal["click", "negative click", "box", "flat box", "mask"]
"""What a model may take; a scribble is many clicks, and a flat box is one on a single slice."""

EVERYTHING: frozenset[Kind] = frozenset({"click", "negative click", "box", "flat box", "mask"})


class InteractiveModel(Protocol):
    """A promptable 3D model as a session sees it."""

    @property
    def name(self) -> str:
        """What a user types to have it."""

    @property
    def edge(self) -> int:
        """Voxels of its region along each axis."""

    @property
    def step(self) -> int:
        """How much coarser `Decoded.low_res` is than the region."""

    @property
    def spacing(self) -> float | None:
        """The voxel size in mm that it was made for; None if it looks at any."""

    @property
    def axes(self) -> str:
        """Where the axes of its region point; models of one voxel size are used to one order of axes."""

    @property
    def takes(self) -> frozenset[Kind]:
        """The prompts that it understands."""

    def encode(self, volume: Volume, roi: Grid) -> Any:
        """The costly step for a region; what it returns is only handed back to `decode`."""

    def decode(self, encoded: Any, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        """Answer prompts, given in voxels of the region; `previous` is a `low_res` of the same region."""

    def decode_many(self, encoded: Any, prompts: Sequence[GridPrompts], previous: Logits | None) -> NDArray[np.float32]:
        """Low-resolution logits (n d h w) for several sets of prompts in one region."""


def require_taken(prompt: Prompt, grid: Grid, name: str, takes: frozenset[Kind]) -> None:
    """Refuse a prompt that a model does not understand; better than an answer that ignores it."""
    kind = kind_of(prompt, grid)
    if kind not in takes:
        known = ", ".join(sorted(takes))
        raise BadInput(f"{name} takes no {kind}; it takes: {known}. Give one of these, or choose another model")


def kind_of(prompt: Prompt, grid: Grid) -> Kind:
    """What a prompt is to a model; a box is flat if it lies on one slice of the scan."""
    if isinstance(prompt, Box):
        return "flat box" if is_flat(prompt, grid) else "box"
    if isinstance(prompt, MaskHint):
        return "mask"
    return "click" if prompt.positive else "negative click"


def is_flat(box: Box, grid: Grid) -> bool:
    """Whether a box lies on one slice of the scan, along the scan's own axes."""
    return bool(np.abs(np.subtract(*grid.to_voxels([box.low, box.high]))).min() < FLAT)


class DensePromptModel:
    """volsam-s: `DensePromptNet` behind the numpy interface of a session."""

    step = 2
    spacing = None
    axes = "RAS"
    takes = EVERYTHING

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
        """Half-size mask at once, full size inside its box when it is wanted."""
        asked = self._prompts(encoded, [prompts], previous)
        draft = self.network.draft(encoded, asked)
        half = draft.half[0, 0].float().cpu().numpy()
        part = box_of(half > SURE, self.step)

        @torch.inference_mode()
        def logits() -> Logits:
            cuts = (slice(*part[0]), slice(*part[1]), slice(*part[2]))
            return self.network.refine(encoded, asked, draft, cuts)[0, 0].float().cpu().numpy()

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


def box_of(mask: NDArray[np.bool_], step: int) -> Bounds:
    """Bounds at full size of a mask coarser by `step`, one voxel wider; a single block in the corner if it is empty."""
    bounds = []
    for axis, size in enumerate(mask.shape):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (max(line[0] - 1, 0), min(line[-1] + 2, size)) if len(line) else (0, 1)
        bounds.append((int(step * low), int(step * high)))
    return (bounds[0], bounds[1], bounds[2])
