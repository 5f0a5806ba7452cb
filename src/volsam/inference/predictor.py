"""From prompts to a mask in a region of a scan, and from there to the scan's own voxels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, Shape, resample
from volsam.inference import zoom
from volsam.inference.model import Decoded, InteractiveModel, Logits, is_flat
from volsam.prompts import Box, Click, MaskHint, Prompt, PromptSet, Scribble
from volsam.volume import Volume

# Encoded regions kept for clicks to come and for undo; one takes about 15 MB.
KEPT_REGIONS = 8
# A logit that no threshold reaches.
OUTSIDE = -20.0
# Voxels painted at once; bounds the memory for very large objects.
SLAB = 1 << 24
# Scribbles are shown to the model as so many points in all; every click is kept.
MOST_POINTS = 48
# Another region must promise this much more Dice: the mask so far was made, and corrected, in the one at hand.
WORTH_MOVING = 0.2
# A mask given as a start is trusted, not certain.
HINT_LOGIT = 4.0
# A 3D box is drawn by hand: the mask may pass it by this part of its size.
BOX_SLACK = 0.08


@dataclass(frozen=True, eq=False)
class Answer:
    """A mask where it was made: logits in `part` of the region `roi`, whole-region logits to feed back, and how good
    the model expects the mask to be (Dice, 0 to 1)."""

    roi: Grid
    decoded: Decoded

    @property
    def quality(self) -> float:
        """Expected Dice with the object."""
        return self.decoded.quality

    @property
    def part_grid(self) -> Grid:
        """Where `decoded.logits` lie."""
        bounds = self.decoded.part
        return self.roi.crop([low for low, _ in bounds], [high for _, high in bounds])

    @property
    def low_res_grid(self) -> Grid:
        """Where `decoded.low_res` lies."""
        return self.roi.coarsened(self.roi.shape[0] // self.decoded.low_res.shape[0])


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask on the scan's voxels from `low` to `high` (excluded); nothing outside."""

    low: Shape
    high: Shape
    mask: NDArray[np.bool_]

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The patch as an index into the scan."""
        return (slice(self.low[0], self.high[0]), slice(self.low[1], self.high[1]), slice(self.low[2], self.high[2]))


class Predictor:
    """One model looking at one volume. Encoded regions are kept; everything else is a value passed in and out."""

    def __init__(self, model: InteractiveModel, volume: Volume) -> None:
        self.model = model
        self.volume = volume
        self._encoded: OrderedDict[Grid, Any] = OrderedDict()

    def __call__(self, prompts: PromptSet, before: Answer | None = None) -> Answer | None:
        """The mask for all `prompts`, None if none is in the object; `before` is the answer without the newest one."""
        if len(zoom.positive_points(prompts)) == 0 and zoom.spanning(prompts) is None:
            return None
        answer = self._first(prompts) if before is None else self._next(prompts, before)
        return self._judged(answer, prompts)

    def encoded(self, roi: Grid) -> Any:
        """The features of a region, computed once."""
        if roi not in self._encoded:
            self._encoded[roi] = self.model.encode(self.volume, roi)
            while len(self._encoded) > KEPT_REGIONS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(roi)
        return self._encoded[roi]

    def _first(self, prompts: PromptSet) -> Answer:
        """Try the zooms that the prompts allow and keep the mask of which the model expects most; then centre it."""
        hint = self._hint_answer(prompts)
        if hint is not None:
            return self._look(hint.roi, prompts, hint)
        if self.model.spacing is not None:
            return self._look(self._region(prompts), prompts, None)
        drafts = [self._look(roi, prompts, None) for roi in self._first_regions(prompts)]
        best = _most_trusted(drafts)
        # Shown its own first mask the model mends it; only at the first click, later it would mistrust the user's.
        return self._refit(self._look(best.roi, prompts, best), prompts)

    def _hint_answer(self, prompts: PromptSet) -> Answer | None:
        """A starting mask as if it had been predicted."""
        hints = [prompt for prompt in prompts if isinstance(prompt, MaskHint)]
        if not hints or not hints[-1].mask.any():
            return None
        span = zoom.spanning(hints[-1:])
        assert span is not None  # the mask is not empty
        edge, around = self.model.edge, np.concatenate([span, zoom.positive_points(prompts)])
        any_zoom = self.model.spacing is None
        roi = zoom.fitting(self.volume.grid, around, edge) if any_zoom else self._around(around)
        coarse = roi.coarsened(self.model.step)
        share = resample(hints[-1].mask.astype(np.float32), hints[-1].grid, coarse, mode="area")
        low_res = ((np.asarray(share, dtype=np.float32) - 0.5) * 2 * HINT_LOGIT).astype(np.float32)
        full = ((0, edge), (0, edge), (0, edge))
        return Answer(roi, Decoded(low_res, np.zeros((edge,) * 3, np.float32), full, 0.0))

    def _first_regions(self, prompts: PromptSet) -> list[Grid]:
        grid, edge = self.volume.grid, self.model.edge
        inside = zoom.positive_points(prompts)
        span = zoom.spanning(prompts)
        if span is not None and not _flat_only(prompts, grid):
            return [zoom.fitting(grid, np.concatenate([span, inside]), edge)]
        middle = (inside.min(axis=0) + inside.max(axis=0)) / 2
        regions = [grid.around(middle, (edge,) * 3, spacing) for spacing in zoom.ladder(grid, edge)]
        return [roi for roi in regions if zoom.covers(roi, inside)] or regions[-1:]

    def _region(self, prompts: PromptSet, seen: NDArray[np.float64] | None = None) -> Grid:
        """The region of a model that looks at one voxel size only: around everything in the object, or, where that is
        too much, around the newest click."""
        points = zoom.positive_points(prompts)
        newest = prompts.points()[-1:]
        for around in (points if seen is None else np.concatenate([points, seen]), points, newest):
            if len(around) == 0:
                continue
            region = self._around(around)
            if zoom.covers(region, np.concatenate([around, newest])):
                break
        return region

    def _around(self, points: NDArray[np.float64]) -> Grid:
        """The region of a model that looks at one voxel size only, in the middle of some points."""
        assert self.model.spacing is not None
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        return self.volume.grid.around(middle, (self.model.edge,) * 3, self.model.spacing, self.model.axes)

    def _next(self, prompts: PromptSet, before: Answer) -> Answer:
        """Answer in the region at hand, or in a better one if the object or the clicks have outgrown it."""
        points = prompts.points()
        inside = zoom.positive_points(prompts)
        here = before.roi
        if self.model.spacing is not None:
            if not zoom.covers(here, points[-1:]):
                here = self._region(prompts, _mask_points(before))
            return self._look(here, prompts, before)
        if not zoom.covers(here, np.concatenate([inside, points[-1:]])):
            seen = _mask_points(before)
            around = inside if seen is None else np.concatenate([inside, seen])
            here = zoom.fitting(self.volume.grid, np.concatenate([around, points[-1:]]), self.model.edge, fill=0.8)
        return self._refit(self._look(here, prompts, before), prompts)

    def _refit(self, answer: Answer, prompts: PromptSet) -> Answer:
        """Look again where the mask fills the region as it should, if it does not; keep the better expectation."""
        seen = _mask_points(answer)
        if seen is None:
            return answer
        around = np.concatenate([seen, zoom.positive_points(prompts)])
        wanted = zoom.fitting(self.volume.grid, around, self.model.edge)
        if not zoom.misfit(answer.roi, wanted):
            return answer
        again = self._look(wanted, prompts, answer)
        return again if again.quality > answer.quality + WORTH_MOVING else answer

    def _look(self, roi: Grid, prompts: PromptSet, before: Answer | None) -> Answer:
        previous = None if before is None else _carried(before, roi)
        told = prompts if before is None else _with_something_inside(prompts, before)
        decoded = self.model.decode(self.encoded(roi), thinned(told).on(roi), previous)
        answer = Answer(roi, decoded)
        boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
        # A flat box says nothing of other slices, so the mask may go anywhere there.
        held = bool(boxes) and not any(is_flat(box, self.volume.grid) for box in boxes)
        return _within_boxes(answer, boxes) if held else answer

    def _judged(self, answer: Answer, prompts: PromptSet) -> Answer:
        """What the mask of boxes alone is worth, said of it with a click in its middle.

        Of a box alone volsam-s says little: on four of six sets what it said fell, or stayed, as the Dice rose. Asked
        again with its own mask and a click in it, it is as sure as of clicks (`benchmarks/default_model/log.md`).
        """
        if len(prompts.points()) or not {"box", "click"} <= self.model.takes:
            return answer
        if any(not isinstance(prompt, Box) for prompt in prompts):
            return answer
        click = _click_within(answer, prompts)
        if click is None:
            return answer
        decoded = answer.decoded
        asked = PromptSet([*prompts, click]).on(answer.roi)
        quality = self.model.decode(self.encoded(answer.roi), asked, decoded.low_res).quality
        return Answer(answer.roi, Decoded(decoded.low_res, lambda: decoded.logits, decoded.part, quality))


def paint(answer: Answer | None, prompts: PromptSet, grid: Grid) -> Patch:
    """The mask on the scan's voxels. Clicked voxels always carry their click's label."""
    voxels = np.round(grid.to_voxels(prompts.points())).astype(int).clip(0, np.array(grid.shape) - 1)
    signs = prompts.on(grid).labels
    low, high = (0, 0, 0), (0, 0, 0)
    if answer is not None:
        low, high = grid.overlap(answer.part_grid)
    empty = any(b <= a for a, b in zip(low, high, strict=True))
    forced = voxels[signs]
    if len(forced):
        corners = forced if empty else np.concatenate([forced, [low, np.array(high) - 1]])
        low, high = _shape(corners.min(axis=0)), _shape(corners.max(axis=0) + 1)
    window = grid.crop(low, high) if all(b > a for a, b in zip(low, high, strict=True)) else None
    if window is None:
        return Patch(low, low, np.zeros((0, 0, 0), bool))
    mask = np.zeros(window.shape, bool)
    if answer is not None and not empty:
        _paint_logits(mask, window, answer)
    for voxel, sign in zip(voxels - np.array(low), signs, strict=True):
        if ((voxel >= 0) & (voxel < window.shape)).all():
            mask[tuple(voxel)] = sign
    return Patch(low, high, mask)


def _paint_logits(mask: NDArray[np.bool_], window: Grid, answer: Answer) -> None:
    planes = max(1, SLAB // (window.shape[1] * window.shape[2]))
    for start in range(0, window.shape[0], planes):
        stop = min(start + planes, window.shape[0])
        slab = window.crop((start, 0, 0), (stop, *window.shape[1:]))
        logits = resample(answer.decoded.logits, answer.part_grid, slab, fill=OUTSIDE)
        mask[start:stop] = np.asarray(logits, dtype=np.float32) > 0


def thinned(prompts: PromptSet) -> PromptSet:
    """The prompts with about MOST_POINTS points on scribbles, spread evenly along each; clicks stay."""
    total = sum(len(prompt.points) for prompt in prompts if isinstance(prompt, Scribble))

    def thin(prompt: Prompt) -> Prompt:
        if not isinstance(prompt, Scribble) or total <= MOST_POINTS:
            return prompt
        count = max(1, len(prompt.points) * MOST_POINTS // total)
        keep = ((np.arange(count) + 0.5) * len(prompt.points) / count).astype(int)
        return Scribble(tuple(prompt.points[index] for index in keep), prompt.positive)

    return PromptSet(map(thin, prompts))


def _most_trusted(drafts: list[Answer]) -> Answer:
    """Of neighbouring zooms, in order: the highest expected quality times the agreement with the zooms beside. A mask
    that wavers with a small change of zoom has caught no border.
    """
    pairs = [_agreement(finer, coarser) for finer, coarser in pairwise(drafts)] or [1.0]
    beside = [float(np.mean(pairs[max(place - 1, 0) : place + 1])) for place in range(len(drafts))]
    worth = [draft.quality * near for draft, near in zip(drafts, beside, strict=True)]
    return drafts[int(np.argmax(worth))]


def _agreement(finer: Answer, coarser: Answer) -> float:
    """Dice of two masks where the coarser was made; the finer one says nothing beyond its region."""
    one, other = _carried(finer, coarser.roi) > 0, coarser.decoded.low_res > 0
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def _carried(before: Answer, roi: Grid) -> Logits:
    """The last mask as low-resolution logits of another region."""
    if before.roi == roi:
        return before.decoded.low_res
    step = before.roi.shape[0] // before.decoded.low_res.shape[0]
    moved = resample(before.decoded.low_res, before.low_res_grid, roi.coarsened(step), mode="area", fill=-8.0)
    return np.asarray(moved, dtype=np.float32)


def _mask_points(answer: Answer) -> NDArray[np.float64] | None:
    return zoom.object_points(answer.decoded.logits > 0, answer.part_grid)


def _with_something_inside(prompts: PromptSet, before: Answer) -> PromptSet:
    """After a box and clicks outside alone, a click inside as well: deep in the mask, far from the others.

    A network that knows only what is not the object gives much of it up at the first correction of a box; on four of
    five sets Dice fell by an eighth to a third (`benchmarks/default_model/log.md`). Any click inside by the user takes
    its place.
    """
    boxed = any(isinstance(prompt, Box) for prompt in prompts)
    if not boxed or len(prompts.points(positive=False)) == 0 or len(prompts.points(positive=True)):
        return prompts
    click = _click_within(before, prompts)
    return prompts if click is None else PromptSet([*prompts, click])


def _click_within(answer: Answer, prompts: PromptSet) -> Click | None:
    """A click deep in a mask, far from clicks outside of the object; None if there is no mask."""
    from volsam.data.simulate import deepest  # brings scipy, which takes long to load; most sessions never ask

    mask, grid = answer.decoded.low_res > 0, answer.low_res_grid
    voxels = np.round(grid.to_voxels(prompts.points(positive=False))).astype(int)
    mask[tuple(voxels[((voxels >= 0) & (voxels < mask.shape)).all(axis=1)].T)] = False
    found = deepest(mask, grid.spacing)
    return None if found is None else Click(tuple(grid.to_world(found[0])))


def _within_boxes(answer: Answer, boxes: list[Box]) -> Answer:
    """Nothing outside the 3D boxes, which are drawn a little too tight or too wide by hand."""
    decoded = answer.decoded
    low_res = np.where(_held(answer.low_res_grid, boxes), decoded.low_res, np.float32(OUTSIDE))

    def logits() -> Logits:
        return np.where(_held(answer.part_grid, boxes), decoded.logits, np.float32(OUTSIDE))

    return Answer(answer.roi, Decoded(low_res, logits, decoded.part, decoded.quality))


def _held(grid: Grid, boxes: list[Box]) -> NDArray[np.bool_]:
    """Which voxels of `grid` lie in a box or its slack."""
    held = np.zeros(grid.shape, bool)
    for box in boxes:
        corners = np.sort(grid.to_voxels([box.low, box.high]), axis=0)
        slack = BOX_SLACK * (corners[1] - corners[0]) + 0.5
        first = np.ceil(corners[0] - slack).clip(0).astype(int)
        last = (np.floor(corners[1] + slack) + 1).clip(0).astype(int)
        held[first[0] : last[0], first[1] : last[1], first[2] : last[2]] = True
    return held


def _flat_only(prompts: PromptSet, grid: Grid) -> bool:
    """Whether all that tells the extent is 2D boxes, which say nothing of the third axis; the zooms are tried then."""
    boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
    return bool(boxes) and all(is_flat(box, grid) for box in boxes)


def _shape(values: NDArray[np.int64]) -> Shape:
    return (int(values[0]), int(values[1]), int(values[2]))
