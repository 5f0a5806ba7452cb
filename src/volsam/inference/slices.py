"""2D models in volumes: slice by slice, or from one prompted slice through the whole object.

SAM, MedSAM and SAM-Med2D see one slice. A click or box on a slice is answered there; from there the object is followed
to both sides: what was found in one slice becomes a box (and, for models that take them, a mask and a click) in the
next, until the object ends. Slices that carry prompts of their own are answered by these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.data.preprocess import eight_bit_window, to_eight_bit
from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.inference import corrections
from volsam.inference.model import FLAT, Decoded, Kind, Logits
from volsam.inference.painting import OUTSIDE, Answer, Patch
from volsam.inference.volumes import dice_of_iou
from volsam.models.features import Features, Prediction
from volsam.models.mask_head import Candidates
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import Segmenter, enlarge
from volsam.prompts import Box, PromptSet
from volsam.volume import Volume

# Slices in the order (across, down, along a row) in which radiologists look at them, as axes of the scan.
AXES: dict[str, str] = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
# Encoded slices kept; one of SAM takes 4 MB.
KEPT_SLICES = 64
# The object has ended where the next slice's mask overlaps the last one's by less than this Dice ...
LEAST_OVERLAP = 0.3
# ... or is larger by this factor, which is a leak, or has fewer pixels than this.
LARGEST_GROWTH = 2.0
FEWEST_PIXELS = 4
# The box for the next slice is wider than the mask by this part of its sides, and at least a pixel.
BOX_MARGIN = 0.05


@dataclass(frozen=True)
class SliceStyle:
    """How a published 2D model wants its slices.

    keep_aspect: the longer side is brought to the model's size and the rest padded, as SAM does, instead of both sides;
    mean, spread: of the three 8-bit colours; takes: prompts understood; feeds_mask: whether the mask of the slice
    before is also given as a mask prompt; several: whether a lone click is answered by the best of three masks.
    """

    keep_aspect: bool
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    takes: frozenset[Kind]
    feeds_mask: bool = True
    several: bool = True


_MEAN, _SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_POINTS: frozenset[Kind] = frozenset({"click", "negative click", "box", "flat box", "mask"})

SAM = SliceStyle(keep_aspect=True, mean=_MEAN, spread=_SPREAD, takes=_POINTS)
SAM_MED2D = SliceStyle(keep_aspect=False, mean=_MEAN, spread=_SPREAD, takes=_POINTS)
# MedSAM was tuned with boxes only, on images scaled to 0..1, without the colours' statistics.
MEDSAM = SliceStyle(
    keep_aspect=False,
    mean=(0.0, 0.0, 0.0),
    spread=(255.0, 255.0, 255.0),
    takes=frozenset({"box", "flat box"}),
    feeds_mask=False,
    several=False,
)


@dataclass(frozen=True)
class SlicePrompts:
    """Prompts in pixels (row, column) of one slice: points (n 2) with labels (n), a box (2 2) or None."""

    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    box: NDArray[np.float64] | None = None

    @property
    def positive(self) -> bool:
        """Whether something here is said to be object."""
        return self.box is not None or bool(self.labels.any())


@dataclass(frozen=True)
class SliceMask:
    """Logits (h w) of a slice, the same at the model's own low resolution (for feeding on), expected Dice."""

    logits: Logits
    low_res: Logits
    quality: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h w)."""
        return self.logits > 0


class SliceModel:
    """A published 2D network: one slice to features, prompts on it to a mask."""

    reach = 0
    """How many slices to both sides it sees beside the one that is asked about; `encode_slice` gets all of them."""

    def __init__(self, network: Segmenter, name: str, style: SliceStyle, device: str = "cpu") -> None:
        self.name = name
        self.style = style
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.edge = network.config.encoder.image[2]
        self.takes = style.takes

    def shown(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The part of the model's image that a slice of `shape` fills, from its upper left corner."""
        if not self.style.keep_aspect:
            return self.edge, self.edge
        scale = self.edge / max(shape)
        return int(shape[0] * scale + 0.5), int(shape[1] * scale + 0.5)

    def prepare(self, volume: Volume) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
        """What makes of a volume's intensities the values that `encode_slice` takes: grey values 0 to 255."""
        window = eight_bit_window(volume)
        return lambda values: to_eight_bit(values, window)

    @torch.inference_mode()
    def encode_slice(self, pixels: NDArray[np.float32]) -> Features:
        """Features of a slice (h w) of grey values 0 to 255."""
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None, None, None].to(self.device)
        height, width = self.shown((pixels.shape[0], pixels.shape[1]))
        image = enlarge(image, (1, height, width))
        colours = image.expand(-1, 3, -1, -1, -1)
        mean = torch.tensor(self.style.mean, device=self.device)[None, :, None, None, None]
        spread = torch.tensor(self.style.spread, device=self.device)[None, :, None, None, None]
        padding = (0, self.edge - width, 0, self.edge - height)
        found = self.network.encode(torch.nn.functional.pad((colours - mean) / spread, padding))
        # The decoder asks for the image's size only, and the image takes three times as much as its features.
        return Features(found.embedding, found.taps, found.image.new_zeros(1).expand(found.image.shape))

    @torch.inference_mode()
    def decode_slice(
        self,
        encoded: Features,
        prompts: SlicePrompts,
        shape: tuple[int, int],
        previous: Logits | None = None,
        candidates: Candidates | None = None,
    ) -> SliceMask:
        """The mask of a slice of `shape`. Of several candidates the one that the model holds best."""
        shown = self.shown(shape)
        lone = len(prompts.points) == 1 and prompts.box is None and previous is None
        wanted: Candidates = candidates or ("several" if self.style.several and lone else "one")
        fed = None if previous is None else torch.from_numpy(previous)[None, None, None].to(self.device)
        asked = PromptBatch(
            points=None if len(prompts.points) == 0 else self._placed(prompts.points, shape, shown)[None],
            labels=None
            if len(prompts.points) == 0
            else torch.from_numpy(prompts.labels.astype(np.int64))[None].to(self.device),
            boxes=None if prompts.box is None else self._placed(prompts.box, shape, shown)[None, None],
            mask=fed,
        )
        return self._best(self.network.decode(encoded, asked, wanted), shape, shown)

    def _best(self, prediction: Prediction, shape: tuple[int, int], shown: tuple[int, int]) -> SliceMask:
        best = int(prediction.quality[0].argmax())
        logits = prediction.logits[:, best : best + 1, :, : shown[0], : shown[1]]
        return SliceMask(
            enlarge(logits, (1, *shape))[0, 0, 0].float().cpu().numpy(),
            prediction.low_res[0, best, 0].float().cpu().numpy(),
            dice_of_iou(float(prediction.quality[0, best])),
        )

    def _placed(self, places: NDArray[np.float64], shape: tuple[int, int], shown: tuple[int, int]) -> torch.Tensor:
        """Pixels (…, 2) of a slice as voxels (…, 3) of the model's image; pixel 0 is the centre of the first."""
        scale = np.array(shown) / np.array(shape)
        pixels = (places + 0.5) * scale - 0.5
        depth = np.zeros((*pixels.shape[:-1], 1))
        return torch.from_numpy(np.concatenate([depth, pixels], axis=-1).astype(np.float32)).to(self.device)


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


def plane_of(grid: Grid) -> str:
    """The plane in which a scan was taken: its voxels are longest across it; axial if they are cubes."""
    across = grid.reoriented("RAS").spacing
    longest = int(np.argmax(across)) if across.max() > 1.05 * across.min() else 2
    return ("sagittal", "coronal", "axial")[longest]


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
