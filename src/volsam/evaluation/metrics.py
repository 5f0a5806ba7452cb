"""How well a mask fits an object: overlap (Dice) and agreement of the surfaces (NSD).

An empty mask is the right answer for an empty object and for nothing else: both scores are 1 where mask and object are
both empty, and 0 where one of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from volsam.data.simulate import Mask, bounding_box
from volsam.errors import BadInput


def dice(mask: Mask, target: Mask) -> float:
    """Twice the common voxels over the sum of both, 0 to 1."""
    mask, target = _pair(mask, target)
    total = np.count_nonzero(mask) + np.count_nonzero(target)
    return 1.0 if total == 0 else 2.0 * np.count_nonzero(mask & target) / total


def nsd(mask: Mask, target: Mask, spacing: Sequence[float] | NDArray[np.float64], tolerance_mm: float) -> float:
    """Normalised surface Dice: the part of both surfaces' area that lies within `tolerance_mm` of the other, 0 to 1.

    Surfaces run between voxels and are weighted by area (Nikolov et al. 2018, arXiv 1809.04430); equal to MONAI's
    `compute_surface_dice` with `use_subvoxels=True`. Where an object leaves the volume, the cut counts as surface.

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


def _surface_dice(mask: Mask, target: Mask, spacing: list[float], tolerance_mm: float) -> float:
    import torch  # here, because `import volsam` must stay light
    from monai.metrics.utils import get_mask_edges

    pair = [torch.from_numpy(np.ascontiguousarray(each)) for each in (mask, target)]
    # MONAI's own distances take seconds on a ragged mask of a few million voxels; a distance transform does not.
    edges, target_edges, areas, target_areas = (part.numpy() for part in get_mask_edges(*pair, spacing=spacing))
    near_target = distance_transform_edt(~target_edges, sampling=spacing) <= tolerance_mm
    near_mask = distance_transform_edt(~edges, sampling=spacing) <= tolerance_mm
    close = areas[edges & near_target].sum() + target_areas[target_edges & near_mask].sum()
    return float(close / (areas[edges].sum() + target_areas[target_edges].sum()))


def _pair(mask: Mask, target: Mask) -> tuple[Mask, Mask]:
    mask, target = np.asarray(mask, dtype=bool), np.asarray(target, dtype=bool)
    if mask.shape != target.shape:
        raise BadInput(f"a mask of shape {mask.shape} cannot be compared with an object of shape {target.shape}")
    return mask, target
