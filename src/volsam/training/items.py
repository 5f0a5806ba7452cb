"""What a network is shown: patches of volumes, or stacks of slices, drawn anew for every step.

An item follows from its number and the seed alone. So a run that was stopped goes on with the items it would have seen,
and two processes see, item by item, what one sees with a batch twice the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from volsam.data import memory
from volsam.data.preparation import UNKNOWN, Prepared
from volsam.data.preprocess import positions
from volsam.errors import BadInput
from volsam.training.augment import Augment

Item: TypeAlias = dict[str, Tensor]
Shape: TypeAlias = tuple[int, int, int]
Seen: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]

# How often a patch is drawn around a voxel of some class, and not anywhere.
FOREGROUND = 0.67
# By how much of a volume's half the places that are told differ from the true ones, from item to item.
MISPLACED = 0.1
# In the label of a stack with a box: the object, and what lies before or behind it in other slices.
OBJECT, SHADOW = 1, 2
# What lies before or behind it where the truth is not known.
HIDDEN = 254


class Items(Dataset[Item]):
    """Items by their numbers, without end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, number: int) -> Item:
        """The item of that number."""
        return self.make(np.random.default_rng([self.seed, number]))

    def make(self, random: np.random.Generator) -> Item:
        """An item from what is drawn."""
        raise TypeError(f"{type(self).__name__} does not say how an item is made")


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


def one_of(label: NDArray[np.uint8], index: int | None) -> NDArray[np.uint8]:
    """A label that is `OBJECT` in one class, none for None, and 0 elsewhere; what is not known stays so."""
    object_ = np.zeros(label.shape, np.uint8) if index is None else np.where(label == index, OBJECT, 0)
    return np.where(label == UNKNOWN, UNKNOWN, object_).astype(np.uint8)


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
            for version in range(versions if _has_some(case.label[index]) else 1)
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
        self.with_some = [number for number, item in enumerate(self.made) if _has_some(item["label"].numpy())]

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


def _has_some(label: NDArray[np.uint8]) -> bool:
    """Whether a label holds any class but the background."""
    return bool(((label > 0) & (label != UNKNOWN)).any())


# --- in the order of the steps ---------------------------------------------------------------------------------------


class Numbers(Sampler[int]):
    """Numbers of the items of one process, from a step on: of every batch its own part."""

    def __init__(self, batch_size: int, first_step: int, rank: int, processes: int) -> None:
        self.own = batch_size // processes
        self.start = first_step
        self.rank = rank
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        """Without end."""
        step = self.start
        while True:
            first = step * self.batch_size + self.rank * self.own
            yield from range(first, first + self.own)
            step += 1


def batches(items: Items, numbers: Numbers, parts: int, workers: int) -> Iterator[Item]:
    """Batches of one process without end, each step in so many parts."""
    loader: DataLoader[Item] = DataLoader(
        items, batch_size=numbers.own // parts, sampler=numbers, num_workers=workers, persistent_workers=False
    )
    return iter(loader)
