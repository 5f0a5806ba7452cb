"""2D models in volumes: slice by slice, or from one prompted slice through the whole object.

SAM, MedSAM and SAM-Med2D see one slice. A click or box on a slice is answered there; from there the object is followed
to both sides: what was found in one slice becomes a box (and, for models that take them, a mask and a click) in the
next, until the object ends. Slices that carry prompts of their own are answered by these.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.inference import corrections
from volsam.inference.model import FLAT, Decoded, Logits
from volsam.inference.painting import OUTSIDE, Answer, Patch
from volsam.inference.slices import AXES, SliceMask, SliceModel, SlicePrompts, plane_of
from volsam.models.features import Features
from volsam.models.mask_head import Candidates
from volsam.models.segmenter import enlarge
from volsam.prompts import Box, PromptSet
from volsam.volume import Volume

# Encoded slices kept; one of SAM takes 4 MB.
KEPT_SLICES = 64
# The object has ended where the next slice's mask overlaps the last one's by less than this Dice ...
LEAST_OVERLAP = 0.3
# ... or is larger by this factor, which is a leak, or has fewer pixels than this.
LARGEST_GROWTH = 2.0
FEWEST_PIXELS = 4
# The box for the next slice is wider than the mask by this part of its sides, and at least a pixel.
BOX_MARGIN = 0.05


class SlicePredictor:
    """One 2D model looking at one volume; the same call as `Predictor`.

    plane: of the slices it looks at, "auto" being the one in which the scan was taken (`plane_of`); follow: whether an
    object is followed beyond the slices that carry prompts. Without it each slice is answered by its own prompts only,
    the protocol by which the papers compare 2D models (1, 3 or 10 points per slice).
    """

    def __init__(self, model: SliceModel, volume: Volume, plane: str = "auto", follow: bool = True) -> None:
        self.model = model
        self.volume = volume
        self.follow = follow
        if plane != "auto" and plane not in AXES:
            raise BadInput(f"a plane is auto, {', '.join(AXES)}, got {plane!r}")
        self.plane = plane_of(volume.grid) if plane == "auto" else plane
        self.stack = volume.grid.reoriented(AXES[self.plane])
        self._prepare = model.prepare(volume)
        self._encoded: OrderedDict[int, Features] = OrderedDict()

    def __call__(self, prompts: PromptSet, before: Answer | None = None) -> Answer | None:
        """The mask for all prompts, None if none is in the object; `before` is the answer without the newest one.

        A mask of several slices that was given stays, but for what later clicks correct in their own slices, and for
        boxes, in which it is made anew. One of a single slice is followed to others as if it had been predicted.
        """
        hint, prompts = prompts.ready()
        if hint is None:
            return self._anew(prompts, {})
        if before is not None and before.ready is not None:
            return self._corrected(before.ready, prompts, before.boxes)
        ready = corrections.given(hint, self.volume.grid)
        places = self._places_of(ready)
        if len(places) > 1:
            return self._corrected(ready, prompts, 0)
        return self._anew(prompts, {places[0]: self._shown(ready, places[0])})

    def _anew(self, prompts: PromptSet, masks: dict[int, SliceMask]) -> Answer | None:
        """What prompts, and slices that are known, come to."""
        said, bounds = self._by_slice(prompts)
        for index, asked in said.items():
            if asked.positive:
                masks[index] = self._decode(index, asked)
        if not masks:
            return None
        if self.follow:
            for start in sorted(masks):
                for way in (1, -1):
                    self._follow(start, way, masks, said, bounds)
        return self._answer(masks)

    # --- prompts -------------------------------------------------------------------------------------------------

    def _by_slice(self, prompts: PromptSet) -> tuple[dict[int, SlicePrompts], tuple[int, int]]:
        """Prompts of each slice, and the first and last slice that 3D boxes allow."""
        asked = prompts.on(self.stack)
        count = self.stack.shape[0]
        slices = np.round(asked.points[:, 0]).astype(int).clip(0, count - 1)
        boxes: dict[int, NDArray[np.float64]] = {}
        low, high = 0, count - 1
        for box in asked.boxes:
            first, last = (int(edge) for edge in np.round(box[:, 0]).clip(0, count - 1))
            if (box[1, 1:] - box[0, 1:]).min() < FLAT:
                raise BadInput(
                    f"{self.model.name} looks at {self.plane} slices, and a box here is flat across them: draw it in "
                    "that plane, or in 3D"
                )
            if last > first:
                low, high = max(low, first), min(high, last)
            boxes |= dict.fromkeys(range(first, last + 1), box[:, 1:])
        said = {}
        for index in sorted(set(slices.tolist()) | set(boxes)):
            here = slices == index
            said[index] = SlicePrompts(asked.points[here, 1:], asked.labels[here], boxes.get(index))
        return said, (low, high)

    def _corrected(self, ready: Patch, prompts: PromptSet, done: int) -> Answer:
        """The mask that was given, corrected in the slices where prompts contradict it."""
        grid = self.volume.grid
        ready, boxes = corrections.boxed_anew(ready, prompts, done, lambda asked: self._anew(asked, {}), grid)
        numbers = corrections.contradicted(ready, prompts, grid)
        said, _ = self._by_slice(PromptSet(prompt for prompt in prompts if not isinstance(prompt, Box)))
        asked = {round(place) for place in self.stack.to_voxels(prompts.points()[numbers])[:, 0]} & set(said)
        there = set(self._places_of(ready))
        for index in sorted(asked):
            found = self._mended(ready, index, said[index]) if index in there else None
            if found is None and said[index].positive:
                found = self._decode(index, said[index])
            if found is not None:
                answered = self._in_slice(ready, index, found)
                ready = corrections.corrected(ready, answered, prompts, grid)
        nothing = np.full((1, 1, 1), OUTSIDE, np.float32)
        part = ((0, 1), (0, 1), (0, 1))
        return Answer(self.stack.crop((0, 0, 0), (1, 1, 1)), Decoded(nothing, nothing, part, 0.0), ready, boxes)

    def _mended(self, ready: Patch, index: int, said: SlicePrompts) -> SliceMask:
        """A slice of a mask that was given as the model has it, shown the slice and what was said in it."""
        shown = self._shown(ready, index)
        told = _carried_on(shown.mask, said, "click" in self.model.takes)
        told = SlicePrompts(told.points, told.labels)
        return self._decode(index, told, shown.low_res if self.model.style.feeds_mask else None)

    def _in_slice(self, ready: Patch, index: int, found: SliceMask) -> Patch:
        """A mask with one of its slices as it was found."""
        grid, flat = self.volume.grid, self._slice(index)
        low, high = grid.overlap(flat)
        # 2 in the slice's voxels, 3 where it is marked, 0 beside it.
        values = np.asarray(resample(2 + found.mask[None].astype(np.uint8), flat, grid.crop(low, high), mode="nearest"))
        whole = corrections.union(ready, Patch(low, high, values == 3))
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, whole.low, strict=True))
        whole.mask[inside][values == 2] = False
        return whole

    def _slice(self, index: int) -> Grid:
        return self.stack.crop((index, 0, 0), (index + 1, *self.stack.shape[1:]))

    def _places_of(self, ready: Patch) -> list[int]:
        """The slices that hold some of a mask."""
        if not ready.mask.size:
            return []
        window = self.volume.grid.crop(ready.low, ready.high)
        low, high = self.stack.overlap(window)
        part = np.asarray(resample(ready.mask.astype(np.uint8), window, self.stack.crop(low, high), mode="nearest"))
        return [low[0] + int(index) for index in np.flatnonzero(part.any(axis=(1, 2)))]

    def _shown(self, ready: Patch, index: int) -> SliceMask:
        """A slice of a mask that was given, as if it had been predicted."""
        window = self.volume.grid.crop(ready.low, ready.high)
        mask = np.asarray(resample(ready.mask.astype(np.uint8), window, self._slice(index), mode="nearest"))[0] > 0
        logits = np.where(mask, 8.0, -8.0).astype(np.float32)
        return SliceMask(logits, self._low_res(logits), 1.0)

    def _low_res(self, logits: Logits) -> Logits:
        """Logits (h w) of a slice as the mask prompt of the model."""
        config = self.model.network.config.prompts
        size = [tokens * step**2 for tokens, step in zip(config.grid, config.mask_stride, strict=True)]
        shown = self.model.shown((logits.shape[0], logits.shape[1]))
        image = enlarge(torch.from_numpy(logits)[None, None, None], (1, *shown))
        padded = torch.nn.functional.pad(
            image, (0, self.model.edge - shown[1], 0, self.model.edge - shown[0]), value=-8.0
        )
        return torch.nn.functional.adaptive_avg_pool2d(padded[0], (size[1], size[2]))[0, 0].numpy()

    # --- slices --------------------------------------------------------------------------------------------------

    def _decode(self, index: int, asked: SlicePrompts, previous: Logits | None = None) -> SliceMask:
        shape = (self.stack.shape[1], self.stack.shape[2])
        # In the comparison of the papers the best of three masks is kept, however many points there are.
        several: Candidates | None = "several" if self.model.style.several and not self.follow else None
        found = self.model.decode_slice(self.encoded(index), asked, shape, previous, several)
        if asked.box is None:
            return found
        # Nothing far outside a box that a person has drawn.
        low, high = np.floor(asked.box[0] - 1).clip(0), np.ceil(asked.box[1] + 2)
        held = np.full(shape, OUTSIDE, np.float32)
        window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        held[window] = found.logits[window]
        return SliceMask(held, found.low_res, found.quality)

    def encoded(self, index: int) -> Features:
        """The features of a slice, computed once."""
        if index not in self._encoded:
            reach, last = self.model.reach, self.stack.shape[0] - 1
            seen = [self.pixels(min(max(near, 0), last)) for near in range(index - reach, index + reach + 1)]
            self._encoded[index] = self.model.encode_slice(np.stack(seen) if reach else seen[0])
            while len(self._encoded) > KEPT_SLICES:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(index)
        return self._encoded[index]

    def pixels(self, index: int) -> NDArray[np.float32]:
        """(h w): one slice of the volume's first channel, prepared for the model."""
        flat = self._slice(index)
        return self._prepare(np.asarray(resample(self.volume.data[0], self.volume.grid, flat))[0])

    def _follow(
        self,
        start: int,
        way: int,
        masks: dict[int, SliceMask],
        said: dict[int, SlicePrompts],
        bounds: tuple[int, int],
    ) -> None:
        """From a slice with a mask in one direction, until the object ends or another prompted slice begins."""
        last, index = masks[start], start + way
        while bounds[0] <= index <= bounds[1] and index not in masks and last.mask.any():
            own = said.get(index, SlicePrompts())
            asked = _carried_on(last.mask, own, "click" in self.model.takes)
            found = self._decode(index, asked, last.low_res if self.model.style.feeds_mask else None)
            mask, before = found.mask, last.mask
            size = int(mask.sum())
            overlap = 2 * int((mask & before).sum()) / max(1, size + int(before.sum()))
            if size < FEWEST_PIXELS or size > LARGEST_GROWTH * before.sum() or overlap < LEAST_OVERLAP:
                return
            masks[index] = last = found
            index += way

    def _answer(self, masks: dict[int, SliceMask]) -> Answer:
        """All slices as one block of logits, cut to where the object is."""
        first, last = min(masks), max(masks)
        block = np.full((last - first + 1, *self.stack.shape[1:]), OUTSIDE, np.float32)
        for index, found in masks.items():
            block[index - first] = found.logits
        places = np.nonzero(block > 0)
        rows, columns = (_bounds(places[axis], block.shape[axis]) for axis in (1, 2))
        roi = self.stack.crop((first, rows[0], columns[0]), (last + 1, rows[1], columns[1]))
        logits = np.ascontiguousarray(block[:, slice(*rows), slice(*columns)])
        part = tuple((0, size) for size in logits.shape)
        quality = float(np.mean([found.quality for found in masks.values()]))
        return Answer(roi, Decoded(logits, logits, (part[0], part[1], part[2]), quality))


def _carried_on(mask: NDArray[np.bool_], own: SlicePrompts, clicks: bool) -> SlicePrompts:
    """The mask of one slice as prompts for the next: its box, and its deepest pixel; the user's own prompts on top."""
    from scipy import ndimage  # takes long to load, and most sessions look at volumes

    places = np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0)
    margin = np.maximum(1, BOX_MARGIN * (high - low))
    box = np.array([low - margin, high + margin]).clip(0, np.array(mask.shape) - 1)
    points, labels = own.points, own.labels
    if clicks and not own.labels.any():
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        deepest = np.array(np.unravel_index(int(depth.argmax()), mask.shape), dtype=float)
        points, labels = np.vstack([points, deepest[None]]), np.append(labels, True)
    return SlicePrompts(points, labels, box if own.box is None else own.box)


def _bounds(places: NDArray[np.intp], size: int) -> tuple[int, int]:
    """First and last (excluded) of some places, one wider where there is room; the first two if there are none."""
    if len(places) == 0:
        return 0, min(2, size)
    return max(0, int(places.min()) - 1), min(size, int(places.max()) + 2)
