"""How well a mask fits an object: overlap (Dice, IoU), agreement of the surfaces (NSD), distance of the surfaces.

An empty mask is the right answer for an empty object and for nothing else. Where mask and object are both empty,
Dice, IoU and NSD are 1 and distances are 0; where one of them is empty, the scores are 0 and the distances infinite.

Distances are taken between the border voxels of both, those with a face towards the outside, which is the convention of
MONAI and of MedPy; NSD weighs surfaces by their area. Where an object leaves the volume, the cut counts as surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from volsam.data.simulate import Mask, bounding_box
from volsam.errors import BadInput

# Voxels of a box in which distances are no longer found by a transform of all of them.
LARGE = 1 << 26

Spacing: TypeAlias = Sequence[float] | NDArray[np.float64]


def dice(mask: Mask, target: Mask, smooth: float = 0.0) -> float:
    """Twice the common voxels over the sum of both, 0 to 1; `smooth` is added above and below, as some losses do."""
    mask, target = _pair(mask, target)
    total = np.count_nonzero(mask) + np.count_nonzero(target)
    return 1.0 if total == 0 else float((2.0 * np.count_nonzero(mask & target) + smooth) / (total + smooth))


def iou(mask: Mask, target: Mask) -> float:
    """The common voxels over those of either (Jaccard), 0 to 1."""
    mask, target = _pair(mask, target)
    either = np.count_nonzero(mask | target)
    return 1.0 if either == 0 else float(np.count_nonzero(mask & target) / either)


def nsd(mask: Mask, target: Mask, spacing: Spacing, tolerance_mm: float) -> float:
    """Normalised surface Dice: the part of both surfaces' area that lies within `tolerance_mm` of the other, 0 to 1.

    Surfaces run between voxels and are weighted by area (Nikolov et al. 2018, arXiv 1809.04430); equal to MONAI's
    `compute_surface_dice` with `use_subvoxels=True`, and to the package surface-distance.

    Args:
        mask: the segmentation (i, j, k).
        target: the object, same shape.
        spacing: voxel size in mm along the three axes; where only its ratio is known, any unit, and the tolerance in
            the same one.
        tolerance_mm: distance up to which two surfaces count as one.
    """
    mask, target = _pair(mask, target)
    box = bounding_box(mask | target, margin=1)
    if box is None:
        return 1.0
    if not mask.any() or not target.any():
        return 0.0
    return _surface_dice(mask[box], target[box], [float(size) for size in spacing], tolerance_mm)


# --- distances -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distances:
    """From every border voxel to the nearest one of the other, in mm: of the mask (n,) and of the object (m,)."""

    of_mask: NDArray[np.float64]
    of_target: NDArray[np.float64]

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest."""
        return self._percentile(100)

    @property
    def hd95(self) -> float:
        """The larger of the two 95th percentiles, as MONAI has it."""
        return self._percentile(95)

    @property
    def hd95_pooled(self) -> float:
        """The 95th percentile of all distances together, as MedPy has it."""
        return _largest(self._all, 95)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean of all distances together."""
        return float(self._all.mean()) if self._all.size else inf

    def _percentile(self, percent: float) -> float:
        return max(_largest(self.of_mask, percent), _largest(self.of_target, percent))

    @property
    def _all(self) -> NDArray[np.float64]:
        return np.concatenate([self.of_mask, self.of_target])


def distances(mask: Mask, target: Mask, spacing: Spacing) -> Distances:
    """Distances between the borders of mask and object; one of 0 where both are empty, none where one of them is."""
    mask, target = _pair(mask, target)
    box = bounding_box(mask | target, margin=1)
    if box is None:
        return Distances(np.zeros(1), np.zeros(1))
    if not mask.any() or not target.any():
        return Distances(np.zeros(0), np.zeros(0))
    border, target_border = (_border(each[box]) for each in (mask, target))
    sampling = [float(size) for size in spacing]
    return Distances(_from(border, target_border, sampling), _from(target_border, border, sampling))


def hd(mask: Mask, target: Mask, spacing: Spacing) -> float:
    """Hausdorff distance in mm; infinite where one of both is empty."""
    return distances(mask, target, spacing).hd


def hd95(mask: Mask, target: Mask, spacing: Spacing) -> float:
    """The same without the farthest 5 % of either border."""
    return distances(mask, target, spacing).hd95


def assd(mask: Mask, target: Mask, spacing: Spacing) -> float:
    """Average symmetric surface distance in mm; infinite where one of both is empty."""
    return distances(mask, target, spacing).assd


# --- inside ----------------------------------------------------------------------------------------------------------


def _largest(values: NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(values, percent)) if values.size else inf


def _from(border: Mask, other: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """From each voxel of a border the distance to the nearest of another, in mm.

    A distance transform holds several numbers for every voxel in the box, and one stray voxel makes that box the whole
    scan; a tree of the border's voxels finds the same distances and holds these alone.
    """
    if border.size <= LARGE:
        found: NDArray[np.float64] = distance_transform_edt(~other, sampling=spacing)[border]
        return found
    from scipy.spatial import cKDTree

    tree = cKDTree(np.argwhere(other) * np.asarray(spacing))
    nearest: NDArray[np.float64] = tree.query(np.argwhere(border) * np.asarray(spacing))[0]
    return nearest


def _border(mask: Mask) -> Mask:
    """Voxels of a mask with a face towards the outside; what lies beyond the array is outside."""
    inner = np.pad(mask, 1)
    whole = inner.copy()
    for axis in range(mask.ndim):
        whole &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    return mask & ~whole[(slice(1, -1),) * mask.ndim]


def _surface_dice(mask: Mask, target: Mask, spacing: list[float], tolerance_mm: float) -> float:
    import torch  # here, because `import volsam` must stay light
    from monai.metrics.utils import get_mask_edges

    pair = [torch.from_numpy(np.ascontiguousarray(each)) for each in (mask, target)]
    # MONAI's own distances take seconds on a ragged mask of a few million voxels; a distance transform does not.
    edges, target_edges, areas, target_areas = (part.numpy() for part in get_mask_edges(*pair, spacing=spacing))
    near_target = _from(edges, target_edges, spacing) <= tolerance_mm
    near_mask = _from(target_edges, edges, spacing) <= tolerance_mm
    close = areas[edges][near_target].sum() + target_areas[target_edges][near_mask].sum()
    return float(close / (areas[edges].sum() + target_areas[target_edges].sum()))


def _pair(mask: Mask, target: Mask) -> tuple[Mask, Mask]:
    mask, target = np.asarray(mask, dtype=bool), np.asarray(target, dtype=bool)
    if mask.shape != target.shape:
        raise BadInput(f"a mask of shape {mask.shape} cannot be compared with an object of shape {target.shape}")
    return mask, target
