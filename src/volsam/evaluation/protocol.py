"""The protocol of interactive segmentation: click, score, correct the worst error, score again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from volsam.data.simulate import Mask, first_click, next_click
from volsam.errors import BadInput
from volsam.evaluation.metrics import dice, nsd
from volsam.prompts import Click
from volsam.volume import Volume

Add: TypeAlias = Callable[[Click], Mask]
"""Adds a click and answers with the current mask (i, j, k) on the volume's grid."""

Start: TypeAlias = Callable[[Volume], Add]
"""Begins with one object in a volume; the volume carries no prompts of earlier objects."""


@dataclass(frozen=True)
class ClickScore:
    """What one click led to.

    `click` is None where the mask was already right and nothing was left to correct; the score then stays. `seconds`
    is the time of the click as a user feels it; that of the first one includes what `start` does.
    """

    dice: float
    nsd: float
    click: Click | None
    seconds: float


def clicks_protocol(
    start: Start,
    volume: Volume,
    target: Mask,
    clicks: int = 10,
    *,
    tolerance_mm: float | None = 2.0,
    spacing: Sequence[float] | NDArray[np.float64] | None = None,
) -> list[ClickScore]:
    """Segment one object with `clicks` simulated clicks; one score for each.

    The first click falls on the deepest point of the object, each further one on the deepest point of the error.

    Args:
        start: what is evaluated.
        volume: the image.
        target: the object (i, j, k) on the volume's grid, at least one voxel.
        clicks: how many.
        tolerance_mm: of the surface score; None leaves it out (nan), which is quicker.
        spacing: voxel size for the surface score, where the volume's own is not to be trusted.
    """
    target = np.asarray(target, dtype=bool)
    spacing = volume.grid.spacing if spacing is None else spacing
    if target.shape != volume.grid.shape:
        raise BadInput(f"an object of shape {target.shape} does not lie on the grid of {volume.name}, {volume.grid!r}")
    scores: list[ClickScore] = []
    click: Click | None = first_click(target, volume.grid)
    began = perf_counter()
    add = start(volume)
    while len(scores) < clicks:
        if click is None:
            scores.append(ClickScore(scores[-1].dice, scores[-1].nsd, None, 0.0))
            continue
        mask = add(click)
        seconds = perf_counter() - began
        surface = nan if tolerance_mm is None else nsd(mask, target, spacing, tolerance_mm)
        scores.append(ClickScore(dice(mask, target), surface, click, seconds))
        click = next_click(target, mask, volume.grid)
        began = perf_counter()
    return scores
