"""From prompts to a mask in a region of a scan, and from there to the scan's own voxels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, resample
from volsam.inference import corrections, zoom
from volsam.inference.model import Decoded, InteractiveModel, Logits, is_flat
from volsam.inference.painting import OUTSIDE, Answer, Patch, unclicked
from volsam.prompts import Box, Click, MaskHint, Prompt, PromptSet, Scribble
from volsam.volume import Volume

# Encoded regions kept for clicks to come and for undo; one takes about 15 MB.
KEPT_REGIONS = 8
# Scribbles are shown to the model as so many points in all; every click is kept.
MOST_POINTS = 48
# Another region must promise this much more Dice: the mask so far was made, and corrected, in the one at hand.
WORTH_MOVING = 0.2
# A ready mask is trusted, not certain.
READY_LOGIT = 4.0
# A 3D box is drawn by hand: the mask may pass it by this part of its size.
BOX_SLACK = 0.08


class Predictor:
    """One model looking at one volume. Encoded regions are kept; everything else is a value passed in and out."""

    def __init__(self, model: InteractiveModel, volume: Volume) -> None:
        self.model = model
        self.volume = volume
        self._encoded: OrderedDict[Grid, Any] = OrderedDict()

    def __call__(self, prompts: PromptSet, before: Answer | None = None) -> Answer | None:
        """The mask for all `prompts`, None if none is in the object; `before` is the answer without the newest one.

        A mask that was given stays, but for what later clicks correct, and for boxes, in which it is made anew
        (`corrections`).
        """
        hint, prompts = prompts.ready()
        if hint is not None:
            return self._corrected(hint, prompts, before)
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
        if self.model.spacing is not None:
            return self._look(self._region(prompts), prompts, None)
        drafts = [self._look(roi, prompts, None) for roi in self._first_regions(prompts)]
        best = _most_trusted(drafts)
        # Shown its own first mask the model mends it; only at the first click, later it would mistrust the user's.
        return self._refit(self._look(best.roi, prompts, best), prompts)

    def _corrected(self, hint: MaskHint, prompts: PromptSet, before: Answer | None) -> Answer:
        """The mask that was given, where the prompts since contradict it as the network has it then."""
        grid = self.volume.grid
        ready, roi, done = (None, None, 0) if before is None else (before.ready, before.roi, before.boxes)
        if ready is None:
            ready, roi, done = corrections.given(hint, grid), None, 0
        ready, boxes = corrections.boxed_anew(ready, prompts, done, self._first, grid)
        contradicted = corrections.contradicted(ready, prompts, grid)
        shown = replace(self._shown(ready, prompts, prompts.points()[contradicted], roi), boxes=boxes)
        if len(contradicted) == 0:
            return shown
        found = self._look(shown.roi, PromptSet(prompt for prompt in prompts if not isinstance(prompt, Box)), shown)
        mended = corrections.corrected(ready, unclicked(found, grid), prompts, grid)
        return replace(found, ready=mended, boxes=boxes)

    def _shown(self, ready: Patch, prompts: PromptSet, newest: NDArray[np.float64], roi: Grid | None) -> Answer:
        """A ready mask as if it had been predicted: in the region at hand, if all of it is seen well there."""
        grid, edge = self.volume.grid, self.model.edge
        window = grid.crop(ready.low, ready.high) if ready.mask.size else None
        seen = None if window is None else zoom.object_points(ready.mask, window)
        around = np.concatenate([prompts.points(), grid.extent()]) if seen is None else np.concatenate([seen, newest])
        if self.model.spacing is None:
            wanted = zoom.fitting(grid, around, edge)
        else:
            wanted = self._around(around)
            if not zoom.covers(wanted, newest):
                wanted = self._around(newest)
        if roi is None or zoom.misfit(roi, wanted) or not zoom.covers(roi, newest):
            roi = wanted
        coarse = roi.coarsened(self.model.step)
        share = np.zeros(coarse.shape, np.float32)
        if window is not None:
            share = np.asarray(resample(ready.mask.astype(np.float32), window, coarse, mode="area"), dtype=np.float32)
        low_res = ((share - 0.5) * 2 * READY_LOGIT).astype(np.float32)
        full = ((0, edge), (0, edge), (0, edge))
        return Answer(roi, Decoded(low_res, np.zeros((edge,) * 3, np.float32), full, 0.0), ready)

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
        return again if again.decoded.quality > answer.decoded.quality + WORTH_MOVING else answer

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
    worth = [draft.decoded.quality * near for draft, near in zip(drafts, beside, strict=True)]
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
    """After a box, or a ready mask, and clicks outside alone, a click inside: deep in the mask, far from the others.

    A network that knows only what is not the object gives much of it up at the first correction of a box; on four of
    five sets Dice fell by an eighth to a third (`benchmarks/default_model/log.md`). Any click inside by the user takes
    its place.
    """
    known = before.ready is not None or any(isinstance(prompt, Box) for prompt in prompts)
    if not known or len(prompts.points(positive=False)) == 0 or len(prompts.points(positive=True)):
        return prompts
    click = _click_within(before, prompts)
    # First, since a model that is fed its mask looks at the newest click alone.
    return prompts if click is None else PromptSet([click, *prompts])


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
