"""The clicks of `--protocol cvpr2025` fall where the challenge's rule puts them, told with the package it uses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from volsam.evaluation.cvpr2025 import correction
from volsam.geometry import Grid

cc3d = pytest.importorskip("cc3d", reason="connected-components-3d is not here: see benchmarks/peers/README.md")


def expected(target: np.ndarray, mask: np.ndarray) -> tuple[tuple[int, ...], bool] | None:
    """Place (z, y, x) and sign of the click on arrays in that order."""
    wrong = target != mask
    if not wrong.any():
        return None
    pieces = cc3d.connected_components(wrong.astype(np.uint8), connectivity=26)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    piece = pieces == sizes.argmax()
    # The challenge cuts the piece out and gives it an empty rim of a quarter of its size, at least a voxel.
    depth = distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    np.random.seed(42)
    place = tuple(int(index) for index in deepest[np.random.choice(len(deepest))])
    return place, bool(target[place])


@pytest.mark.parametrize("seed", range(24))
def test_a_click_is_that_of_the_challenge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(5, 24, 3))
    smooth = (0.0, 1.0, 2.0)[seed % 3]  # specks of equal size, blobs, large blobs
    fields = [gaussian_filter(rng.normal(size=shape), smooth) for _ in range(2)]
    target, mask = (field > np.quantile(field, 0.8) for field in fields)
    grid = Grid.at(shape[::-1], (0.8, 0.8, 3.0))
    click = correction(np.transpose(target, (2, 1, 0)), np.transpose(mask, (2, 1, 0)), grid)
    found = expected(target, mask)
    assert click is not None
    assert found is not None
    x, y, z = np.rint(grid.to_voxels(click.position)).astype(int)
    assert ((z, y, x), click.positive) == found
