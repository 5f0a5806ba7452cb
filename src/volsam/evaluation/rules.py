"""By which rule a mask is scored: volsam's own, and those of the papers whose tables one wants to stand beside.

Two papers that print "Dice" and "HD" need not mean the same thing. A rule is everything that makes the difference: the
tolerance, the unit of distances, what an empty mask is worth, which of several answers counts, and how a mean is taken.
Every rule but the first keeps the oddities of its source, so that a published figure can be met; none is a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan, nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volsam.data.simulate import Mask, bounding_box
from volsam.errors import BadInput
from volsam.evaluation.metrics import Spacing, dice, distances, iou, nsd
from volsam.registry import Registry

OVERLAPS = ("dice", "iou", "nsd")
DISTANCES = ("hd", "hd95", "assd")
MEASURES = OVERLAPS + DISTANCES


@dataclass(frozen=True)
class Scores:
    """One mask against one object. Overlaps are 0 to 1; distances in mm, infinite where the object was missed.

    What was not measured, or does not count by the rule, is nan.
    """

    dice: float
    iou: float
    nsd: float
    hd: float = nan
    hd95: float = nan
    assd: float = nan

    def as_dict(self) -> dict[str, float]:
        """By name of the measure."""
        return asdict(self)


NOTHING = Scores(nan, nan, nan)
"""Of what does not count."""


@dataclass(frozen=True)
class Rule:
    """How masks are scored and means are taken.

    name: what a user types; source: where the rule comes from; summary: what is odd about it, in a sentence;
    tolerance_mm: of the surface score, unless the user gives another; smooth: added to both sides of Dice's fraction;
    both_empty: what Dice, IoU and NSD are where mask and object are empty, nan for "does not count";
    present_only: whether an object that a case lacks does not count, whatever the mask; missed: the distance where one
    of them is empty; voxels: distances in voxels instead of mm; pooled: the percentile of all distances together, as
    MedPy has it; edge: slices are brought to so many pixels along both sides first; window: only so many voxels along
    each axis around the object are looked at; least_dice: where the mean Dice of a case is not above it, its surface
    scores are 0; turned: whether NSD of a file of the challenge takes the voxel size along x for that along z and the
    other way round, as the challenge's script does; answer: which of several answers counts, the best being that of the
    highest Dice; mean: what every mean is first taken over.
    """

    name: str
    source: str
    summary: str
    tolerance_mm: float = 2.0
    smooth: float = 0.0
    both_empty: float = 1.0
    present_only: bool = False
    missed: float = inf
    voxels: bool = False
    pooled: bool = False
    edge: int | None = None
    window: int | None = None
    least_dice: float | None = None
    turned: bool = False
    answer: Literal["last", "best"] = "last"
    mean: Literal["object", "case"] = "object"

    def score(
        self,
        mask: Mask,
        target: Mask,
        spacing: Spacing,
        tolerance_mm: float | None = None,
        *,
        far: bool = True,
        across: int = 2,
        unknown: Mask | None = None,
        of_the_challenge: bool = False,
    ) -> Scores:
        """Score a mask (i, j, k) against an object of the same shape.

        Args:
            mask: the segmentation.
            target: the object.
            spacing: voxel size in mm along the three axes.
            tolerance_mm: of the surface score; the rule's own where it is None.
            far: whether distances are measured too; they take as long as all the rest.
            across: the axis of the arrays across the slices of the scan, for rules that look at slices.
            unknown: where the truth is not known, same shape: neither mask nor object counts there, and their surfaces
                do not end there; None where it is known everywhere.
            of_the_challenge: whether the arrays are those of a file of the challenge, turned to (x, y, z).
        """
        mask, target = np.asarray(mask, dtype=bool), np.asarray(target, dtype=bool)
        if mask.shape != target.shape:
            raise BadInput(f"a mask of shape {mask.shape} cannot be compared with an object of shape {target.shape}")
        if unknown is not None:
            mask, target = mask & ~unknown, target & ~unknown
        if self.window is not None:
            place = _around(target, self.window)
            mask, target = mask[place], target[place]
            unknown = None if unknown is None else unknown[place]
        if self.edge is not None:
            row, column = (spacing[axis] for axis in range(3) if axis != across)
            rows, columns = (mask.shape[axis] for axis in range(3) if axis != across)
            spacing = (row * rows / self.edge, column * columns / self.edge, spacing[across])
            mask, target = (_sized(np.moveaxis(each, across, 2), self.edge) for each in (mask, target))
            unknown = None if unknown is None else _sized(np.moveaxis(unknown, across, 2), self.edge)
        tolerance = self.tolerance_mm if tolerance_mm is None else tolerance_mm
        if self.present_only and not target.any():
            return NOTHING
        if not mask.any() and not target.any():
            if isnan(self.both_empty):
                return NOTHING
            far_away = 0.0 if far else nan
            return Scores(self.both_empty, self.both_empty, self.both_empty, far_away, far_away, far_away)
        overlap = dice(mask, target, self.smooth)
        sizes = spacing[::-1] if self.turned and of_the_challenge else spacing
        surface = nsd(mask, target, sizes, tolerance, unknown=unknown)
        if not far:
            return Scores(overlap, iou(mask, target), surface)
        found = distances(mask, target, (1.0, 1.0, 1.0) if self.voxels else spacing, unknown=unknown)
        if not found.of_mask.size:
            return Scores(overlap, iou(mask, target), surface, self.missed, self.missed, self.missed)
        far95 = found.hd95_pooled if self.pooled else found.hd95
        return Scores(overlap, iou(mask, target), surface, found.hd, far95, found.assd)

    def counted(self, dice: Sequence[float]) -> int:
        """Which of several answers about an object counts, by their Dice: its place, the first of equal ones."""
        if self.answer == "last" or np.isnan(dice).all():
            return len(dice) - 1
        return int(np.nanargmax(dice))


rules: Registry[Rule] = Registry("rule")
STANDARD = rules.add("standard", Rule("standard", "volsam", "distances in mm; each structure counts once in a mean"))
rules.add(
    "3dsam-adapter",
    Rule(
        "3dsam-adapter",
        "3DSAM-adapter (arXiv 2306.13465) and its released test scripts",
        "NSD at 5 mm; Dice as 1 minus MONAI's Dice loss, smoothed by 1e-5",
        tolerance_mm=5.0,
        smooth=1e-5,
    ),
)
rules.add(
    "ma-sam",
    Rule(
        "ma-sam",
        "MA-SAM (arXiv 2309.08842), table of BTCV",
        'what is printed as "HD" is taken for HD95 in voxels: its code is not released, and means over six cases such '
        "as 1.07, five times 1 and once the root of 2, are such numbers",
        voxels=True,
        pooled=True,
    ),
)
rules.add(
    "autosam",
    Rule(
        "autosam",
        "AutoSAM (arXiv 2306.13731) and its released code",
        "masks are compared on slices of 224 × 224 pixels; HD95 in pixels of these, 0 where mask or object is empty",
        voxels=True,
        pooled=True,
        missed=0.0,
        edge=224,
    ),
)
rules.add(
    "fastsam3d",
    Rule(
        "fastsam3d",
        "FastSAM3D (arXiv 2403.09827), SAM-Med3D's validation script",
        "the best answer of all clicks counts; only 128 voxels along each axis around the object are looked at; a case "
        "in which mask and object are empty does not count",
        both_empty=nan,
        window=128,
        answer="best",
    ),
)
rules.add(
    "cvpr2025",
    Rule(
        "cvpr2025",
        "CVPR 2025 challenge on interactive 3D segmentation",
        "NSD at 2 mm, 0 where the mean Dice of a case is 0.2 or less; means over the classes of a case first; classes "
        "that a case lacks do not count",
        present_only=True,
        least_dice=0.2,
        turned=True,
        mean="case",
    ),
)


def _around(target: Mask, size: int) -> tuple[slice, slice, slice]:
    """A window of `size` voxels along each axis around the middle of the object's box, as far as there are voxels."""
    box = bounding_box(target) or (slice(0, target.shape[0]), slice(0, target.shape[1]), slice(0, target.shape[2]))
    starts = [(side.start + side.stop - size) // 2 for side in box]
    first, second, third = (slice(max(start, 0), start + size) for start in starts)
    return first, second, third


def _sized(mask: Mask, edge: int) -> Mask:
    """The first two axes brought to `edge` voxels, by the nearest."""
    rows, columns = (_nearest(length, edge) for length in mask.shape[:2])
    return mask[rows[:, None], columns[None, :]]


def _nearest(length: int, edge: int) -> NDArray[np.int64]:
    return np.minimum(((np.arange(edge) + 0.5) * length / edge).astype(np.int64), length - 1)
