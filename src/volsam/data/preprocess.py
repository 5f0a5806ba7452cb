"""From a scan and a region to what a network sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid, resample
from volsam.volume import Volume

# Intensities beyond these percentiles of the region are clipped before the z-score.
CLIP = (0.5, 99.5)
# Knots of the intensity distribution from which the equalised channel is interpolated.
KNOTS = 33
# At most this many voxels are looked at to find the distribution.
SAMPLE = 1 << 15


def look(volume: Volume, roi: Grid, channel: int = 0) -> NDArray[np.float32]:
    """The three channels (3, i, j, k) that volsam-s sees of a region: see `normalise`."""
    values = np.asarray(resample(volume.data[channel], volume.grid, roi, mode="area"), dtype=np.float32)
    return normalise(values, inside(volume.grid, roi))


def inside(grid: Grid, roi: Grid) -> NDArray[np.bool_]:
    """(i, j, k): which voxels of `roi` have their centre in the volume."""
    flags = resample(np.ones((1, 1, 1), np.uint8), _one_voxel(grid), roi, mode="nearest")
    return np.asarray(flags, dtype=bool)


def normalise(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, i, j, k) from intensities (i, j, k) and where they are known.

    1. z-score after clipping to the region's own percentiles, so that a few bright voxels do not flatten the rest;
    2. equalised to -1..1: what share of the region is darker. It keeps soft tissue apart beside air and metal, and is
       the same whatever unit, window or gamma a scanner used;
    3. 1 where the scan is, 0 outside, where the other two are 0.
    """
    known = values[valid]
    result = np.zeros((3, *values.shape), dtype=np.float32)
    if known.size == 0:
        return result
    # A fixed stride, not a random draw: the same region always looks the same.
    sample = known[:: max(1, known.size // SAMPLE)]
    knots = np.quantile(sample, np.linspace(0, 1, KNOTS)).astype(np.float64)
    low, high = np.quantile(sample, np.array(CLIP) / 100)
    clipped = np.clip(known, low, high)
    spread = float(clipped.std())
    if spread > 0:
        result[0][valid] = (clipped - clipped.mean()) / spread
        result[1][valid] = _ranks(known, knots)
    result[2] = valid
    return result


def above_zero(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(1, i, j, k) from intensities (i, j, k) and where they are known: z-scored over the voxels above zero, as
    SAM-Med3D has it (its code); before that, 0 stands where nothing is known.

    Where no voxel is above zero all of them count, and a region of one value becomes 0.
    """
    filled = np.where(valid, values, np.float32(0))
    counted = filled[filled > 0]
    if counted.size == 0:
        counted = filled.ravel()
    spread = float(counted.std())
    return ((filled - counted.mean()) / (spread if spread > 0 else 1.0)).astype(np.float32)[None]


def _ranks(values: NDArray[np.float32], knots: NDArray[np.float64]) -> NDArray[np.float32]:
    """Share of the region below each value, as -1..1; a value that fills a share of the region takes its middle."""
    places, first, counts = np.unique(knots, return_index=True, return_counts=True)
    if len(places) < 2:
        return np.zeros_like(values)
    ranks = (first + (counts - 1) / 2) / (len(knots) - 1)
    return np.interp(values, places, 2 * ranks - 1).astype(np.float32)


def _one_voxel(grid: Grid) -> Grid:
    """The whole volume as one voxel, so that "inside" is a nearest look-up."""
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * np.array(grid.shape)
    affine[:3, 3] = grid.to_world((np.array(grid.shape) - 1) / 2)
    return Grid((1, 1, 1), affine)


# --- grey values of 8 bits, as 2D models were trained on -------------------------------------------------------------

# Percentiles of the voxels above zero, and the window of CT (level 40, width 400 HU), of MedSAM's released code.
EIGHT_BIT_CLIP = (0.5, 99.5)
EIGHT_BIT_CT = (-160.0, 240.0)
# A scan with such values is CT in Hounsfield units: air. MR and PET have none, but for a little noise around zero.
AIR = -500.0


def eight_bit_window(volume: Volume, channel: int = 0) -> tuple[float, float]:
    """The intensities that become 0 and 255: of CT the soft-tissue window, otherwise percentiles of what is not air.

    Source: MedSAM (Ma et al. 2024), pre_CT_MR of its release.
    """
    data = volume.data[channel]
    sample = data[tuple(slice(None, None, max(1, size // 64)) for size in data.shape)].astype(np.float32)
    sample = sample[np.isfinite(sample)]
    if sample.size and sample.min() < AIR:
        return EIGHT_BIT_CT
    above = sample[sample > 0]
    if above.size == 0:
        above = sample if sample.size else np.zeros(1, np.float32)
    low, high = np.percentile(above, EIGHT_BIT_CLIP)
    if high <= low:  # of one value: everything else is darker
        low = min(float(sample.min(initial=high - 1)), float(high) - 1)
    return float(low), float(high)


def to_eight_bit(values: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.float32]:
    """Intensities as whole grey values 0 to 255, float32; the window's ends and beyond become 0 and 255."""
    low, high = window
    scaled = (np.asarray(values, dtype=np.float32) - low) / (high - low)
    return np.asarray(np.floor(255 * scaled.clip(0, 1)), dtype=np.float32)


def positions(shape: Sequence[int], low: Sequence[int], patch: Sequence[int]) -> NDArray[np.float32]:
    """Where the voxels of a patch lie in their volume (3 d h w): -1 at its first face, 1 at its last, along each axis.

    shape: of the volume; low: its voxel in which the patch begins, negative where that lies before it; patch: voxels.
    """
    axes = [
        (2 * (np.arange(size) + start) + 1) / length - 1 for length, start, size in zip(shape, low, patch, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
