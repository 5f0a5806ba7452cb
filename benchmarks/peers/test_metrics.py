"""The measures equal those of surface-distance and MedPy on random masks; see README.md for the environment."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from volsam.evaluation.metrics import dice, distances, iou, nsd

medpy = pytest.importorskip("medpy.metric.binary", reason="MedPy is not here: see benchmarks/peers/README.md")
surface_distance = pytest.importorskip("surface_distance", reason="surface-distance is not here: see README.md")

pytestmark = pytest.mark.filterwarnings("ignore")

SPACINGS = ((1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.5, 0.8, 1.3))
SEEDS = range(12)


def a_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap in part: noise, blobs, or blobs that leave the volume."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 30, 3))
    if seed % 3 == 0:
        return rng.random(shape) > 0.7, rng.random(shape) > 0.6
    base = gaussian_filter(rng.normal(size=shape), 2.0 if seed % 3 == 1 else 4.0)
    other = base + 0.5 * gaussian_filter(rng.normal(size=shape), 2.0)
    return other > np.quantile(other, 0.7), base > np.quantile(base, 0.7)


@pytest.mark.parametrize("seed", SEEDS)
def test_overlaps_are_those_of_medpy(seed: int) -> None:
    mask, target = a_pair(seed)
    assert dice(mask, target) == pytest.approx(medpy.dc(mask, target), abs=1e-12)
    assert iou(mask, target) == pytest.approx(medpy.jc(mask, target), abs=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_distances_are_those_of_medpy(seed: int, spacing: tuple[float, float, float]) -> None:
    mask, target = a_pair(seed)
    found = distances(mask, target, spacing)
    assert found.hd == pytest.approx(medpy.hd(mask, target, voxelspacing=spacing), abs=1e-9)
    assert found.hd95_pooled == pytest.approx(medpy.hd95(mask, target, voxelspacing=spacing), abs=1e-9)
    assert found.of_mask.mean() == pytest.approx(medpy.asd(mask, target, voxelspacing=spacing), abs=1e-9)
    assert found.of_target.mean() == pytest.approx(medpy.asd(target, mask, voxelspacing=spacing), abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_surface_score_is_that_of_surface_distance(seed: int, spacing: tuple[float, float, float]) -> None:
    mask, target = a_pair(seed)
    theirs = surface_distance.compute_surface_distances(target, mask, spacing)
    for tolerance in (0.5, 1.0, 2.0, 5.0):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert nsd(mask, target, spacing, tolerance) == pytest.approx(expected, abs=1e-5)
