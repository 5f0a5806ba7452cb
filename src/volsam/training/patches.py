"""Patches of volumes, drawn anew for every step, with or without an object in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.data.preparation import UNKNOWN, Prepared
from volsam.data.preprocess import positions
from volsam.training.augment import Augment
from volsam.training.items import FOREGROUND, OBJECT, Item, Items, Shape, one_of

Seen: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]

# By how much of a volume's half the places that are told differ from the true ones, from item to item.
MISPLACED = 0.1


class Patches(Items):
    """Patches of volumes: `image` (c d h w) and `label` (d h w).

    Args:
        cases: to draw from, each as often as any other.
        patch: voxels of a patch; what a volume lacks is filled with the lowest value and background.
        augment: changes an item as it is drawn.
        seed: of what is drawn.
        seen: what the network sees (c d h w), from a patch of the first channel (d h w) and where the volume is in it:
            `normalise` for volsam-s. Without it patches are seen as they are prepared.
        still: leave values that are not above zero as they are, for a `seen` that looks at what is above zero: there
            the air of a scan would count as well, once it was made a little brighter.
        placed: tell beside it where every voxel lies in its volume, in three channels more.
        points: clicks to give beside it, in the object and anywhere; see `PointsTask`.
        one_object: let the label be 1 in one class, around which the patch is drawn, and 0 elsewhere, `UNKNOWN` aside;
            `whole` is then how many voxels it has, with those outside of the patch.
    """

    def __init__(
        self,
        cases: Sequence[Prepared],
        patch: Shape,
        augment: Augment,
        seed: int,
        *,
        seen: Seen | None = None,
        still: bool = False,
        placed: bool = False,
        points: tuple[int, int] | None = None,
        one_object: bool = False,
    ) -> None:
        super().__init__(seed)
        self.cases = cases
        self.patch = patch
        self.augment = augment
        self.seen = seen
        self.still = still
        self.placed = placed
        self.points = points
        self.one_object = one_object

    def make(self, random: np.random.Generator) -> Item:
        """A patch, around a voxel of a class that the case has or anywhere."""
        case = self.cases[int(random.integers(len(self.cases)))]
        present = [index for index, places in enumerate(case.places) if len(places)]
        patch = np.array(self.patch)
        chosen = None
        if present and (self.one_object or random.random() < FOREGROUND):
            chosen = present[int(random.integers(len(present)))]
            places = case.places[chosen]
            low = places[random.integers(len(places))] - random.integers(patch // 4, 3 * patch // 4 + 1)
        else:
            low = self.anywhere(case, random)
        begin = self.within(case, low)
        image, label, known = cut(case, begin, self.patch)
        channels = len(image)
        if self.placed:
            image = np.concatenate([image, self._places(case, begin, random)])
        outside: int = 0
        if self.one_object:
            label = one_of(label, None if chosen is None else chosen + 1)
            outside = 0 if chosen is None else int(np.sum(case.label == chosen + 1) - np.sum(label == OBJECT))
        image, label, known = self.augment.places(image, label, known, random)
        image, told = image[:channels], image[channels:]
        changed = self.augment.values(self.augment.brightness(image, random), random)
        image = np.where(image > 0, changed, image) if self.still else changed
        if self.seen is not None:  # last, as with a volume that is met later
            image, label = self.seen(image[0], known), label * known
        item = {
            "image": torch.from_numpy(np.concatenate([image, told])),
            "label": torch.from_numpy(label.astype(np.int64)),
        }
        if self.one_object:
            item["whole"] = torch.tensor(float(np.count_nonzero(label == OBJECT) + outside))
        if self.points is not None:
            item["points"] = torch.from_numpy(drawn_points((label > 0) & (label != UNKNOWN), self.points, random))
        return item

    def anywhere(self, case: Prepared, random: np.random.Generator) -> NDArray[np.int64]:
        """The low corner (3,) of a patch, drawn."""
        room = np.array(case.label.shape) - np.array(self.patch)
        return random.integers(np.minimum(0, room), np.maximum(0, room) + 1)

    def cut(
        self, case: Prepared, low: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """The patch from about `low` on: a volume that is smaller lies in it whole, and none reaches out further than
        it must.
        """
        return cut(case, self.within(case, low), self.patch)

    def within(self, case: Prepared, low: NDArray[np.integer]) -> list[int]:
        """Where the patch begins that is cut for `low`."""
        room = np.array(case.label.shape) - np.array(self.patch)
        return [int(value) for value in np.clip(low, np.minimum(0, room), np.maximum(0, room))]

    def _places(self, case: Prepared, low: Sequence[int], random: np.random.Generator) -> NDArray[np.float32]:
        """Where the patch is (3 d h w), in a frame that is a little off, as scans of others will be."""
        shift, stretch = random.normal(0.0, MISPLACED, (2, 3, 1, 1, 1))
        told = positions(case.label.shape, low, self.patch) * (1 + stretch) + shift
        return np.asarray(told, np.float32)


def cut(
    case: Prepared, low: Sequence[int], patch: Shape
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
    """Image, label and where the volume is, of a patch that may reach beyond it."""
    inner, outer = [], []
    for start, length, size in zip(low, patch, case.label.shape, strict=True):
        inner.append(slice(max(start, 0), min(start + length, size)))
        outer.append(slice(max(-start, 0), max(-start, 0) + max(0, min(start + length, size) - max(start, 0))))
    part = case.image[(slice(None), *inner)].astype(np.float32)
    lowest = part.min(axis=(1, 2, 3), keepdims=True) if part.size else np.zeros((len(case.image), 1, 1, 1), np.float32)
    image = np.broadcast_to(lowest, (len(case.image), *patch)).copy()
    label, known = np.zeros(patch, np.uint8), np.zeros(patch, bool)
    image[(slice(None), *outer)] = part
    label[tuple(outer)] = case.label[tuple(inner)]
    known[tuple(outer)] = True
    return image, label, known


def drawn_points(target: NDArray[np.bool_], count: tuple[int, int], random: np.random.Generator) -> NDArray[np.float32]:
    """Voxels (n, 3) in the object, with replacement, then voxels anywhere; only the latter where there is no object."""
    inside = np.argwhere(target)
    anywhere = random.integers(0, target.shape, size=(count[1] + (0 if len(inside) else count[0]), 3))
    if len(inside) == 0:
        return anywhere.astype(np.float32)
    return np.concatenate([inside[random.integers(len(inside), size=count[0])], anywhere]).astype(np.float32)
