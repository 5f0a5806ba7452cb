"""Stacks of slices, drawn anew for every step, and what a frozen encoder makes of slices, kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from volsam.data import memory
from volsam.data.preparation import UNKNOWN, Prepared
from volsam.errors import BadInput
from volsam.training.augment import Augment
from volsam.training.items import FOREGROUND, OBJECT, Item, Items, has_some, one_of

# In the label of a stack with a box: what lies before or behind the object in other slices.
SHADOW = 2
# What lies before or behind it where the truth is not known.
HIDDEN = 254


class Stacks(Items):
    """Stacks of slices as MA-SAM and AutoSAM see them: `image` (3 d h w) in 0..1, `label` (d h w).

    Args:
        cases: whose arrays are slices (c d h w).
        slices: in a stack, an odd number; beyond the ends the outermost slice is repeated.
        edge: pixels along both sides of a slice.
        augment: changes an item as it is drawn, all slices alike.
        seed: of what is drawn.
        boxed: let the label be 1 in one class, and give `box` (2 2) beside it: first and last (row, column) of the
            rectangle of the object's 3D box. Stacks are then drawn from the slices that the object is in.
        channels: that are seen: 1 in grey, or 3 as red, green and blue.
    """

    def __init__(
        self,
        cases: Sequence[Prepared],
        slices: int,
        edge: int,
        augment: Augment,
        seed: int,
        *,
        boxed: bool = False,
        channels: int = 1,
    ) -> None:
        super().__init__(seed)
        self.cases = cases
        self.slices = slices
        self.edge = edge
        self.augment = augment
        self.boxed = boxed
        self.channels = channels

    def make(self, random: np.random.Generator) -> Item:
        """A stack around a slice that holds some class, or any."""
        case = self.cases[int(random.integers(len(self.cases)))]
        present = [index for index, places in enumerate(case.places) if len(places)]
        chosen = None
        if present and (self.boxed or random.random() < FOREGROUND):
            chosen = present[int(random.integers(len(present)))]
            places = case.places[chosen]
            middle = int(places[random.integers(len(places))][0])
        else:
            middle = int(random.integers(len(case.label)))
        image, label = self.stack(case, middle)
        if self.boxed:
            label = self._outlined(case, label, chosen)
        image, label, _ = self.augment.places(image, label, np.ones(label.shape, bool), random)
        image = self.augment.values(image, random)
        covers = (label == OBJECT) | (label == SHADOW) | (label == HIDDEN)
        if not self.boxed:
            return {"image": coloured(image), "label": torch.from_numpy(label.astype(np.int64))}
        return {
            "image": coloured(image),
            "label": torch.from_numpy(one_of(np.where(label == HIDDEN, UNKNOWN, label), OBJECT).astype(np.int64)),
            "box": torch.from_numpy(self._voxels_of(case, rectangle(np.asarray(covers.any(axis=0))))),
        }

    def _outlined(self, case: Prepared, label: NDArray[np.uint8], chosen: int | None) -> NDArray[np.uint8]:
        """`OBJECT` where one class is, `SHADOW` or `HIDDEN` elsewhere where any slice has it, and `UNKNOWN`."""
        if chosen is None:
            return one_of(label, None)
        shadow = (case.label == chosen + 1).any(axis=0).astype(np.float32)
        sized = F.interpolate(torch.from_numpy(shadow)[None, None], size=label.shape[1:], mode="nearest-exact")
        covers = sized[0, 0].numpy() > 0.5
        found = np.where(label == chosen + 1, OBJECT, SHADOW * covers)
        return np.where(label == UNKNOWN, np.where(covers, HIDDEN, UNKNOWN), found).astype(np.uint8)

    def _voxels_of(self, case: Prepared, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """A rectangle (2 2) of outermost pixels as one of the middles of outermost voxels, which is what users give."""
        step = np.array([self.edge, self.edge], np.float32) / np.array(case.label.shape[1:], np.float32)
        inwards = np.maximum(0, (step - 1) / 2)
        low, high = pixels[0] + inwards, pixels[1] - inwards
        middle = (low + high) / 2
        return np.stack([np.minimum(low, middle), np.maximum(high, middle)]).astype(np.float32)

    def stack(self, case: Prepared, middle: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Image (c d h w), each channel 0 to 1 by its own limits, and label (d h w), at the size of the network."""
        reach = self.slices // 2
        members = np.clip(np.arange(middle - reach, middle + reach + 1), 0, len(case.label) - 1)
        pixels = torch.from_numpy(case.image[: self.channels, members].astype(np.float32))[None]
        size = (len(members), self.edge, self.edge)
        sized = F.interpolate(pixels, size=size, mode="trilinear", align_corners=False)[0].numpy()
        values = torch.from_numpy(case.label[members].astype(np.float32))[None, None]
        label = F.interpolate(values, size=size, mode="nearest-exact")[0, 0]
        low, high = (extreme(pixels[0], dim=(1, 2, 3), keepdim=True).numpy() for extreme in (torch.amin, torch.amax))
        scaled = ((sized - low) / np.where(high > low, high - low, 1.0)).astype(np.float32)
        return scaled, label.numpy().astype(np.uint8)


def rectangle(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """First and last (row, column) of what is true in a mask (h w), all of it where nothing is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return np.array([[0, 0], [mask.shape[0] - 1, mask.shape[1] - 1]], np.float32)
    return np.array([[rows[0], columns[0]], [rows[-1], columns[-1]]], np.float32)


def coloured(stack: NDArray[np.float32]) -> Tensor:
    """A stack in colour (3 d h w) as it is, a grey one (1 d h w) in three equal colours."""
    return torch.from_numpy(np.ascontiguousarray(stack)).expand(3, -1, -1, -1).clone()


class Embedded(Items):
    """Slices as a frozen encoder sees them, each encoded once in some versions: `embedding` and `label`.

    Args:
        slices: where the slices come from.
        encode: images (b 3 1 h w) to embeddings (b c 1 y x).
        versions: of every slice, the first as it is and the others augmented.
        progress: passes on the numbers of the slices, and may show how far it is.
    """

    def __init__(
        self,
        slices: Stacks,
        encode: Callable[[Tensor], Tensor],
        versions: int,
        progress: Callable[[Sequence[int]], Any] = iter,
    ) -> None:
        super().__init__(slices.seed)
        wanted = [
            (case, index, version)
            for case in slices.cases
            for index in range(len(case.label))
            for version in range(versions if has_some(case.label[index]) else 1)
        ]
        _require_memory(slices, encode, len(wanted))
        self.made: list[Item] = []
        for number in progress(range(len(wanted))):
            case, index, version = wanted[number]
            image, label = slices.stack(case, index)
            if version:
                random = np.random.default_rng([slices.seed, number])
                image, label, _ = slices.augment.places(image, label, np.ones(label.shape, bool), random)
                image = slices.augment.values(image, random)
            with torch.no_grad():
                embedding = encode(coloured(image)[None])[0].half().cpu()
            self.made.append({"embedding": embedding, "label": torch.from_numpy(label.copy())})
        self.with_some = [number for number, item in enumerate(self.made) if has_some(item["label"].numpy())]

    def make(self, random: np.random.Generator) -> Item:
        """Any slice, more often one that holds some class."""
        chosen = self.with_some if self.with_some and random.random() < FOREGROUND else range(len(self.made))
        item = self.made[chosen[int(random.integers(len(chosen)))]]
        return {"embedding": item["embedding"].float(), "label": item["label"].long()}


def _require_memory(slices: Stacks, encode: Callable[[Tensor], Tensor], count: int) -> None:
    """Refuse more slices than there is memory for, before the first is encoded."""
    with torch.no_grad():
        embedding = encode(torch.zeros(1, 3, slices.slices, slices.edge, slices.edge))
    needed = count * (2 * embedding.numel() + slices.slices * slices.edge**2)
    free = memory.available_memory()
    if free is not None and needed > free:
        raise BadInput(
            f"{count} encoded slices take {memory.gigabytes(needed)} of memory, and {memory.gigabytes(free)} are free: "
            "learn from fewer with --train-cases, set versions=1, or a smaller edge"
        )
