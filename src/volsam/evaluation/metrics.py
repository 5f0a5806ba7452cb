"""How well a mask fits an object: overlap (Dice, IoU), agreement of the surfaces (NSD), distance of the surfaces.

An empty mask is the right answer for an empty object and for nothing else. Where mask and object are both empty,
Dice, IoU and NSD are 1 and distances are 0; where one of them is empty, the scores are 0 and the distances infinite.

Distances are taken between the border voxels of both, those with a face towards the outside, which is the convention of
MONAI and of MedPy; NSD weighs surfaces by their area. Where an object leaves the volume, the cut counts as surface.

Along an axis of one voxel there is no surface across it: an image of one slice has contours, weighed by their length.
Where the truth is not known, objects are taken to go on as they are: what is unknown makes no surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf
from typing import Any, TypeAlias

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


def nsd(mask: Mask, target: Mask, spacing: Spacing, tolerance_mm: float, *, unknown: Mask | None = None) -> float:
    """Normalised surface Dice: the part of both surfaces' area that lies within `tolerance_mm` of the other, 0 to 1.

    Surfaces run between voxels and are weighted by area (Nikolov et al. 2018, arXiv 1809.04430); equal to MONAI's
    `compute_surface_dice` with `use_subvoxels=True`, and to the package surface-distance, also in 2D.

    Args:
        mask: the segmentation (i, j, k).
        target: the object, same shape.
        spacing: voxel size in mm along the three axes; where only its ratio is known, any unit, and the tolerance in
            the same one.
        tolerance_mm: distance up to which two surfaces count as one.
        unknown: where the truth is not known, same shape; None where it is known everywhere.
    """
    pair = _seen(mask, target, spacing, unknown)
    if pair is None:
        return 1.0
    surface, other = (_Surface.of(each, pair.unknown) for each in (pair.mask, pair.target))
    if not surface.found or not other.found:
        return float(pair.equal) if surface.found == other.found else 0.0
    weights, other_weights = (each.weights(pair.spacing) for each in (surface, other))
    near = _from(surface.places, other.places, pair.spacing) <= tolerance_mm
    other_near = _from(other.places, surface.places, pair.spacing) <= tolerance_mm
    close = weights[near].sum() + other_weights[other_near].sum()
    return float(close / (weights.sum() + other_weights.sum()))


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


def distances(mask: Mask, target: Mask, spacing: Spacing, *, unknown: Mask | None = None) -> Distances:
    """Distances between the borders of mask and object; one of 0 where both are empty, none where one of them is.

    The arguments are those of `nsd`.
    """
    pair = _seen(mask, target, spacing, unknown)
    if pair is None:
        return Distances(np.zeros(1), np.zeros(1))
    border, other = (_border(each, pair.unknown) for each in (pair.mask, pair.target))
    found, other_found = bool(border.any()), bool(other.any())
    if not found or not other_found:
        alike = int(pair.equal and found == other_found)
        return Distances(np.zeros(alike), np.zeros(alike))
    return Distances(_from(border, other, pair.spacing), _from(other, border, pair.spacing))


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


def _pair(mask: Mask, target: Mask) -> tuple[Mask, Mask]:
    mask, target = np.asarray(mask, dtype=bool), np.asarray(target, dtype=bool)
    if mask.shape != target.shape:
        raise BadInput(f"a mask of shape {mask.shape} cannot be compared with an object of shape {target.shape}")
    return mask, target


@dataclass(frozen=True, eq=False)
class _Seen:
    """Mask, object and what is unknown in their box and a rim of one voxel, without axes of one voxel."""

    mask: Mask
    target: Mask
    unknown: Mask | None
    spacing: list[float]

    @property
    def equal(self) -> bool:
        return bool(np.array_equal(self.mask, self.target))


def _seen(mask: Mask, target: Mask, spacing: Spacing, unknown: Mask | None) -> _Seen | None:
    """What surfaces are taken of; None where neither mask nor object holds a voxel whose truth is known."""
    mask, target = _pair(mask, target)
    if unknown is not None:
        unknown = np.asarray(unknown, dtype=bool)
        mask, target = mask & ~unknown, target & ~unknown
    box = bounding_box(mask | target)
    if box is None:
        return None
    near = None if unknown is None else _rimmed(unknown, box)
    sizes = [float(size) for size, length in zip(spacing, mask.shape, strict=True) if length > 1]
    return _Seen(_rimmed(mask, box), _rimmed(target, box), near, sizes)


def _rimmed(values: Mask, box: tuple[slice, ...]) -> Mask:
    """A box and one voxel more on every side, with nothing beyond the array; axes of one voxel are left out."""
    place: list[slice | int] = []
    missing: list[tuple[int, int]] = []
    for side, length in zip(box, values.shape, strict=True):
        if length == 1:
            place.append(0)
        else:
            place.append(slice(max(side.start - 1, 0), side.stop + 1))
            missing.append((int(side.start == 0), int(side.stop == length)))
    part = values[tuple(place)]
    return np.pad(part, missing) if missing else np.asarray(part)


def _border(mask: Mask, unknown: Mask | None) -> Mask:
    """Voxels of a mask with a face towards the outside, both with a rim, which the result has not."""
    going_on = mask if unknown is None else mask | unknown
    whole = going_on.copy()
    for axis in range(mask.ndim):
        whole &= np.roll(going_on, 1, axis) & np.roll(going_on, -1, axis)
    return np.asarray((mask & ~whole)[(slice(1, -1),) * mask.ndim])


def _from(border: Mask, other: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """From each voxel of a border the distance to the nearest of another, in mm; neither is empty.

    A transform finds the nearest one for every voxel in the box, and one stray voxel makes that box the whole scan; a
    tree of the border's voxels finds the same distances and holds these alone.
    """
    places = np.argwhere(border)
    if border.size <= LARGE:
        nearest = distance_transform_edt(~other, sampling=spacing, return_distances=False, return_indices=True)
        apart = np.stack([of_axis[border] for of_axis in nearest]) - places.T
        lengths: NDArray[np.float64] = np.sqrt(np.square(apart * np.reshape(spacing, (-1, 1))).sum(axis=0))
        return lengths
    from scipy.spatial import cKDTree

    tree = cKDTree(np.argwhere(other) * np.asarray(spacing))
    found: NDArray[np.float64] = tree.query(places * np.asarray(spacing))[0]
    return found


# --- surfaces between voxels -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Surface:
    """The surface of a mask, in pieces: one in every cell of 2 × 2 × 2 voxels, of 2 × 2 in 2D, that are not all alike.

    places: the cells that have a piece, an array one shorter along each axis than the mask with its rim; codes, hidden:
    of each of these (n,) which voxels are in the mask and which unknown, a bit each, the first voxel's the highest;
    hidden is None where all are known.
    """

    places: Mask
    codes: NDArray[np.uint8]
    hidden: NDArray[np.uint8] | None

    @classmethod
    def of(cls, mask: Mask, unknown: Mask | None) -> _Surface:
        codes = _codes(mask)
        hidden = None if unknown is None else _codes(unknown)
        alike = 2**2**mask.ndim - 1
        # What is known is not all outside, and not all inside.
        places = np.asarray((codes != 0) & ((codes if hidden is None else codes | hidden) != alike))
        return cls(places, codes[places], None if hidden is None else hidden[places])

    @property
    def found(self) -> bool:
        return self.codes.size > 0

    def weights(self, spacing: Sequence[float]) -> NDArray[Any]:
        """Area of every piece in mm², or length in mm; of a cell that is known in part, that part of it."""
        sizes = _sizes(spacing)
        if self.hidden is None:
            return sizes[self.codes]
        filled, known = _unknown_cells(len(spacing))
        return np.asarray(sizes[filled[self.hidden, self.codes]] * known[self.hidden])


def _codes(values: Mask) -> NDArray[np.uint8]:
    """Which voxels of every cell are set, a bit each; from views, since this is where large volumes need memory."""
    codes = np.zeros([length - 1 for length in values.shape], np.uint8)
    for corner in product((0, 1), repeat=values.ndim):
        codes <<= 1
        codes |= values[tuple(slice(low, low + length) for low, length in zip(corner, codes.shape, strict=True))]
    return codes


def _sizes(spacing: Sequence[float]) -> NDArray[Any]:
    """Area in mm² of the surface in a cell, by its code: of 256; in 2D the length in mm, and on a line a number."""
    if len(spacing) < 2:
        return np.array([0.0, 1.0, 1.0, 0.0])
    from monai.metrics.utils import get_code_to_measure_table  # here, because `import volsam` must stay light

    return np.asarray(get_code_to_measure_table(list(spacing))[0].numpy())


@lru_cache
def _unknown_cells(ndim: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """For cells by the code of their unknown voxels: the code (of all, of those in the mask) in which unknown ones are
    as the known ones nearest to them, and what part of the cell is known (of all).
    """
    corners = np.array(list(product((0, 1), repeat=ndim)))
    bits = 1 << np.arange(len(corners))[::-1]
    set_ = (np.arange(1 << len(corners))[:, None] & bits) > 0
    steps = np.abs(corners[:, None] - corners[None]).sum(axis=2)
    # One that is a face away outweighs all that are farther: there are three of each kind at most.
    votes = np.einsum("hp,cp,qp->hcq", ~set_, np.where(set_, 1.0, -1.0), 16.0**-steps)
    inside = np.where(set_[:, None], votes > 0, set_[None])
    return (inside @ bits).astype(np.uint8), 1 - set_.mean(axis=1)
