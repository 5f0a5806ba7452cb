"""How much the mask depends on where one happened to click.

Source: FastSAM-3DSlicer (arXiv 2407.12658), uncertainty by self-ensembling: clicks drawn from the mask itself, the mask
as prompt, probabilities averaged and shown in nine bands. Here the ensemble stays in the region of the mask (the
original moves it and misaligns the two), keeps the user's own negative clicks, decodes in batches, and also gives the
spread, which tells a wavering border from one that is merely soft.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volsam.data.preprocess import inside
from volsam.geometry import Grid, resample
from volsam.inference.model import InteractiveModel
from volsam.inference.painting import Answer
from volsam.inference.predictor import thinned
from volsam.prompts import GridPrompts, Point, PromptSet

BATCH = 8


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Maps on `grid`, as coarse as the masks that the model is fed back.

    probability: (i j k) mean over the ensemble; spread: (i j k) its standard deviation.
    """

    probability: NDArray[np.float32]
    spread: NDArray[np.float32]
    grid: Grid

    def bands(self) -> NDArray[np.uint8]:
        """(i j k): 0 where the probability is at most 0.1, then 1 for (0.1, 0.2] up to 9 for (0.9, 1.0]."""
        return np.ceil(self.probability * 10 - 1e-6).clip(1, 10).astype(np.uint8) - 1

    def on(self, grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probability and spread on another grid, 0 outside the region."""
        maps = (resample(values, self.grid, grid) for values in (self.probability, self.spread))
        probability, spread = (np.asarray(values, dtype=np.float32) for values in maps)
        return probability, spread

    def least_certain(self, grid: Grid) -> Point | None:
        """The middle, in mm RAS+, of the part of `grid` about which the model is least certain; None if of none."""
        from scipy import ndimage  # takes long to load, and most sessions never ask

        doubt = 4 * self.probability * (1 - self.probability) + 2 * self.spread
        doubt[~inside(grid, self.grid)] = 0
        parts, count = ndimage.label(doubt > max(0.5, 0.7 * float(doubt.max())))
        if count == 0:
            return None
        sums = ndimage.sum_labels(doubt, parts, np.arange(1, count + 1))
        part = parts == 1 + int(np.argmax(sums))
        depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
        place = np.unravel_index(int(np.argmax(depth + 1e-3 * doubt)), part.shape)
        x, y, z = self.grid.to_world(place)
        return (float(x), float(y), float(z))


def ensemble(
    model: InteractiveModel, encoded: object, answer: Answer, prompts: PromptSet, *, size: int = 24, seed: int = 0
) -> Uncertainty:
    """Decode `size` times, each time with one click drawn from the mask in place of the user's positive ones."""
    from scipy.special import expit  # takes long to load, and most sessions never ask

    low_res = answer.decoded.low_res
    step = float(answer.roi.shape[0] // low_res.shape[0])
    places = np.argwhere(low_res > 0)
    asked = thinned(prompts).on(answer.roi)
    chance = []
    if len(places):
        rng = np.random.default_rng(seed)
        drawn = places[rng.integers(len(places), size=size)] * step + (step - 1) / 2
        refused = asked.points[~asked.labels]
        sets = [
            GridPrompts(np.vstack([refused, click]), np.array([False] * len(refused) + [True]), asked.boxes)
            for click in drawn
        ]
        for start in range(0, size, BATCH):
            logits = model.decode_many(encoded, sets[start : start + BATCH], low_res)
            chance.append(expit(logits))
    if not chance:
        chance = [expit(low_res[None])]
    whole = np.concatenate(chance)
    return Uncertainty(whole.mean(axis=0).astype(np.float32), whole.std(axis=0).astype(np.float32), answer.low_res_grid)
